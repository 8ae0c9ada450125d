import torch

from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.families.vitals_vae.lstm import LSTMDecoder, LSTMEncoder


def test_the_baseline_has_the_published_size():
    config = VitalsVAEConfig(arch="lstm")
    encoder, decoder = LSTMEncoder(config), LSTMDecoder(config, 32)
    heads = encoder.width * 64 + 64
    size = sum(p.numel() for m in (encoder, decoder) for p in m.parameters())
    assert abs(size + heads - 950_216) < 10


def test_the_baseline_sees_values_alone():
    torch.manual_seed(0)
    encoder = LSTMEncoder(VitalsVAEConfig(arch="lstm", lstm_width=4))
    seen = torch.randn(2, 21, 30)
    changed = seen.clone()
    changed[:, 7:] += 1
    assert torch.equal(encoder(seen), encoder(changed))
    changed[:, 3, 20] += 1
    assert not torch.equal(encoder(seen), encoder(changed))


def test_curves_cover_the_hours_and_there_is_no_branch():
    config = VitalsVAEConfig(arch="lstm", lstm_width=4, first_hour=0, last_hour=29)
    curves, branches = LSTMDecoder(config, 5)(torch.randn(3, 5))
    assert curves.shape == (3, 30, 7)
    assert len(branches) == 0
