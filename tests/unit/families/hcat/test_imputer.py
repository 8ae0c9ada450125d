from itertools import pairwise

import pytest
import torch

from ehr_ray.families.hcat.imputer import AdvancedIterativeImputer, LinearImputer, MultiModalVAE

KEY = torch.zeros(4, dtype=torch.int64)


@pytest.fixture
def seen(make_model, batch):
    return make_model().tokens(batch)


@pytest.mark.parametrize("joint", ["poe", "attention"])
def test_present_tokens_stay_and_missing_ones_are_filled(make_config, seen, joint):
    torch.manual_seed(0)
    imputer = AdvancedIterativeImputer(make_config(joint=joint)).eval()
    filled = imputer(seen, KEY)
    assert len(filled.steps) == 4
    for value, logvar in filled.steps:
        assert torch.equal(value[seen.present], seen.value[seen.present])
        assert torch.isfinite(logvar).all()
    assert filled.value[~seen.present].abs().max() > 0
    changes = [(a - b).abs().max() for (a, _), (b, _) in pairwise(filled.steps)]
    assert min(changes) > 0


def test_the_joint_latent_of_nothing_is_the_prior(make_config, seen):
    nothing = seen.only(torch.zeros(4, 5, dtype=torch.bool))
    mu, logvar, recon, _ = MultiModalVAE(make_config()).eval()(nothing, KEY)
    torch.testing.assert_close(mu, torch.zeros_like(mu))
    torch.testing.assert_close(logvar, torch.zeros_like(logvar))
    assert torch.isfinite(recon).all()


def test_experts_make_the_latent_surer_and_a_missing_one_says_nothing(make_config, seen):
    torch.manual_seed(0)
    vae = MultiModalVAE(make_config()).eval()
    _, all_sure, _, _ = vae(seen, KEY)
    less = torch.ones(4, 5, dtype=torch.bool)
    less[:, 2] = False
    _, fewer, _, _ = vae(seen.only(less), KEY)
    assert (all_sure.sum(1) < fewer.sum(1)).all()
    noisy = seen.only(less)
    noisy.value[:, 2] = 9.0  # what stands in the place of a missing token must not matter
    again = vae(noisy.only(less), KEY)[0]
    torch.testing.assert_close(again, vae(seen.only(less), KEY)[0])


def test_evaluation_takes_the_mean_and_training_samples_by_key(make_config, seen):
    imputer = AdvancedIterativeImputer(make_config())
    first = imputer.train()(seen, KEY + 1).value
    other = imputer(seen, KEY + 2).value
    again = imputer(seen, KEY + 1).value
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0
    imputer.eval()
    assert torch.equal(imputer(seen, KEY + 1).value, imputer(seen, KEY + 2).value)


def test_the_linear_imputation_finds_what_is_linear_and_leaves_the_rest_alone():
    """Modality 1 is a turn of modality 0; modality 2 is noise; 3 is told by nobody and rare."""
    torch.manual_seed(0)
    told = torch.randn(200, 4) @ torch.randn(4, 512) / 2
    turn = torch.linalg.qr(torch.randn(512, 512))[0]
    value = torch.stack([told, told @ turn, *(torch.randn(200, 512) for _ in range(3))], 1)
    present = torch.ones(200, 5, dtype=torch.bool)
    present[10:, 3] = False
    value = value * present.unsqueeze(-1)
    base = LinearImputer()
    base.fit(value[:150], present[:150])
    other = value[150:].clone()
    other[:, 1] = 0
    error = (base(other)[:, 1] - value[150:, 1]).square().mean()
    assert error < 0.2 * value[150:, 1].square().mean()
    noise = base(value[150:])
    assert noise[:, 2].square().mean() < 0.1
    assert not noise[:, 3].any()


def test_the_linear_imputation_is_not_rounded_by_autocast():
    torch.manual_seed(0)
    imputer, value = LinearImputer(), torch.randn(3, 5, 512)
    for matrix in (imputer.read, imputer.write):
        matrix.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        found = imputer(value)
    assert torch.equal(found, imputer(value))


def test_a_token_is_never_told_by_itself():
    torch.manual_seed(0)
    value, present = torch.randn(40, 5, 512), torch.ones(40, 5, dtype=torch.bool)
    base = LinearImputer()
    base.fit(value, present)
    for place in range(5):
        assert not base.read[place, place * 512 : (place + 1) * 512].any()


def test_a_sure_refinement_leaves_less_doubt_and_an_unsure_one_does_not(make_config, seen):
    imputer = AdvancedIterativeImputer(make_config()).eval()
    falls = []
    for sure in (9.0, -9.0):
        for head in imputer.confidence:
            head.weight.data.zero_()
            head.bias.data.fill_(sure)
        logvar = [doubt for _, doubt in imputer(seen, KEY).steps]
        falls.append([(a - b).min().item() for a, b in pairwise(logvar)])
    assert min(falls[0]) > 0.3
    assert max(falls[1]) < 0
