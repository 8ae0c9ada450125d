import json

import pytest
import torch

from ehr_ray.commands.benchmark import command, gpu, gpu_models, ranks
from ehr_ray.commands.benchmark.gpu_models import MODELS
from ehr_ray.errors import InputError, RunError
from ehr_ray.train import compiled


def test_without_a_gpu_one_line_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="torch finds no GPU here; --device cpu does the same"):
        gpu.gpu_speed(tmp_path, tmp_path)


def test_another_device_is_refused(tmp_path):
    with pytest.raises(InputError, match="--device tpu: no such device; give cuda or cpu"):
        gpu.gpu_speed(tmp_path, tmp_path, "tpu")


FEW = ["set_vae", "jepa"]


@pytest.mark.parametrize(
    ("families", "start"),
    [(FEW, "fork"), pytest.param([*MODELS], "spawn", marks=pytest.mark.slow)],
)
def test_the_run_of_a_gpu_runs_on_the_cpu_and_finds_nothing_wrong(
    families, start, synthetic_cohort, tmp_path, monkeypatch
):
    """Slow: every family, by ranks that import all anew as beside a GPU. A rank starts so below."""
    monkeypatch.setattr(ranks, "START", start)
    monkeypatch.setattr(gpu_models, "MODELS", {name: MODELS[name] for name in families})
    monkeypatch.setattr(gpu, "_phrases", lambda *_: None)  # a sentence transformer takes seconds
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")  # and a compiler of C++ a minute
    target = tmp_path / "gpu.json"
    found = command.benchmark(target, cohort=synthetic_cohort, only="gpu", device="cpu")["gpu"]
    assert json.loads(target.read_text())["parts"]["gpu"] == found
    assert "faults" not in found
    assert found["weights of a run killed and resumed, difference from a whole run's"] == 0
    assert 0 < found["weights with train.compile=default, difference from a plain run's"] < 1e-4
    assert 0 <= found["weights of two ranks by fsdp, difference from ddp's"] < 1e-4
    for family in families:
        for precision in ("float32", "bf16"):
            assert found[f"{family} tiny {precision}, patients per second"] > 0
            assert 0 < found[f"{family} tiny {precision}, MFU"] < 10
        assert found[f"{family} tiny float32, difference of losses from the CPU's"] < 1e-6
        assert found[f"{family} tiny, patients predicted per second"] > 0
        exact = "time of a step with train.deterministic over without"
        assert found[f"{family} tiny float32, {exact}"] > 0


def test_what_is_wrong_is_written_and_ends_the_command(synthetic_cohort, tmp_path, monkeypatch):
    def wrong(*_):
        report = gpu.Report()
        report.check("weights", 0.2, 0.1)
        report.check("losses", float("nan"), 0.1)
        return {**report.figures, "faults": "; ".join(report.faults)}

    monkeypatch.setattr(command, "gpu_speed", wrong)
    target = tmp_path / "gpu.json"
    with pytest.raises(
        RunError, match=r"--only gpu: weights: 0\.2, above 0\.1; losses: nan, above"
    ):
        command.benchmark(target, cohort=synthetic_cohort, only="gpu", device="cpu")
    assert json.loads(target.read_text())["parts"]["gpu"]["weights"] == 0.2


def test_what_a_device_cannot_do_is_a_fault_and_the_rest_is_measured(
    synthetic_cohort, tmp_path, monkeypatch
):
    weight = {"weight": torch.zeros(2)}
    monkeypatch.setattr(gpu, "weights", lambda _run: weight)

    def group(_plan, _data, run, group, _seconds):
        if group.strategy == "fsdp":
            raise RunError(f"{run.name}: 2 ranks by gloo ended with exit code 1")

    monkeypatch.setattr(gpu, "run_group", group)

    def missing(_graph, _inputs):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "BACKEND", missing)
    monkeypatch.setattr(gpu, "experiments", lambda *_: [])
    monkeypatch.setattr(gpu, "_phrases", lambda *_: None)
    found = gpu.gpu_speed(synthetic_cohort, tmp_path, "cpu")
    divided, made = found["faults"].split("; train.compile=default: ")
    assert divided == "two ranks by fsdp: RunError: fsdp: 2 ranks by gloo ended with exit code 1"
    assert made.startswith("ConfigError: train.compile=default: torch cannot compile here")
    assert found["weights of two ranks, difference from a whole run's"] == 0


def test_a_part_that_fails_ends_no_other_and_what_is_known_is_kept_after_each(monkeypatch):
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    seen = []
    report = gpu.Report(100.0, seen.append)
    report.part("phrases", 30, report.check, "phrases", 1.0, 2.0)
    report.part("jepa large", 40, fails)
    report.part("jepa tiny", 101, fails)
    report.part("two ranks", 20, report.check, "weights", 1.0, 2.0)
    assert [len(figures) for figures in seen] == [2, 3, 5, 6]
    assert seen[-1]["left out"] == "jepa tiny (no time left)"
    assert seen[-1]["faults"] == "jepa large: OutOfMemoryError: CUDA out of memory."
    assert seen[-1]["jepa tiny"] == "left out: no time left"
    assert (seen[-1]["phrases"], seen[-1]["weights"]) == (1.0, 1.0)


def test_the_large_size_of_a_gpu_is_the_published_one_and_batches_outlast_the_host(
    synthetic_cohort, tmp_path
):
    scale = gpu.SCALES["cuda"]
    found = {
        (family, size): plan
        for sizes in (scale.first, scale.last)
        for family, size, plan in gpu_models.experiments(synthetic_cohort, tmp_path, sizes)
    }
    assert {family for family, size in found if size == "published"} == {*MODELS}
    assert [family for family, size in found if size == "large"] == ["jepa"]
    large = found["jepa", "large"].model
    assert (large.size.width, large.size.depth, large.size.heads) == (1024, 24, 16)
    assert found["event_transformer", "published"].model.model_dim == 512
    assert found["jepa", "published"].data.batch_size == 1024
    assert 0.7 * gpu.PATIENTS["cuda"] >= max(plan.data.batch_size for plan in found.values())


def test_a_rank_that_cannot_go_on_says_why_and_one_that_hangs_is_ended(tiny_experiment, tmp_path):
    experiment, group = tiny_experiment(), ranks.Group("gloo", 1, "cpu")
    with pytest.raises(RunError, match=r"gloo on cpu: exit code 1: AttributeError: 'NoneType'"):
        ranks.run_group(experiment, None, tmp_path / "fails", group)
    with pytest.raises(RunError, match=r"gloo on cpu: did not end in 0 s: their message"):
        ranks.run_group(experiment, None, tmp_path / "hangs", group, 0.0)
