import pytest
import torch
from safetensors.torch import load_file

from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.loss import chamfer, loss
from ehr_ray.families.set_vae.predict import reconstruct
from ehr_ray.registry import get_family
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import load
from ehr_ray.train.loop import train


def test_training_beats_the_all_zero_reconstruction(make_model, make_row, make_config):
    """The zero vector is what the decoder starts from; a trained one is nearer to unseen sets."""
    seen, unseen = (
        collate([make_row(start + i, [4, 5, 6]) for i in range(24)], make_config())
        for start in (100, 500)
    )
    model = make_model(clean=True, direction_weight=0.0, magnitude_weight=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(150):
        terms = loss(model, seen, {"beta": 0.0, "free_bits": 0.0}, 2 * step + 1)
        optimizer.zero_grad()
        (terms["recon"].sum / terms["recon"].count).backward()
        optimizer.step()
    with torch.no_grad():
        for batch in (seen, unseen):
            out = model.eval().compared(batch, 0)
            ours, zero = (
                chamfer(decoded, out["target"], out["mask"], model.config).mean()
                for decoded in (out["decoded"], torch.zeros_like(out["decoded"]))
            )
            assert ours < 0.8 * zero


@pytest.fixture(scope="module")
def r2_by_name(
    tiny_experiment, make_loader, synthetic_patients, synthetic_vocabulary, tmp_path_factory
):
    """R2 over the train mean of visible values, 150 steps on, of patients not trained on."""

    def measure(**changes):
        limits = {"train.max_steps": 150, "train.max_epochs": 75, "train.report_steps": 150}
        changes = {f"model.{name}": value for name, value in changes.items()}
        experiment = tiny_experiment("set_vae", {**limits, **changes})
        family, run = get_family("set_vae"), tmp_path_factory.mktemp("run")
        loader = make_loader(experiment)
        train(experiment, family, synthetic_vocabulary, loader, LocalBackend(), run)
        patients = synthetic_patients["tuning"]
        rows = [family.transform(p, experiment.model, synthetic_vocabulary) for p in patients]
        with torch.no_grad():
            found = reconstruct(load(run).model, collate(rows, experiment.model))
        value, estimate = (found[name][~found["hidden"]] for name in ("value", "estimate"))
        return float(1 - (estimate - value).square().mean() / value.square().mean())

    return measure


def test_values_of_unseen_patients_are_read_off_under_their_names(r2_by_name):
    ours = r2_by_name()
    assert ours > 0.2
    assert ours > r2_by_name(named_weight=0.0)


def weights(run):
    return load_file(max((run / "state").iterdir()) / "model.safetensors")


def test_two_ranks_train_the_sequence_as_one(tiny_experiment, make_loader, train_ranks, tmp_path):
    experiment = tiny_experiment("seqset_poe", {"train.max_epochs": 2})
    loader = make_loader(experiment)
    for world in (1, 2):
        assert train_ranks(tmp_path / str(world), experiment, loader, world) == [0] * world
    one, two = (tmp_path / str(world) / "run" for world in (1, 2))
    ours, theirs = history.read(one), history.read(two)
    metrics = [name for name in ours if name.startswith(("train/", "val/"))]
    # Padding depends on what is batched together.
    metrics = [name for name in metrics if not name.endswith("padding")]
    assert {"train/recon", "train/kl", "val/kl_nats", "val/objective"} <= set(metrics)
    torch.testing.assert_close(
        torch.tensor(ours[metrics].to_numpy()),
        torch.tensor(theirs[metrics].to_numpy()),
        rtol=1e-3,
        atol=1e-5,
    )
    a, b = weights(one), weights(two)
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)
