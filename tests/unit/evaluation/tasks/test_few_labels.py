from dataclasses import replace

import numpy as np
import pytest

from ehr_ray.evaluation.tasks import few_labels
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.few_labels import drawn_rows, few_labels_result

WIDTH, DRAWS = 40, 3


@pytest.fixture(autouse=True, scope="module")
def few_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_labels, "DRAWS", DRAWS)
        yield


def split(seed, subjects=240, rows_each=2):
    """The embedding holds what matters in one number; the features hide it among forty."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(subjects), rows_each)
    signal = np.repeat(rng.normal(size=subjects), rows_each)
    features = rng.normal(size=(len(subject), WIDTH)) + signal[:, None] * 0.2
    return Split(
        subject,
        np.full(len(subject), np.datetime64("2010-01-03", "us")),
        signal + 0.5 * np.repeat(rng.normal(size=subjects), rows_each) > 0.8,
        signal[:, None],
        rng.normal(size=(len(subject), 3)),
        features.astype(np.float32),
        features.astype(np.float32),
    )


@pytest.fixture(scope="module")
def both():
    return split(0), split(1)


@pytest.fixture(scope="module")
def found(both):
    return few_labels_result(*both, "held_out", shares=[0.3, 0.05], num_bootstrap=50)


def test_each_share_has_every_model_with_intervals_and_paired_differences(found):
    metrics = found.metrics
    for share in ("0.05", "0.3"):
        for name in ("untrained", "pca", "logistic", "logistic_rich", "gbm", "gbm_rich"):
            key = f"held_out/labels/{share}/auroc"
            own, other = metrics[key], metrics[f"baseline/{name}/{key}"]
            assert metrics[f"baseline/{name}/{key}/low"] <= other
            assert other <= metrics[f"baseline/{name}/{key}/high"]
            assert metrics[f"baseline/{name}/{key}_difference"] == pytest.approx(own - other)
        assert metrics[f"held_out/labels/{share}/auroc/draws"] >= 0
    assert metrics["held_out/labels/0.05/n"] == 2 * 12
    assert metrics["baseline/gbm/held_out/labels/0.05/auroc_difference/low"] > 0
    assert metrics["held_out/labels/0.3/auroc"] > 0.8
    assert metrics["baseline/untrained/held_out/labels/0.3/auroc"] < 0.65


def test_the_report_has_a_row_a_model_and_share_and_a_figure(found):
    table = found.sections["By share of labels"]
    assert len(table.rows) == 2 * 7
    assert table.rows[0][:3] == ("0.05", "24 (6)", "This model, linear probe")
    assert table.rows[-1][-1] in ("beats", "ties", "loses")
    assert set(found.figures) == {"few_labels"} <= set(found.captions)
    assert "0.05: " in found.lines[0]


def test_whole_subjects_are_drawn_with_both_classes_and_small_draws_lie_in_large_ones(both):
    train = both[0]
    small, large = (
        set(drawn_rows(train, share, np.random.default_rng(3)).tolist()) for share in (0.001, 0.3)
    )
    assert small < large
    assert set(train.subject_id[sorted(large)].tolist()) == {row // 2 for row in large}
    assert len(large) == 2 * len({row // 2 for row in large})
    assert np.bincount(train.label[sorted(small)].astype(int)).tolist() == [4, 4]
    other = drawn_rows(train, 0.3, np.random.default_rng(4))
    assert set(other.tolist()) != large
    assert len(drawn_rows(train, 1.0, np.random.default_rng(0))) == len(train.label)


def test_labels_that_were_not_drawn_reach_no_model(both):
    train, judged = both
    draws = [drawn_rows(train, 0.1, np.random.default_rng([0, k])) for k in range(DRAWS)]
    rest = np.setdiff1d(np.arange(len(train.label)), np.concatenate(draws))
    # Of subjects without the outcome, so that who is drawn stays the same.
    rest = rest[np.flatnonzero(~train.label[rest])]
    assert len(rest) > 20
    wrong = train.embedding.copy()
    wrong[rest] = 1e6  # would move every weight
    first = few_labels_result(train, judged, "held_out", shares=[0.1], num_bootstrap=2)
    other = replace(train, embedding=wrong)
    second = few_labels_result(other, judged, "held_out", shares=[0.1], num_bootstrap=2)
    assert first.metrics == second.metrics


def test_judged_labels_reach_no_model(both):
    train, judged = both
    key = "held_out/labels/0.1/auroc"
    flipped = replace(judged, label=~judged.label)
    first, second = (
        few_labels_result(train, one, "held_out", shares=[0.1], num_bootstrap=2).metrics
        for one in (judged, flipped)
    )
    for name in ("", "baseline/gbm/", "baseline/pca/", "baseline/untrained/"):
        assert second[name + key] == pytest.approx(1 - first[name + key])


def test_one_class_gives_nothing(both):
    train, judged = both
    dull = replace(judged, label=np.zeros(len(judged.label), bool))
    assert few_labels_result(train, dull, "held_out", shares=[0.1]).metrics == {}


def test_without_baselines_the_model_stands_alone(both):
    bare = [replace(one, untrained=None, features=None, rich=None) for one in both]
    found = few_labels_result(*bare, "held_out", shares=[0.1], num_bootstrap=5)
    assert "held_out/labels/0.1/auroc" in found.metrics
    assert not [key for key in found.metrics if key.startswith("baseline/")]
    assert len(found.sections["By share of labels"].rows) == 1
