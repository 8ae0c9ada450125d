import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from killed import Killed, kill_at
from safetensors.torch import load_file
from torch import nn

from ehr_ray.config.schedules import Cycle, Ramp
from ehr_ray.config.schema import ConfigSchema
from ehr_ray.config.sections import DataConfig, TrainConfig
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.experiment import Experiment
from ehr_ray.family import Diagnose, Family, Files, Select, Term, Training
from ehr_ray.registry import get_family
from ehr_ray.train import history, report
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import load, saved_progress
from ehr_ray.train.loader import Loader
from ehr_ray.train.loop import train
from ehr_ray.train.report import Watch


@pytest.fixture
def run(tiny_experiment, make_loader, synthetic_vocabulary):
    """Train SetVAE into a folder with new objects: run(folder, {path: value}, ...)."""

    def start(folder, changes=None, watch=None, family=None):
        experiment = tiny_experiment(changes={"train.max_epochs": 3, **(changes or {})})
        family = family or get_family("set_vae")
        loader = make_loader(experiment)
        arguments = (experiment, family, synthetic_vocabulary, loader, LocalBackend(), folder)
        return train(*arguments, watch or Watch())

    return start


def state_of(folder):
    state = max((folder / "state").iterdir())
    return {
        f"{name}/{key}": tensor
        for name in ("model", "optimizer")
        for key, tensor in load_file(state / f"{name}.safetensors").items()
    }


def history_of(folder):
    return history.read(folder).drop(columns=["seconds", "data_wait"])


def assert_same_run(a, b):
    ours, theirs = state_of(a), state_of(b)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    checkpoints = [load_file(f / "checkpoint" / "model.safetensors") for f in (a, b)]
    assert all(torch.equal(checkpoints[0][name], checkpoints[1][name]) for name in checkpoints[0])
    assert history_of(a).equals(history_of(b))
    assert dataclasses.replace(saved_progress(a), seconds=0) == dataclasses.replace(
        saved_progress(b), seconds=0
    )


@pytest.mark.parametrize(
    ("changes", "kills"),
    [
        ({}, [4]),
        ({"train.report_steps": 2}, [5]),
        ({"train.report_steps": 2, "train.accumulate": 2}, [1, 3, 8]),
        ({"train.report_steps": 4, "train.max_steps": 6, "train.precision": "bf16"}, [5]),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, tmp_path, changes, kills):
    progress = run(tmp_path / "whole", changes)
    for step in kills:
        with pytest.raises(Killed):
            run(tmp_path / "cut", changes, kill_at(step))
    resumed = run(tmp_path / "cut", changes)
    assert resumed.step == progress.step == changes.get("train.max_steps", 9)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("name", ["save_checkpoint", "save_state"])
def test_a_kill_inside_a_report_repeats_no_row_and_no_patient(run, tmp_path, monkeypatch, name):
    changes = {"train.report_steps": 2}
    run(tmp_path / "whole", changes)
    calls, real = [], getattr(report, name)

    def killed(*arguments):
        calls.append(name)
        if len(calls) == 2:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(report, name, killed)
        with pytest.raises(Killed):
            run(tmp_path / "cut", changes)
    run(tmp_path / "cut", changes)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_history_has_a_row_per_report_and_ends_with_the_plan(run, tmp_path):
    seen = []
    progress = run(
        tmp_path, {"train.report_steps": 4, "train.max_steps": 6}, Watch(on_report=seen.append)
    )
    frame = history.read(tmp_path)
    assert frame["step"].tolist() == [4, 6] == [row["step"] for row in seen]
    assert frame["epoch"].tolist() == [4 / 3, 2.0]
    columns = {"seconds", "data_wait", "lr", "grad_norm", "beta", "free_bits"}
    terms = ("recon", "kl", "kl_nats", "objective")
    columns |= {f"{split}/{term}" for split in ("train", "val") for term in terms}
    assert columns <= set(frame.columns)
    assert np.isfinite(frame.to_numpy()).all()
    assert progress.finished
    last = frame.iloc[-1]
    assert last["val/objective"] == pytest.approx(last["val/recon"] + 0.2 * last["val/kl"])


def test_a_finished_run_does_nothing(run, tmp_path):
    first = run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    steps = []
    again = run(tmp_path, watch=Watch(on_step=lambda *step: steps.append(step)))
    assert steps == []
    assert again == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def assert_close_runs(a, b):
    """Equal to rounding at first; later rounding may decide a tie of nearest tokens otherwise."""
    ours, theirs = history_of(a), history_of(b)
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_accumulating_changes_nothing_but_memory(run, tmp_path):
    for parts in (1, 2, 3):
        changes = {"train.accumulate": parts, "train.clip": 0.5, "train.report_steps": 1}
        run(tmp_path / str(parts), changes)
    assert_close_runs(tmp_path / "2", tmp_path / "1")
    assert_close_runs(tmp_path / "3", tmp_path / "1")


def test_a_seed_is_the_whole_of_the_randomness(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)
        run(tmp_path / name, {"seed": seed, "train.max_epochs": 1})
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert not history_of(tmp_path / "a").equals(history_of(tmp_path / "c"))


@pytest.mark.parametrize("window", [65536, 20], ids=["window", "lanes"])
def test_two_ranks_equal_one_at_the_same_global_batch(
    tmp_path, tiny_experiment, make_loader, train_ranks, window
):
    for world, parts in ((1, 1), (2, 1), (2, 2)):
        changes = {"train.max_epochs": 2, "train.report_steps": 1, "train.accumulate": parts}
        changes |= {"data.batch_size": 15, "data.shuffle_patients": window}
        experiment = tiny_experiment(changes=changes)
        assert min(experiment.model.p_stale, experiment.model.decoder_noise) > 0
        loader = make_loader(experiment)
        codes = train_ranks(tmp_path / f"{world}x{parts}", experiment, loader, world)
        assert codes == [0] * world
    assert len(history_of(tmp_path / "1x1" / "run")) == 2 * loader.steps_per_epoch
    assert_close_runs(tmp_path / "2x1" / "run", tmp_path / "1x1" / "run")
    assert_close_runs(tmp_path / "2x2" / "run", tmp_path / "1x1" / "run")
    assert_equal_ranks(tmp_path / "2x1")
    assert_equal_ranks(tmp_path / "2x2")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("hcat", {}),
        ("vitals_vae", {"model.arch": "vq", "model.codebook": 16, "train.accumulate": 2}),
    ],
)
def test_equal_ranks_stay_equal_to_the_last_bit(
    name, changes, tmp_path, tiny_experiment, make_loader, train_ranks
):
    """Buffers too, which DDP sends once, when it wraps the model."""
    experiment = tiny_experiment(name, {"train.max_epochs": 1, "train.max_steps": 3, **changes})
    assert train_ranks(tmp_path / "run", experiment, make_loader(experiment), 2) == [0, 0]
    assert_equal_ranks(tmp_path / "run")


def assert_equal_ranks(folder):
    ours, theirs = (torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in range(2))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 5
    bits = {n: (ours[n].numpy().tobytes(), theirs[n].numpy().tobytes()) for n in ours}
    assert [n for n, (a, b) in bits.items() if a != b] == []


def test_ranks_that_come_and_go_change_neither_order_nor_batch_nor_rate(
    tmp_path, tiny_experiment, make_loader, synthetic_vocabulary, train_ranks
):
    """One rank to step 3, two to step 6, one again to the end, as an elastic cluster has it."""
    changes = {"train.max_epochs": 2, "train.report_steps": 1, "data.batch_size": 15}
    experiment, family = tiny_experiment(changes=changes), get_family("set_vae")
    folder, loader = tmp_path / "resized", make_loader(experiment)
    train_ranks(folder, experiment, loader, 0)  # writes what they train on
    files = {n: BlockStore([folder / f"{n}.arrow"]) for n in ("train", "tuning")}

    def alone(run, watch=None):
        loader = dataclasses.replace(make_loader(experiment), **files)
        train(
            experiment, family, synthetic_vocabulary, loader, LocalBackend(), run, watch or Watch()
        )

    alone(tmp_path / "whole")
    with pytest.raises(Killed):
        alone(folder / "run", kill_at(3))
    codes = train_ranks(folder, experiment, loader, 2, last=6)
    assert codes[0] == 9
    assert codes[1] != 0
    assert saved_progress(folder / "run").step == 5
    alone(folder / "run")
    assert_close_runs(folder / "run", tmp_path / "whole")


def test_a_rank_that_cannot_write_ends_all_of_them(
    tmp_path, tiny_experiment, make_loader, train_ranks
):
    experiment = tiny_experiment(changes={"train.max_epochs": 1})
    folder, loader = tmp_path / "ranks", make_loader(experiment)
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "state").write_text("no folder")
    assert train_ranks(folder, experiment, loader, 2) == [1, 1]
    assert load(folder / "run").model is not None


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.other = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.weight * x + 0 * self.other.sum()


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    pass


def tiny_loss(model, batch, scheduled, _seed):
    out = model(batch["x"])
    return {
        "fit": Term((out - 1).square().sum(), torch.tensor(float(len(out)))),
        "size": Term(
            out.abs().sum(), torch.tensor(float(len(out))), coef=scheduled.get("weight", 0.0)
        ),
    }


def tiny_family(**changes):
    """A line through the origin, so that the loop's arithmetic can be followed by hand."""
    record = Family(
        name="set_vae",
        schema=ConfigSchema(config=TinyConfig),
        transform=None,
        collate=lambda rows, _: {"x": torch.tensor([float(row["x"]) for row in rows])},
        build=lambda *_: Tiny(),
        loss=tiny_loss,
        predict=None,
        eval_scheduled={"weight": 0.5},
    )
    return dataclasses.replace(record, **changes)


@pytest.fixture
def run_tiny(tmp_path, synthetic_vocabulary):
    def start(family, name="tiny", watch=None, values=(1.0, 2.0, 3.0, 4.0), **changes):
        for split in ("train", "tuning"):
            rows = [{"x": np.float32(x)} for x in values]
            write_block(tmp_path / f"{split}.arrow", rows)
        top = {k: changes.pop(k) for k in ("init_from", "freeze", "schedules") if k in changes}
        experiment = Experiment(
            family="set_vae",
            name=name,
            model=TinyConfig(),
            data=DataConfig(cohort="x", batch_size=len(values)),
            train=TrainConfig(**{"lr": 0.1, "warmup_steps": 0, "max_epochs": 5, **changes}),
            **top,
        )
        stores = [BlockStore([tmp_path / f"{split}.arrow"]) for split in ("train", "tuning")]
        loader = Loader(
            *stores,
            collate=lambda rows: family.collate(rows, None),
            config=experiment.data,
            seed=0,
            accumulate=experiment.train.accumulate,
        )
        arguments = (experiment, family, synthetic_vocabulary, loader, LocalBackend())
        return train(*arguments, tmp_path / name, watch or Watch())

    return start


@pytest.mark.parametrize(("warmup", "seen"), [(2, [1, 2, 3]), (50, [1])])
def test_warnings_are_of_reports_after_warm_up_or_of_the_last_one(run_tiny, warmup, seen):
    told, counts = [], []

    def warn(reports):
        counts.append(len(reports))
        return ["look"] if reports else []

    family = tiny_family(training=Training(diagnose=Diagnose(lambda *_: {"depth": 1.0}, warn)))
    run_tiny(family, watch=Watch(on_lines=told.extend), warmup_steps=warmup)
    assert [n for n in counts if n] == seen
    assert told == ["look"] * len(seen)


def test_training_stops_after_reports_without_improvement(run_tiny, tmp_path):
    scores = iter([5.0, 4.0, 4.0, 4.5, 3.0, 2.0])

    def loss(model, batch, *drawn):
        terms = tiny_loss(model, batch, *drawn)
        if not model.training:
            terms["score"] = Term(torch.tensor(next(scores)), torch.tensor(1.0), coef=0.0)
        return terms

    family = tiny_family(loss=loss, select=Select("val/score"))
    progress = run_tiny(family, max_epochs=9, patience=2)
    assert (progress.step, progress.best, progress.finished) == (4, 4.0, True)
    saved = load_file(tmp_path / "tiny" / "checkpoint" / "model.safetensors")
    assert not torch.equal(saved["weight"], state_of(tmp_path / "tiny")["model/weight"])
    assert run_tiny(family, max_epochs=9, patience=2).step == 4


def test_patience_in_cycles_waits_for_whole_ones(run_tiny):
    """Best at step 3, in the first cycle of 4: the second is the first without a better one."""
    scores = iter([5.0, 4.0, 3.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0])

    def loss(model, batch, *drawn):
        terms = tiny_loss(model, batch, *drawn)
        if not model.training:
            terms["score"] = Term(torch.tensor(next(scores)), torch.tensor(1.0), coef=0.0)
        return terms

    family = tiny_family(loss=loss, select=Select("val/score"))
    schedules = {"beta": Cycle(end=1.0, epochs=4)}
    progress = run_tiny(family, max_epochs=12, patience_cycles=1, schedules=schedules)
    assert (progress.best_step, progress.step, progress.finished) == (3, 8, True)


def test_patience_in_cycles_needs_a_cycle(run_tiny):
    with pytest.raises(ConfigError, match="patience_cycles: no schedule is a cycle"):
        run_tiny(tiny_family(), patience_cycles=1)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_term(run_tiny, tmp_path):
    def loss(model, batch, *drawn):
        terms = tiny_loss(model, batch, *drawn)
        worst = float("nan") if float(batch["x"].min()) < 2 else 0.0
        terms["odd"] = Term(model(batch["x"]).sum() * worst, torch.tensor(1.0))
        return terms

    for parts in (1, 2):
        with pytest.raises(RunError, match=r"odd is not finite .*train\.lr") as caught:
            run_tiny(tiny_family(loss=loss), accumulate=parts)
        assert "\n" not in str(caught.value)
    assert saved_progress(tmp_path / "tiny") is None


def test_micro_batches_have_the_same_draws_when_counted_and_when_differentiated(run_tiny):
    seen = {False: [], True: []}

    def loss(model, batch, *drawn):
        if model.training:
            seen[torch.is_grad_enabled()].append(torch.rand(len(batch["x"])))
        return tiny_loss(model, batch, *drawn)

    run_tiny(tiny_family(loss=loss), accumulate=2, max_epochs=2)
    assert len(seen[True]) == 4
    assert torch.equal(torch.stack(seen[True]), torch.stack(seen[False]))
    assert len(torch.stack(seen[True]).unique()) == 8


def test_after_step_runs_once_a_step_with_the_scheduled_values(run_tiny):
    seen = []

    def after_step(model, scheduled):
        seen.append((model, scheduled["weight"]))

    family = tiny_family(training=Training(after_step=after_step))
    run_tiny(family, schedules={"weight": Ramp(end=1.0, steps=4)})
    assert [weight for _, weight in seen] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(isinstance(model, Tiny) for model, _ in seen)


def test_validation_uses_fixed_scheduled_values_and_exact_means(run_tiny, tmp_path):
    run_tiny(tiny_family(), max_epochs=1, freeze=("weight",))
    row = history.read(tmp_path / "tiny").iloc[0]
    assert (row["train/fit"], row["train/size"], row["train/objective"]) == (1.0, 0.0, 1.0)
    progress = run_tiny(tiny_family(), name="free", max_epochs=1)
    weight = float(load_file(tmp_path / "free" / "checkpoint" / "model.safetensors")["weight"])
    fit = np.mean([(weight * x - 1) ** 2 for x in (1, 2, 3, 4)])
    assert progress.best == pytest.approx(fit + 0.5 * weight * 2.5)


def test_frozen_parameters_keep_their_values(run_tiny, tmp_path):
    run_tiny(tiny_family(), freeze=("wei.*",))
    saved = load_file(tmp_path / "tiny" / "checkpoint" / "model.safetensors")
    assert float(saved["weight"]) == 0.0
    with pytest.raises(ConfigError, match="matches no parameter"):
        run_tiny(tiny_family(), name="other", freeze=("wei",))


def test_init_from_starts_from_the_weights_and_tells_each_tensors_fate(run_tiny, tmp_path):
    run_tiny(tiny_family(), name="first")
    told = []
    source = str(tmp_path / "first")
    watch = Watch(on_lines=told.append, on_step=kill_at(2).on_step)
    with pytest.raises(Killed):
        run_tiny(tiny_family(), name="second", init_from=source, freeze=("weight",), watch=watch)
    assert sorted(told[0]) == ["other: 1 tensor copied", "weight: 1 tensor copied"]
    fates = (tmp_path / "second" / "init_from.txt").read_text().splitlines()
    assert sorted(fates) == ["other: copied", "weight: copied"]
    moved = tmp_path / "moved"
    (tmp_path / "first").rename(moved)
    watch = Watch(on_lines=told.append)
    run_tiny(tiny_family(), name="second", init_from=source, freeze=("weight",), watch=watch)
    ours, theirs = (
        load_file(folder / "checkpoint" / "model.safetensors")["weight"]
        for folder in (tmp_path / "second", moved)
    )
    assert torch.equal(ours, theirs)
    assert len(told) == 1


def test_init_from_another_model_is_an_error(run_tiny, run, tmp_path):
    run_tiny(tiny_family(), name="first")
    with pytest.raises(InputError, match="values fit this model"):
        run(tmp_path / "second", {"init_from": str(tmp_path / "first")})


def test_files_a_config_names_are_checked_before_the_first_step(run_tiny):
    def check(_config):
        raise InputError("table.csv: no such file")

    with pytest.raises(InputError, match=r"table\.csv"):
        run_tiny(tiny_family(files=Files(check=check)))


def test_a_checkpoint_of_a_run_loads_without_ray(run, tmp_path):
    run(tmp_path, {"train.max_steps": 1})
    code = (
        "import sys; from ehr_ray.train.checkpoint import load; load(sys.argv[1]); "
        "sys.exit(any(m.split('.')[0] in ('ray', 'mlflow') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
    assert load(tmp_path).experiment.name == "tiny_set_vae"


def test_a_run_whose_tuning_measures_nothing_is_refused_and_leaves_no_checkpoint(
    run_tiny, tmp_path
):
    def loss(model, batch, *drawn):
        terms, nothing = tiny_loss(model, batch, *drawn), torch.tensor(0.0)
        return terms if model.training else {name: Term(nothing, nothing) for name in terms}

    with pytest.raises(InputError, match="val/objective: is no number on 4 tuning rows"):
        run_tiny(tiny_family(loss=loss))
    assert not (tmp_path / "tiny" / "checkpoint").exists()
    assert saved_progress(tmp_path / "tiny") is None


def test_the_loop_reads_in_one_sitting():
    assert len(inspect.getsource(train).splitlines()) <= 60
