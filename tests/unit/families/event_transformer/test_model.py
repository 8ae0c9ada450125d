import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ehr_ray.families.event_transformer import model as model_module
from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.model import RECENT, SHARPNESS, far_apart

CHOICES = [
    {"arch": arch, "positions": positions, "pooling": ("mean", "cls", "max", "attention", "last")}
    for arch, positions in itertools.product(
        ("encoder", "decoder"), [("sinusoidal",), ("rotary",), ("time",), ("rotary", "time")]
    )
]


class Largest(TorchDispatchMode):
    """Records the largest tensor any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("changes", CHOICES, ids=str)
def test_padding_changes_nothing(changes, make_model, make_batch):
    model = make_model(**changes).eval()
    whole = make_batch([7, 30, 2, 0], model.config)
    together = FAMILY.predict(model, whole)["embedding"]
    assert together.shape == (4, FAMILY.represent.width(model))
    for i, length in enumerate([7, 30, 2, 0]):
        alone = FAMILY.predict(model, make_batch([length], model.config, first=1 + i))
        torch.testing.assert_close(alone["embedding"][0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["encoder", "decoder"])
def test_no_tensor_grows_with_the_square_of_the_length(arch, make_model, make_batch):
    """Forward and backward, with padding: doubling T doubles the largest tensor."""
    model = make_model(
        arch=arch, max_length=4096, head="none", positions=("rotary", "time")
    ).train()
    sizes = []
    for length in (512, 1024):
        batch = make_batch([length, length // 2], model.config)
        with Largest() as largest:
            FAMILY.represent.function(model, batch, None).square().sum().backward()
        sizes.append(largest.numel)
        assert largest.numel < length * length
    assert sizes[1] <= 2.2 * sizes[0]


def test_a_decoder_sees_nothing_later_and_an_encoder_does(make_model, make_batch):
    for arch, same in (("decoder", True), ("encoder", False)):
        model = make_model(arch=arch).eval()
        batch = make_batch([12], model.config)
        changed = {**batch, "phrase": batch["phrase"].clone()}
        changed["phrase"][:, 8:] = (changed["phrase"][:, 8:] + 1) % 5
        before, after = model.encode(batch)[:, :8], model.encode(changed)[:, :8]
        assert torch.allclose(before, after, atol=1e-6) == same


def test_long_records_are_cut_by_the_policy(make_model, make_batch):
    model = make_model(max_length=5, truncation="random")
    batch = make_batch([40, 3], model.config)
    last = model.window(batch, None)
    assert last["mask"].sum(1).tolist() == [5, 3]
    assert torch.equal(last["minute"][0], batch["minute"][0, 35:])
    starts = set()
    for seed in range(40):
        drawn = model.window(batch, seed)
        assert drawn["mask"].sum(1).tolist() == [5, 3]
        assert torch.equal(drawn["phrase"][1, :3], batch["phrase"][1, :3])
        starts.add(float(drawn["minute"][0, 0]))
    assert len(starts) > 15
    assert torch.equal(model.window(batch, 7)["minute"], model.window(batch, 7)["minute"])
    fixed = make_model(max_length=5)
    assert torch.equal(fixed.window(batch, 7)["minute"], last["minute"])


def test_an_encoder_is_asked_for_hidden_tokens_it_does_not_see(make_model, make_batch):
    model = make_model(arch="encoder", next_value_weight=1.0).train()
    batch = make_batch([60, 40], model.config)
    holes = model.holes(batch, 3)
    assert 5 <= int(holes.sum()) <= 30
    assert not (holes & ~batch["mask"]).any()
    seen = []
    model.norm.register_forward_hook(lambda _module, _inputs, state: seen.append(state))
    out = model(batch, 3)
    assert torch.equal(out["phrase"], batch["phrase"][holes])
    other = {k: v.clone() for k, v in batch.items()}
    other["phrase"][holes] = 0
    other["value"][holes] = 4.0
    model(other, 3)
    assert torch.equal(*seen)  # what the scores are made of
    assert not torch.equal(model.holes(batch, 4), holes)


def test_validation_hides_as_much_whatever_training_hides(make_model, make_batch):
    sparse, dense = (make_model(arch="encoder", mask_ratio=ratio) for ratio in (0.05, 0.8))
    batch = make_batch([600, 400], sparse.config)
    tokens = float(batch["mask"].sum())
    shares = [float(m.train().holes(batch, 3).sum()) / tokens for m in (sparse, dense)]
    assert shares == pytest.approx([0.05, 0.8], abs=0.04)
    found = [model.eval().holes(batch, 3) for model in (sparse, dense)]
    assert torch.equal(*found)
    assert float(found[0].sum()) / tokens == pytest.approx(0.15, abs=0.04)


def test_either_architecture_takes_the_weights_of_the_other(make_model):
    decoder, encoder = make_model(arch="decoder"), make_model(arch="encoder", head="none")
    shared = decoder.state_dict().keys() & encoder.state_dict().keys()
    assert {n for n in encoder.state_dict() if n.startswith(("blocks.", "project"))} <= shared


@pytest.mark.parametrize("head", ["plain", "tied"])
def test_a_head_scores_every_phrase(head, make_model, make_batch):
    model = make_model(arch="decoder", head=head)
    seen = []
    model.norm.register_forward_hook(lambda _module, _inputs, state: seen.append(state))
    out = model(make_batch([6, 1], model.config), 0)
    logits = model.scores(*seen)
    assert logits.shape == (5, len(model.table))
    assert out["phrase"].shape == (5,)
    nats = -logits.log_softmax(-1)[range(5), out["phrase"]]
    torch.testing.assert_close(out["nats"], nats.sum())
    assert out["right"] == (logits.argmax(-1) == out["phrase"]).sum()


def test_many_logits_are_made_in_chunks_of_the_same_loss_and_gradient(
    make_model, make_batch, monkeypatch
):
    def run(most):
        monkeypatch.setattr(model_module, "LOGITS", most)
        sizes = []

        def keep(tensor):
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(0)
        model = make_model(arch="decoder", head="tied").train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(make_batch([40, 30], model.config), 0)
        out["nats"].backward()
        return out, {n: p.grad for n, p in model.named_parameters()}, sizes, len(model.table)

    whole, gradient, sizes, phrases = run(1 << 24)
    parts, same, smaller, _ = run(4 * phrases)
    assert 68 * phrases in sizes
    assert 68 * phrases not in smaller
    assert parts["right"] == whole["right"]
    torch.testing.assert_close(parts["nats"], whole["nats"])
    for name, value in gradient.items():
        torch.testing.assert_close(same[name], value, msg=name)


def test_a_query_prefers_its_phrase_and_every_other_one_what_is_recent(make_model, make_batch):
    model = make_model(pooling=("attention",), pool_queries=2)
    batch = make_batch([9], model.config)
    asked = int((model.table @ model.pool_query[0]).argmax())
    batch["phrase"][0, :3] = asked
    score = model.pool_scores(batch)[0]
    same_name = score[:3]
    torch.testing.assert_close(same_name[:, 0], torch.full((3,), SHARPNESS))
    last, first = batch["minute"][0, -1], batch["minute"][0, 0]
    assert last > first
    late = RECENT * ((last - first) / 60).log1p().float()
    torch.testing.assert_close(same_name[0, 1], SHARPNESS - late)
    others = batch["phrase"][0] != asked
    assert (score[others, 0] < SHARPNESS).all()


def test_phrases_far_apart_are_taken_in_pairs():
    table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    found = far_apart(table, 3)
    assert found.tolist() == [[-1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
