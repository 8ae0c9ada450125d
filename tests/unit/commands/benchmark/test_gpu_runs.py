from types import SimpleNamespace

import pytest
import torch

from ehr_ray.commands.benchmark import gpu_runs
from ehr_ray.commands.benchmark.gpu_report import Report
from ehr_ray.commands.benchmark.gpu_steps import Steps
from ehr_ray.commands.benchmark.ranks import Outcome, farthest, norms_apart
from ehr_ray.errors import RunError
from ehr_ray.train import compiled
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.meters import Sums
from ehr_ray.train.task import family_of

ENDED = Outcome({"weight": torch.zeros(2)}, [1.0, 2.0])


@pytest.fixture
def made_up(monkeypatch):
    """Trainings that are not made; a test says by `group` and `ended` what is wrong with them."""
    told = SimpleNamespace(group=lambda _run, _group: None, ended={}, saved=3, first=4)
    told.repeatable = {}

    def run_group(plan, _data, run, group, seconds):
        assert seconds <= 2 * 50  # and not all that is left
        told.repeatable[run.name] = plan.train.deterministic
        told.group(run, group)
        return told.first

    monkeypatch.setattr(gpu_runs, "run_group", run_group)
    monkeypatch.setattr(gpu_runs, "outcome", lambda run: told.ended.get(run.name, ENDED))
    saved = SimpleNamespace(step=told.saved)
    monkeypatch.setattr(gpu_runs, "saved_progress", lambda _run: saved if told.saved else None)
    return told


def faults(synthetic_cohort, tmp_path, device="cpu"):
    report = Report()
    gpu_runs.ranks_and_resume(report, synthetic_cohort, tmp_path, device)
    return report.faults


def test_trainings_that_end_alike_are_no_fault(made_up, synthetic_cohort, tmp_path):
    assert faults(synthetic_cohort, tmp_path) == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_that_was_killed_ends_bit_for_bit_as_a_whole_one_on_every_device(
    device, made_up, synthetic_cohort, tmp_path
):
    made_up.ended["killed"] = Outcome({"weight": torch.tensor([0.0, 1e-7])}, ENDED.norms)
    made_up.ended["two"] = made_up.ended["killed"]  # adds in another order
    (told,) = faults(synthetic_cohort, tmp_path, device)
    what = "weights of a run killed and resumed, difference from a whole run's"
    assert told == f"{what}: 1e-07, above 0"
    assert made_up.repeatable["one"]
    assert made_up.repeatable["killed"]


def test_what_a_device_cannot_do_is_a_fault_and_the_rest_is_compared(
    made_up, synthetic_cohort, tmp_path
):
    def fails(run, group):
        if group.strategy == "fsdp":
            raise RunError(f"{run.name}: 2 ranks by gloo ended with exit code 1")

    made_up.group = fails
    made_up.ended["two"] = Outcome({"weight": torch.ones(2)}, ENDED.norms)
    two, divided = faults(synthetic_cohort, tmp_path)
    assert two == "weights of two ranks, difference from a whole run's: 1, above 0.001"
    assert divided == "two ranks by fsdp: RunError: fsdp: 2 ranks by gloo ended with exit code 1"


def test_without_the_whole_run_nothing_is_held_against_it(made_up, synthetic_cohort, tmp_path):
    def fails(run, _group):
        if run.name == "one":
            raise RunError("one: no nccl here")

    made_up.group = fails
    why = "not checked, one rank by gloo has not come to its end"
    assert faults(synthetic_cohort, tmp_path) == [
        "one rank by gloo: RunError: one: no nccl here",
        f"two ranks: {why}",
        f"kill and resume: {why}",
    ]


@pytest.mark.parametrize(("saved", "had"), [(3, "step 3"), (None, "nothing")])
def test_a_killed_run_that_begins_anew_is_a_fault(saved, had, made_up, synthetic_cohort, tmp_path):
    made_up.saved, made_up.first = saved, 1
    (told,) = faults(synthetic_cohort, tmp_path)
    text = f"killed: the run went on with step 1, and {had} was saved"
    assert told == f"kill and resume: RunError: {text}"


def test_gradients_that_are_summed_in_place_of_averaged_show_in_their_norms_alone(
    made_up, synthetic_cohort, tmp_path, tiny_experiment, make_loader, synthetic_vocabulary
):
    experiment = tiny_experiment("set_vae")
    family, loader, backend = family_of(experiment), make_loader(experiment), LocalBackend()
    batch, ended = loader.collate(loader.train.rows(range(6))), []
    for factor in (1.0, 2.0):
        torch.manual_seed(0)
        model = family.build(experiment.model, synthetic_vocabulary)
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient, factor=factor: factor * gradient)
        step = Steps(experiment, family, model, loader, backend, Sums(backend))
        norms = [float(step([batch])) for _ in range(2)]
        ended.append(Outcome({n: w.detach() for n, w in model.state_dict().items()}, norms))
    whole, summed = ended
    assert farthest(summed.weights, whole.weights) < gpu_runs.WEIGHT_TOLERANCE
    made_up.ended = {"one": whole, "killed": whole, "two": summed}
    (told,) = faults(synthetic_cohort, tmp_path)
    assert told.startswith("norms of gradients of two ranks, difference from a whole run's: 1")
    assert told.endswith(", above 0.01")


def test_norms_of_which_one_is_missing_or_none_are_far():
    assert norms_apart([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    assert norms_apart([1.0], [1.0, 1.0]) == float("inf")
    assert not norms_apart([1.0, float("nan")], [1.0, 1.0]) <= 1e9


def test_blocks_that_cannot_be_compiled_are_a_fault(synthetic_cohort, tmp_path, monkeypatch):
    def missing(_graph, _inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", missing)
    report = Report()
    gpu_runs.compiled_blocks(report, synthetic_cohort, tmp_path, "cpu", ("default",))
    (told,) = report.faults
    assert told.startswith(
        "train.compile=default: ConfigError: train.compile=default: torch cannot"
    )


def test_without_the_plain_run_no_compiled_one_is_tried(synthetic_cohort, tmp_path, monkeypatch):
    def fails(*_):
        raise RunError("no memory")

    monkeypatch.setattr(gpu_runs, "Steps", fails)
    report = Report()
    gpu_runs.compiled_blocks(report, synthetic_cohort, tmp_path, "cpu", ("default",))
    assert report.faults == [
        "train.compile=none: RunError: no memory",
        "train.compile=default: not checked, train.compile=none has not come to its end",
    ]
