import torch

from ehr_ray.commands.benchmark.peers import published_jepa as module


def test_the_sizes_are_those_of_the_published_model():
    counts = [
        sum(p.numel() for p in part.parameters()) for part in (module.Encoder(), module.Predictor())
    ]
    assert counts == [21_628_032, 1_931_904]


def test_a_step_learns_and_its_teacher_follows(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "DEPTH", 1)
    made = []
    real = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda weights, lr: made.append(weights) or real(weights, lr=lr)
    )
    step = module.published_step()
    before = [weight.clone() for weight in made[0]]
    step()
    moved = [not torch.equal(old, new) for old, new in zip(before, made[0], strict=True)]
    assert all(moved)


def test_rows_that_are_not_kept_are_not_seen():
    encoder = module.Encoder()
    rows = torch.randn(2, module.ROWS, module.FEATURES)
    later = torch.cat([rows[:, : module.CONTEXT], torch.randn(2, 10, module.FEATURES)], 1)
    context = slice(0, module.CONTEXT)
    assert torch.equal(encoder(rows, context), encoder(later, context))
