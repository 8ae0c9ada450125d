import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from ehr_ray.commands.benchmark import (
    command,
    gpu,
    gpu_checks,
    gpu_models,
    gpu_report,
    ranks,
)
from ehr_ray.commands.benchmark.gpu_models import MODELS
from ehr_ray.errors import InputError, RunError, UnrepeatableError
from ehr_ray.sources.splits import assign_splits, parse_splits
from ehr_ray.train import compiled
from ehr_ray.train.order import Order


def test_without_a_gpu_one_line_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="torch finds no GPU here; --device cpu does the same"):
        gpu.gpu_speed(tmp_path, tmp_path)


@pytest.mark.parametrize("only", ["gpu", "lvcf,gpu"])
def test_a_gpu_that_is_not_there_is_told_before_anything_is_made(only, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "ingest", None)  # as not to be called
    with pytest.raises(InputError, match="--only gpu: torch finds no GPU here"):
        command.benchmark(tmp_path / "x.json", only=only)
    assert not (tmp_path / "x.json").exists()


def test_another_device_is_refused(tmp_path):
    with pytest.raises(InputError, match="--device tpu: no such device; give cuda or cpu"):
        gpu.gpu_speed(tmp_path, tmp_path, "tpu")


ROUNDED = "difference of embeddings predicted in bf16 from those in float32"
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
    monkeypatch.setattr(gpu, "PACKING", [name for name in gpu.PACKING if name in families])
    monkeypatch.setattr(gpu, "embed_phrases", lambda *_: None)  # a real one takes seconds
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")  # and a compiler of C++ a minute
    target = tmp_path / "gpu.json"
    found = command.benchmark(target, cohort=synthetic_cohort, only="gpu", device="cpu")["gpu"]
    assert json.loads(target.read_text())["parts"]["gpu"] == found
    assert "faults" not in found
    packed = "jepa, difference of gradients of packed tokens"
    assert found[packed] == "left out: no kernel for packed tokens here"
    assert found["weights of a run killed and resumed, difference from a whole run's"] == 0
    assert 0 < found["weights with train.compile=default, difference from a plain run's"] < 1e-4
    assert 0 <= found["weights of two ranks by fsdp, difference from ddp's"] < 1e-4
    assert (
        found["norms of gradients of a run killed and resumed, difference from a whole run's"] == 0
    )
    for of in (
        "of two ranks, difference from a whole run's",
        "of two ranks by fsdp, difference from ddp's",
        "with train.compile=default, difference from a plain run's",
    ):
        assert 0 <= found[f"norms of gradients {of}"] < 1e-4
    for family in families:
        for precision in ("float32", "bf16"):
            assert found[f"{family} tiny {precision}, patients per second"] > 0
            assert found[f"{family} tiny {precision}, MFU"] > 0
        assert found[f"{family} tiny float32, difference of losses from the CPU's"] < 1e-6
        assert found[f"{family} tiny float32, difference of gradients from the CPU's"] < 1e-6
        assert found[f"{family} tiny bf16, difference of gradients from the CPU's"] > 0
        assert found[f"{family} tiny, patients predicted per second"] > 0
        assert found[f"{family} tiny, {ROUNDED}"] == 0  # a CPU predicts in float32
        exact = "time of a step with train.deterministic over without"
        assert found[f"{family} tiny float32, {exact}"] > 0


@pytest.mark.parametrize(
    ("capability", "device", "fault"),
    [
        ((8, 0), "cuda", True),
        ((9, 0), "cuda", True),
        ((7, 5), "cuda", False),  # flash attention is not of it
        ((9, 0), "cpu", False),
    ],
)
def test_packed_tokens_that_were_not_checked_are_a_fault_where_a_gpu_has_the_kernel(
    capability, device, fault, synthetic_cohort, tmp_path, monkeypatch
):
    what = "jepa, difference of gradients of packed tokens"
    why = "no kernel for packed tokens here"
    monkeypatch.setattr(gpu, "PACKING", ["jepa"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(gpu, "packed_apart", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, _device: model)
    report = gpu_report.Report()
    gpu.check_packed(report, synthetic_cohort, tmp_path, device)
    assert report.figures == {what: f"left out: {why}"}
    assert report.faults == ([f"{what}: not checked, {why}"] if fault else [])


class MadeUpEncoder:
    """Embeds each text as a zero, and tells how many it was given at a time."""

    given: ClassVar[list[int]] = []
    devices: ClassVar[list[str]] = []

    def __init__(self, name, device):
        assert name == "all-MiniLM-L6-v2"
        self.devices.append(device)

    def encode(self, texts):
        assert len(set(texts)) == len(texts)
        self.given.append(len(texts))
        return np.zeros((len(texts), 1), np.float32)


@pytest.mark.parametrize(("device", "missed"), [("cpu", False), ("cuda", True)])
def test_phrases_are_embedded_twice_and_a_rate_below_the_goal_is_told(device, missed, monkeypatch):
    """The first time for what is planned for shapes; a clock made up says how long the second."""
    monkeypatch.setattr(MadeUpEncoder, "given", [])
    monkeypatch.setattr(MadeUpEncoder, "devices", [])
    monkeypatch.setattr(gpu, "SentenceEncoder", MadeUpEncoder)
    monkeypatch.setattr(gpu, "finish", lambda _device: None)
    clock = iter((10.0, 12.0))
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    report, scale = gpu_report.Report(), replace(gpu.SCALES["cpu"], phrases=50)
    gpu.embed_phrases(report, scale, device)
    name = "phrases embedded per second"
    told = {f"{name}, goal missed": "below 20000"} if missed else {}
    assert report.figures == {name: 25.0, **told}
    assert (MadeUpEncoder.given, report.faults) == ([50, 50], [])
    assert MadeUpEncoder.devices == [device]


@pytest.mark.parametrize("error", [InputError("model.text_model: not there"), ImportError("no st")])
def test_without_a_sentence_transformer_phrases_are_left_out(error, monkeypatch):
    def missing(_name, _device):
        raise error

    monkeypatch.setattr(gpu, "SentenceEncoder", missing)
    report = gpu_report.Report()
    report.part("phrases", 1, gpu.embed_phrases, report, gpu.SCALES["cpu"], "cpu", checks=False)
    found = report.result()
    assert found["phrases embedded per second"] == f"left out: {error}"
    assert found["left out"] == f"phrases embedded per second ({error})"
    assert "faults" not in found


def test_what_is_wrong_is_written_and_ends_the_command(synthetic_cohort, tmp_path, monkeypatch):
    def wrong(*_):
        report = gpu_report.Report()
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


@pytest.fixture
def families_alone(monkeypatch):
    """Have a run do nothing but train the smallest family, whose steps are not taken."""
    for part in ("embed_phrases", "check_packed", "compiled_blocks", "ranks_and_resume"):
        monkeypatch.setattr(gpu, part, lambda *_: None)
    monkeypatch.setattr(gpu_models, "MODELS", {"set_vae": MODELS["set_vae"]})
    monkeypatch.setattr(gpu, "step_speed", lambda *_: {"ms per step": 2.0})


def test_a_term_that_is_not_a_number_in_the_second_place_is_a_fault(
    families_alone, synthetic_cohort, tmp_path, monkeypatch
):
    real = gpu_checks.loss_terms

    def broken(family, model, batch, scheduled, seed, precision):
        terms = real(family, model, batch, scheduled, seed, precision)
        if precision == "bf16":
            assert [*terms][:2] == ["recon", "kl"]
            terms["kl"] = replace(terms["kl"], sum=terms["kl"].sum * float("nan"))
        return terms

    monkeypatch.setattr(gpu_checks, "loss_terms", broken)
    found = gpu.gpu_speed(synthetic_cohort, tmp_path, "cpu")
    losses, gradients = found["faults"].split("; ")
    assert losses == "set_vae tiny bf16, difference of losses from the CPU's: nan, above 0.05"
    assert gradients.startswith("set_vae tiny bf16, difference of gradients from the CPU's (")


def test_a_prediction_in_bf16_that_is_another_is_a_fault(
    families_alone, synthetic_cohort, tmp_path, monkeypatch
):
    class Rough(gpu.Predictor):
        def outputs(self, batch, function=None):
            off = 1.1 if self.precision == "bf16" else 1.0
            return {name: off * value for name, value in super().outputs(batch, function).items()}

    monkeypatch.setattr(gpu, "Predictor", Rough)
    found = gpu.gpu_speed(synthetic_cohort, tmp_path, "cpu")
    assert found["faults"] == f"set_vae tiny, {ROUNDED}: 0.1, above 0.05"


@pytest.mark.parametrize("size", ["tiny", "published"])
def test_more_waits_than_two_a_step_are_a_fault_and_a_goal_is_none_and_not_of_tiny_sizes(
    size, families_alone, synthetic_cohort, tmp_path, monkeypatch
):
    plan = gpu_models.experiment("set_vae", "tiny", synthetic_cohort, tmp_path, 8)
    monkeypatch.setattr(
        gpu, "experiments", lambda *given: [("set_vae", size, plan)] if given[2] else []
    )

    def speed(plan, *_):
        syncs = 3.0 if plan.train.precision == "bf16" else 2.0
        return {"ms per step": 2.0, gpu.SYNCS: syncs, "MFU": 0.1, gpu.BUSY: 0.95}

    monkeypatch.setattr(gpu, "step_speed", speed)
    found = gpu.gpu_speed(synthetic_cohort, tmp_path, "cpu")
    assert found["faults"] == f"set_vae {size} bf16, syncs per step: 3, above 2"
    missed = {name: value for name, value in found.items() if "goal missed" in name}
    names = [f"set_vae {size} {p}, MFU, goal missed" for p in ("bf16", "float32")]
    assert missed == (dict.fromkeys(names, "below 0.4") if size == "published" else {})


def test_what_must_be_right_is_checked_before_large_sizes_take_the_time(
    families_alone, synthetic_cohort, tmp_path, monkeypatch
):
    order = []
    monkeypatch.setattr(gpu, "experiments", lambda *given: order.append(given[2]) or [])
    for part in ("check_packed", "ranks_and_resume"):
        monkeypatch.setattr(gpu, part, lambda *_, part=part: order.append(part))
    gpu.gpu_speed(synthetic_cohort, tmp_path, "cpu")
    assert order == ["check_packed", "ranks_and_resume", (), ("tiny",)]


@pytest.mark.parametrize(("device", "patients"), [("cuda", 5100), ("cpu", 500), (None, 5100)])
def test_the_part_has_its_patients_beside_other_parts_too(device, patients, tmp_path, monkeypatch):
    def made(*_, options, **__):
        raise RunError(str(options))

    monkeypatch.setattr(command, "ingest", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for only in ("gpu", "lvcf,gpu"):
        with pytest.raises(RunError, match=f"^{{'patients': {patients}}}$"):
            command.benchmark(tmp_path / "x.json", only=only, device=device)


def test_a_weight_that_is_not_a_number_is_far_whatever_its_place():
    ours = {"a": torch.zeros(2), "b": torch.tensor([0.0, float("nan")])}
    assert not ranks.farthest(ours, {"a": torch.zeros(2), "b": torch.zeros(2)}) <= 1e9
    assert ranks.farthest(ours, {**ours, "b": ours["b"].nan_to_num(3.0)}) != 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UnrepeatableError("train.deterministic=true: upsample adds in another order"), None),
        (RunError("kl is not finite"), "RunError: kl is not finite"),
        (RuntimeError("CUDA error: an illegal memory access"), "RuntimeError: CUDA error: an"),
    ],
)
def test_of_what_repeats_only_a_kernel_that_cannot_is_left_out(
    error, told, families_alone, synthetic_cohort, tmp_path, monkeypatch
):
    def speed(plan, *_):
        if plan.train.deterministic:
            raise error
        return {"ms per step": 2.0}

    monkeypatch.setattr(gpu, "step_speed", speed)
    found = gpu.gpu_speed(synthetic_cohort, tmp_path, "cpu")
    name = "set_vae tiny float32, time of a step with train.deterministic over without"
    assert found["set_vae tiny, patients predicted per second"] > 0
    if told is None:
        assert found[name] == f"left out: {error}"
        assert "faults" not in found
    else:
        assert found["faults"].startswith(f"{name}: {told}")
        assert name not in found


def test_the_limit_counts_from_the_command(families_alone, synthetic_cohort, tmp_path, monkeypatch):
    told = []

    def told_began(*given):
        told.append(given[-1])
        return gpu.gpu_speed(*given[:-1], given[-1] - 2 * gpu.SCALES["cpu"].seconds)

    monkeypatch.setattr(command, "gpu_speed", told_began)
    monkeypatch.setattr(gpu_report.os, "_exit", told.append)
    given = {"cohort": synthetic_cohort, "only": "gpu", "device": "cpu"}
    began = time.monotonic()
    target = tmp_path / "gpu.json"
    left = "--only gpu: .*set_vae tiny: not checked, no time left"
    with pytest.raises(RunError, match=left):
        command.benchmark(target, **given)
    found = json.loads(target.read_text())["parts"]["gpu"]
    assert found["set_vae tiny"] == "left out: no time left"
    assert told[0] >= began
    with pytest.raises(RunError, match=left):
        command.benchmark(target, **given, began=began - 7)
    assert began - 7 in told


def test_batches_are_as_large_as_asked_and_those_of_an_epoch_are_new(synthetic_cohort, tmp_path):
    """With fewer patients an even epoch of batches of 1,024 was one of 635."""
    ids = np.arange(1, 1 + gpu.PATIENTS["cuda"])
    patients = int((assign_splits(ids, parse_splits(None, 0)) == 0).sum())
    lengths = np.random.default_rng(0).integers(300, 900, patients)
    scale = gpu.SCALES["cuda"]
    for sizes in (scale.first, scale.last):
        for _, _, plan in gpu_models.experiments(synthetic_cohort, tmp_path, sizes):
            data = plan.data
            order = Order(
                lengths,
                np.array([patients]),
                np.array([1]),
                batch_size=data.batch_size,
                bucket_batches=data.bucket_batches,
                shuffle_patients=data.shuffle_patients,
                seed=0,
            )
            assert 0.95 * data.batch_size <= order.smallest
            first, second = (
                {(len(rows), lengths[rows].max(), lengths[rows].sum()) for rows in window}
                for epoch in (0, 1)
                for window in order.windows(epoch)
            )
            assert first != second


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


def test_a_rank_that_cannot_go_on_says_why_and_one_that_hangs_is_ended(tiny_experiment, tmp_path):
    experiment, group = tiny_experiment(), ranks.Group("gloo", 1, "cpu")
    with pytest.raises(RunError, match=r"gloo on cpu: exit code 1: AttributeError: 'NoneType'"):
        ranks.run_group(experiment, None, tmp_path / "fails", group)
    with pytest.raises(RunError, match=r"gloo on cpu: did not end in 0 s: their message"):
        ranks.run_group(experiment, None, tmp_path / "hangs", group, 0.0)


def test_a_rank_trains_with_the_numerics_of_its_config_and_tells_its_first_step(
    tiny_experiment, tmp_path, monkeypatch
):
    experiment = tiny_experiment(changes={"train.matmul_precision": "medium"})

    def train(_experiment, _family, _vocabulary, _loader, _backend, run, watch):
        (run / "precision").write_text(torch.get_float32_matmul_precision())
        for step in (5, 6):
            watch.on_step(step, 6)

    monkeypatch.setattr(ranks, "START", "fork")
    monkeypatch.setattr(ranks, "train", train)
    monkeypatch.setattr(ranks, "loader_of", lambda *_: None)
    data, group = SimpleNamespace(vocabulary=None), ranks.Group("gloo", 1, "cpu")
    assert ranks.run_group(experiment, data, tmp_path, group) == 5
    assert (tmp_path / "precision").read_text() == "medium"
