import pytest
import torch
from torch import nn

from ehr_ray.config.sections import TrainConfig
from ehr_ray.families.vitals_vae.config import SCALES, Scale, VitalsVAEConfig
from ehr_ray.families.vitals_vae.conv import (
    Conv,
    ConvDecoder,
    ConvEncoder,
    Down,
    binned,
    fitted,
    lengths,
    stretched,
)
from ehr_ray.train.optim import make_optimizer

BRANCHES = tuple(scale.name for scale in SCALES)
LAYERS = tuple(scale.layers for scale in SCALES)


def test_branches_are_those_of_the_design():
    assert [[k for k, _ in layers] for layers in LAYERS] == [[3, 5, 5], [15, 31], [63, 127], [255]]
    assert [lengths(layers, 745) for layers in LAYERS] == [
        [745, 373, 187, 94],
        [745, 187, 47],
        [745, 94, 12],
        [745, 47],
    ]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2), (31, 4)])
def test_a_convolution_and_its_gradients_are_those_of_torch(kernel, stride):
    torch.manual_seed(0)
    ours = Conv(6, 8, kernel, stride, kernel // 2)
    theirs = nn.Conv1d(6, 8, kernel, stride, kernel // 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 6, 50, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, wanted = ours(x), theirs(y)
    torch.testing.assert_close(found, wanted)
    (found.square().sum() + wanted.square().sum()).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)


def test_kernels_of_convolutions_decay_as_those_of_torch():
    conv = Conv(6, 8, 3)
    groups = make_optimizer(conv, TrainConfig(weight_decay=0.3)).param_groups
    decays = {g["weight_decay"]: [p is conv.weight for p in g["params"]] for g in groups}
    assert decays == {0.3: [True], 0.0: [False]}


def test_channels_widen_to_those_of_the_deepest_convolution():
    encoder = ConvEncoder(VitalsVAEConfig(width=64))
    found = [
        [m.out_channels for m in branch.modules() if isinstance(m, torch.nn.Conv1d)]
        for branch in encoder.branches.values()
    ]
    assert found == [[32, 64, 64], [32, 64], [32, 64], [64]]
    assert [m.out_features for m in encoder.merge if isinstance(m, torch.nn.Linear)] == [64]


def test_branches_are_those_of_the_config():
    two = (Scale(name="short", layers=((3, 2),)), Scale(name="long", layers=((33, 8), (9, 2))))
    config = VitalsVAEConfig(first_hour=0, last_hour=95, width=8, scales=two)
    decoder = ConvDecoder(config, 4)
    assert [*ConvEncoder(config).branches] == [*decoder.branches] == ["short", "long"]
    assert decoder(torch.randn(3, 4))[1].shape == (2, 3, 96, 7)


@pytest.mark.parametrize("layers", LAYERS)
def test_convolutions_have_those_lengths(layers):
    torch.manual_seed(0)
    layer, seen = Down(layers, 4, VitalsVAEConfig(width=8)), []
    for module in layer.layers:
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_hook(lambda _m, _x, y: seen.append(y.shape[-1]))
    layer(torch.zeros(1, 4, 745))
    assert seen == lengths(layers, 745)[1:]


def test_kernels_are_cut_to_what_reaches_data():
    assert [fitted(k, 48) for k in (3, 63, 255)] == [3, 63, 95]
    assert fitted(255, 2) == 3


@pytest.mark.parametrize("hours", [2, 24, 48, 72, 96, 745])
def test_every_branch_covers_every_hour(hours):
    """No branch is constant over any range of hours, at the end or anywhere else."""
    torch.manual_seed(0)
    config = VitalsVAEConfig(first_hour=0, last_hour=hours - 1, width=8, latent=4)
    merged, branches = ConvDecoder(config, 4)(torch.randn(3, 4))
    assert merged.shape == (3, hours, 7)
    assert branches.shape == (4, 3, hours, 7)
    assert (merged.diff(dim=1).abs() > 1e-7).any(2).all()
    for curves in branches:
        assert (curves.diff(dim=1).abs() > 1e-7).any(2).all()


def test_the_last_hour_of_each_branch_is_trained():
    torch.manual_seed(0)
    config = VitalsVAEConfig(width=8, latent=4)
    decoder = ConvDecoder(config, 4)
    z = torch.randn(2, 4, requires_grad=True)
    for index in range(len(BRANCHES)):
        detail = decoder.branches[BRANCHES[index]](z)
        late = torch.autograd.grad(detail[..., 600:].sum(), z)[0]
        early = torch.autograd.grad(decoder.branches[BRANCHES[index]](z)[..., :100].sum(), z)[0]
        assert late.abs().sum() > 0
        assert not torch.allclose(late, early)


def test_pooling_keeps_when():
    """The same event at another hour gives another code, in every branch and beside them."""
    torch.manual_seed(0)
    encoder = ConvEncoder(VitalsVAEConfig(width=8, stem=8)).eval()
    x = torch.zeros(2, 21, 745)
    x[0, 0, 100:130], x[1, 0, 600:630] = 2.0, 2.0
    for branch in BRANCHES:
        early, late = encoder.branches[branch](encoder.stem(x))
        assert (early - late).abs().max() > 0.05
    early, late = encoder(x)
    assert (early - late).norm() > 0.05 * early.norm()


@pytest.mark.parametrize("function", [lambda x: binned(x, 5), lambda x: stretched(x, 31)])
def test_what_repeats_is_the_same_up_to_rounding(function, monkeypatch):
    found = []
    for repeats in (False, True):
        if repeats:
            monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
            monkeypatch.setattr(torch.Tensor, "is_cpu", False)
        x = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(0), requires_grad=True)
        out = function(x)
        out.square().sum().backward()
        found.append((out.detach(), x.grad))
    torch.testing.assert_close(*found)
