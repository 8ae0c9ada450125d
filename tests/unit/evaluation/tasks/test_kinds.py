import numpy as np
import pytest

from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.kinds import fit_kind, kind_table, score_kind

CLASSES = ("low", "middle", "high")


def split_of(kind, n, seed):
    """Rows of which features tell the label and the model's embedding nothing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 4)).astype(np.float32)
    label = 10 + 5 * features[:, 0].astype(np.float64)
    if kind == "classes":
        label = np.digitize(label, [8, 12])
    return Split(
        subject_id=np.arange(n),
        prediction_time=np.zeros(n, "datetime64[us]"),
        label=label,
        embedding=rng.normal(size=(n, 3)).astype(np.float32),
        features=features,
    )


@pytest.mark.parametrize(
    ("kind", "classes", "metric", "constant"),
    [("regression", (), "mae", "mean"), ("classes", CLASSES, "macro_auroc", "majority")],
)
def test_what_baselines_win_is_said_first_and_paired(kind, classes, metric, constant):
    train, tuning, held_out = (split_of(kind, n, s) for s, n in enumerate((150, 60, 80)))
    fitted = fit_kind(train, tuning, kind, classes)
    linear = "ridge" if kind == "regression" else "logistic"
    assert list(fitted) == ["model", "gbm", linear, constant]
    scores = score_kind(fitted, {"held_out": [held_out]}, kind, classes, num_bootstrap=50)
    assert scores.verdicts[0].startswith("loses to ")
    ours, theirs = (scores.metrics[f"{at}held_out/{metric}"] for at in ("", f"baseline/{linear}/"))
    difference = scores.metrics[f"baseline/{linear}/held_out/{metric}_difference"]
    assert difference == pytest.approx(ours - theirs)
    rows = {row[0]: row for row in kind_table(scores, "held_out").rows}
    assert rows["This model, linear probe"][-1] == ""
    (title,) = (title for title in rows if "simple" in title and "LightGBM" not in title)
    assert rows[title][-2].startswith("loses ")
    assert any("cannot be told apart" in v or "loses" in v for v in scores.verdicts[1:])


def test_the_output_of_a_trained_model_is_taken_as_it_is():
    train, tuning = split_of("classes", 150, 0), split_of("classes", 60, 1)
    logits = np.log(np.tile([0.2, 0.3, 0.5], (60, 1)))
    own = Split(**{**vars(tuning), "logit": logits})
    fitted = fit_kind(
        Split(**{**vars(train), "logit": logits[:1].repeat(150, 0)}), own, "classes", CLASSES
    )
    scores = score_kind(fitted, {"tuning": [own]}, "classes", CLASSES, num_bootstrap=0)
    np.testing.assert_allclose(scores.predicted["tuning"]["model"], np.exp(logits))
    assert "probe" in fitted
