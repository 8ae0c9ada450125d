import torch

from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.loss import chamfer, loss


def test_training_beats_the_all_zero_reconstruction(make_model, make_row, make_config):
    """The zero vector is what the decoder starts from; a trained one is nearer to unseen sets."""
    train, unseen = (
        collate([make_row(start + i, [4, 5, 6]) for i in range(24)], make_config())
        for start in (100, 500)
    )
    model = make_model(clean=True, direction_weight=0.0, magnitude_weight=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(150):
        terms = loss(model, train, {"beta": 0.0, "free_bits": 0.0, "noise_seed": 2 * step + 1})
        optimizer.zero_grad()
        (terms["recon"].sum / terms["recon"].count).backward()
        optimizer.step()
    with torch.no_grad():
        for batch in (train, unseen):
            out = model.eval()(batch, 0)
            ours, zero = (
                chamfer(decoded, out["target"], out["mask"], model.config).mean()
                for decoded in (out["decoded"], torch.zeros_like(out["decoded"]))
            )
            assert ours < 0.8 * zero
