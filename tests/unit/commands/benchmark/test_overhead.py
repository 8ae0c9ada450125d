"""What is spent around a step, measured without Ray: that the figures belong together."""

import pytest

from ehr_ray.commands.benchmark import overhead
from ehr_ray.runtime.training.launch import fit_here


@pytest.fixture
def in_this_process(monkeypatch):
    """Rows, the plain process and Ray's worker, all here; steps are few, and all but one count."""
    real = overhead.prepared
    monkeypatch.setattr(overhead, "prepared", lambda *args, **_: real(*args, on_ray=False))
    monkeypatch.setattr(overhead, "in_process", lambda function, *args: function(*args))
    monkeypatch.setattr(overhead, "fit", fit_here)
    monkeypatch.setattr(overhead, "WARM_STEPS", 1)


def test_the_loader_is_held_against_batches_that_are_there_and_against_training(
    synthetic_cohort, tmp_path, in_this_process
):
    found = overhead.loading(synthetic_cohort, tmp_path)
    assert all(value > 0 for value in found.values())
    trained = found["patients per second that training uses"]
    assert found["loader over training"] == pytest.approx(found["patients per second"] / trained)


def test_steps_of_a_worker_are_held_against_those_of_a_plain_process(
    synthetic_cohort, tmp_path, in_this_process
):
    found = overhead.steps(synthetic_cohort, tmp_path)
    assert all(value > 0 for value in found.values())
    bare, ray = (found[f"{name}, ms per step"] for name in ("bare", "Ray"))
    assert found["Ray over bare, step throughput"] == pytest.approx(bare / ray)
    assert len(list(tmp_path.glob("steps-*/starts"))) == 6
