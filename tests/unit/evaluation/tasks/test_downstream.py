from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.metrics.thresholds import choose_threshold
from ehr_ray.evaluation.tasks import baselines, downstream
from ehr_ray.evaluation.tasks.downstream import Split, fit_task, score_task
from ehr_ray.evaluation.tasks.trees import TreeSettings

GRID = (TreeSettings(0.1, 6, 0.5),)


@pytest.fixture(autouse=True)
def small_trees(monkeypatch):
    def fit_small(*arrays, **options):
        return baselines.fit_gbm(*arrays, **options, grid=GRID, num_seeds=2)

    monkeypatch.setattr(downstream, "fit_gbm", fit_small)


def cohort(n, seed, signal=1.5):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 10)).astype(np.float32)
    label = signal * features[:, 0] + rng.normal(size=n) > 1
    embedding = np.tanh(features @ np.random.default_rng(99).normal(size=(10, 6)))
    time = np.full(n, np.datetime64("2010-01-03", "us"))
    noise = rng.normal(size=(n, 6))
    return Split(np.arange(n), time, label, embedding, noise, features)


@pytest.fixture(scope="module")
def splits():
    return {
        "train": cohort(400, 0),
        "tuning": cohort(150, 1),
        "held_out": cohort(200, 2),
    }


@pytest.fixture
def fitted(splits):
    return fit_task(splits["train"], splits["tuning"])


def scored(fitted, splits, **options):
    blocks = {name: [splits[name]] for name in ("tuning", "held_out")}
    return score_task(fitted, blocks, num_bootstrap=50, **options)


def test_every_model_has_every_metric_with_an_interval_on_every_split(fitted, splits):
    metrics = scored(fitted, splits).metrics
    for prefix in ("", "baseline/gbm/", "baseline/logistic/", "baseline/pca/"):
        for split in ("tuning", "held_out"):
            for name in ("auroc", "auprc", "min_se_ppv", "brier", "ece"):
                key = f"{prefix}{split}/{name}"
                assert metrics[f"{key}/low"] <= metrics[f"{key}/high"]
                assert key in metrics
    assert "baseline/untrained/held_out/auroc" in metrics


def test_probabilities_and_metrics_are_of_the_same_rows(fitted, splits):
    scores = scored(fitted, splits)
    label = splits["held_out"].label
    for name, probability in scores.probabilities["held_out"].items():
        key = "held_out/auroc" if name == "model" else f"baseline/{name}/held_out/auroc"
        assert scores.metrics[key] == pytest.approx(roc_auc_score(label, probability))


def test_the_difference_is_model_minus_baseline(fitted, splits):
    metrics = scored(fitted, splits).metrics
    expected = metrics["held_out/auroc"] - metrics["baseline/gbm/held_out/auroc"]
    assert metrics["baseline/gbm/held_out/auroc_difference"] == pytest.approx(expected)


def test_the_spread_of_the_seeds_of_the_trees_is_reported(fitted, splits):
    metrics = scored(fitted, splits).metrics
    key = "baseline/gbm/held_out/auroc/seed"
    assert metrics[f"{key}_min"] <= metrics[f"{key}_mean"] <= metrics[f"{key}_max"]


def test_another_cohort_is_scored_without_refitting(fitted):
    other = cohort(90, 7)
    scores = score_task(fitted, {"held_out": [other]}, num_bootstrap=20)
    assert scores.metrics["held_out/n"] == 90
    direct = fitted.scorers["model"].predict(other.embedding)
    np.testing.assert_array_equal(scores.probabilities["held_out"]["model"], direct)


def test_held_out_labels_change_neither_a_model_nor_its_threshold(fitted, splits):
    flipped = replace(splits["held_out"], label=~splits["held_out"].label)
    first = scored(fitted, splits)
    second = scored(fitted, splits | {"held_out": flipped})
    for name, probability in first.probabilities["held_out"].items():
        np.testing.assert_array_equal(probability, second.probabilities["held_out"][name])
    assert first.metrics["probe/threshold"] == second.metrics["probe/threshold"]


def test_fitting_again_repeats_every_number(fitted, splits):
    again = fit_task(splits["train"], splits["tuning"])
    assert scored(fitted, splits).metrics == scored(again, splits).metrics


def test_a_family_without_features_or_untrained_encoder_still_has_its_probe(splits):
    bare = {n: replace(s, untrained=None, features=None) for n, s in splits.items()}
    fitted = fit_task(bare["train"], bare["tuning"])
    scores = scored(fitted, bare)
    assert list(fitted.scorers) == ["model"]
    assert scores.verdicts == ()
    assert "held_out/auroc" in scores.metrics


def test_a_worthless_embedding_is_said_to_lose(splits):
    noise = {n: replace(s, embedding=s.untrained) for n, s in splits.items()}
    scores = scored(fit_task(noise["train"], noise["tuning"]), noise)
    strongest = scores.verdicts[0]
    assert strongest.startswith("loses to ")
    assert "-" not in strongest.split(" by ")[1]  # sizes are told without a sign


def test_a_held_out_split_of_one_class_gives_a_note_and_no_verdict(fitted, splits):
    dull = replace(splits["held_out"], label=np.zeros(200, bool))
    scores = scored(fitted, splits | {"held_out": dull})
    assert scores.verdicts == ()
    assert any(note.startswith("held_out: ") and "auroc" in note for note in scores.notes)


def test_a_diverged_encoder_is_refused():
    split = cohort(5, 0)
    with pytest.raises(ValueError, match="encoder diverged"):
        replace(split, embedding=np.full((5, 6), np.nan))


def test_arrays_of_another_length_are_refused():
    with pytest.raises(ValueError, match="label: 4 rows for 5 subjects"):
        replace(cohort(5, 0), label=np.zeros(4, bool))


def test_a_model_trained_for_the_task_is_judged_by_its_own_output_and_beside_its_probe(splits):
    own = {name: replace(s, logit=3.0 * s.features[:, 0] - 5.0) for name, s in splits.items()}
    scores = scored(fit_task(own["train"], own["tuning"]), own)
    metrics, held_out = scores.metrics, own["held_out"]
    assert metrics["held_out/auroc"] == pytest.approx(
        roc_auc_score(held_out.label, held_out.logit), abs=1e-9
    )
    probe = fit_task(splits["train"], splits["tuning"])
    assert metrics["baseline/probe/held_out/auroc"] == pytest.approx(
        scored(probe, splits).metrics["held_out/auroc"], abs=1e-9
    )
    # Its raw output was far too sure; Platt scaling on tuning mends that.
    raw = scores.uncalibrated["held_out"]
    calibrated = scores.probabilities["held_out"]["model"]
    assert abs(calibrated.mean() - held_out.label.mean()) < abs(raw.mean() - held_out.label.mean())
    assert baselines.title_of("model", metrics, "held_out") == "This model, trained for the task"


def test_the_average_with_the_trees_is_scored_and_its_gain_is_over_the_trees(fitted, splits):
    scores = scored(fitted, splits)
    held_out = scores.probabilities["held_out"]
    mean = (held_out["model"] + held_out["gbm"]) / 2
    np.testing.assert_allclose(held_out["trees_and_model"], mean)
    metrics, key = scores.metrics, "baseline/trees_and_model/held_out"
    assert metrics[f"{key}/auroc"] == pytest.approx(roc_auc_score(splits["held_out"].label, mean))
    gain = metrics[f"{key}/auroc"] - metrics["baseline/gbm/held_out/auroc"]
    assert metrics[f"{key}/auroc_gain"] == pytest.approx(gain)
    assert f"{key}/auroc_difference" not in metrics
    assert "averaged" in scores.verdicts[-1]


def test_the_threshold_of_the_average_comes_from_tuning(fitted, splits):
    tuning = splits["tuning"]
    scores = scored(fitted, splits)
    expected = choose_threshold(tuning.label, scores.probabilities["tuning"]["trees_and_model"])
    assert scores.metrics["baseline/trees_and_model/threshold"] == expected


def test_differences_at_a_threshold_use_the_threshold_of_each(fitted, splits):
    metrics = scored(fitted, splits).metrics
    for name in ("min_se_ppv", "event2"):
        found = metrics[f"baseline/logistic/held_out/{name}_difference"]
        rows = metrics[f"held_out/{name}"] - metrics[f"baseline/logistic/held_out/{name}"]
        assert found == pytest.approx(rows)


def test_rows_given_three_times_are_no_more_certain_in_scores_and_differences(fitted, splits):
    once = scored(fitted, splits).metrics
    repeated = {
        name: replace(split, **{key: np.repeat(rows, 3, axis=0) for key, rows in given.items()})
        for name, split in splits.items()
        if (given := {key: rows for key, rows in vars(split).items() if rows is not None})
    }
    again = scored(fitted, repeated).metrics
    for key in ("auroc", "brier"):
        ends = [f"held_out/{key}/{end}" for end in ("low", "high")]
        ends += [f"baseline/gbm/held_out/{key}_difference/{end}" for end in ("low", "high")]
        assert [again[end] for end in ends] == pytest.approx([once[end] for end in ends])


def test_rich_features_have_rows_of_their_own_and_their_average(splits):
    """What only rich features show, the trees on rich features find alone."""
    rich = {}
    for name, whole in splits.items():
        blind = whole.features[:, 1:]
        rich[name] = replace(whole, features=blind, rich=whole.features)
    fitted = fit_task(rich["train"], rich["tuning"])
    scores = scored(fitted, rich)
    metrics, held_out = scores.metrics, scores.probabilities["held_out"]
    for name in ("gbm", "logistic"):
        low, high = (metrics[f"baseline/{key}/held_out/auroc"] for key in (name, f"{name}_rich"))
        assert low < 0.65 < 0.75 < high
    both = (held_out["gbm_rich"] + held_out["logistic_rich"]) / 2
    np.testing.assert_allclose(held_out["average_rich"], both)
    assert "baseline/average_rich/held_out/auroc_difference" in metrics


def test_without_rich_features_their_rows_are_left_out(fitted):
    assert not {"gbm_rich", "logistic_rich", "average_rich"} & set(fitted.scorers)


def with_logit(split, seed):
    """A split with what an ensemble reads: rich features, and the logit of half of the signal."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=len(split.label)).astype(np.float32)
    return replace(split, rich=split.features, logit=2 * split.features[:, 0] + noise - 1)


@pytest.fixture(scope="module")
def read_by_ensemble(splits):
    return {name: with_logit(split, seed) for seed, (name, split) in enumerate(splits.items())}


@pytest.fixture
def ensemble(read_by_ensemble):
    names = ("gbm", "gbm_rich", "logistic_rich", "average_rich")
    train, tuning = read_by_ensemble["train"], read_by_ensemble["tuning"]
    return fit_task(train, tuning, baselines=names, ensemble=True)


def test_an_ensemble_is_what_is_judged_and_its_network_is_a_row(ensemble, read_by_ensemble):
    scores = scored(ensemble, read_by_ensemble)
    held_out, told = read_by_ensemble["held_out"], scores.probabilities["held_out"]
    network = fit_task(read_by_ensemble["train"], read_by_ensemble["tuning"], baselines=())
    alone = network.scorers["model"].predict(held_out.logit)
    np.testing.assert_array_equal(told["network"], alone)
    parts = [np.log(p / (1 - p)) for p in (alone, told["average_rich"])]
    assert np.argsort(np.mean(parts, 0)).tolist() == np.argsort(told["model"]).tolist()
    assert scores.metrics["held_out/auroc"] == pytest.approx(
        roc_auc_score(held_out.label, told["model"])
    )
    gap = scores.metrics["baseline/network/held_out/auroc_difference"]
    assert gap == pytest.approx(
        scores.metrics["held_out/auroc"] - scores.metrics["baseline/network/held_out/auroc"]
    )
    assert "trees_and_model" not in told  # trees are in it already
    assert scores.model is ensemble.scorers["network"]  # what a checkpoint can tell by itself
    assert any("its network alone" in sentence for sentence in scores.verdicts)


def test_an_ensemble_is_calibrated_on_tuning(ensemble, read_by_ensemble):
    tuning = read_by_ensemble["tuning"]
    probability = ensemble.model_probability(tuning)
    assert probability.mean() == pytest.approx(tuning.label.mean(), abs=0.02)
    assert ensemble.scorers["model"].threshold == choose_threshold(tuning.label, probability)


def test_an_ensemble_may_weigh_its_parts_by_what_folds_have_learned(read_by_ensemble):
    names = ("gbm_rich", "logistic_rich", "average_rich")
    train, tuning, held_out = (read_by_ensemble[n] for n in ("train", "tuning", "held_out"))
    stack = {"network": 0.7, "gbm_rich": 0.4, "logistic_rich": 0.0, "offset": -0.2}
    fitted = fit_task(train, tuning, baselines=names, ensemble=True, stack=stack)
    told = scored(fitted, read_by_ensemble).probabilities["held_out"]
    logit = {name: np.log(p / (1 - p)) for name, p in told.items()}
    np.testing.assert_allclose(
        logit["model"], 0.7 * logit["network"] + 0.4 * logit["gbm_rich"] - 0.2, atol=1e-6
    )
    assert fitted.scorers["model"].threshold == choose_threshold(
        tuning.label, fitted.model_probability(tuning)
    )
    assert len(held_out.label) == len(told["model"])


def test_without_what_it_is_averaged_with_a_model_stands_alone(read_by_ensemble):
    bare = {n: replace(s, rich=None, features=None) for n, s in read_by_ensemble.items()}
    fitted = fit_task(bare["train"], bare["tuning"], ensemble=True)
    assert "network" not in fitted.scorers
    assert fitted.scorers["model"].input == "logit"
