import torch

from ehr_ray.families.hcat.fusion import EnhancedHCAT


def test_a_masked_token_is_never_read(make_model, make_config, batch):
    """Whatever stands in a missing token's place, predictions without imputation are the same."""
    tokens = make_model().tokens(batch)
    torch.manual_seed(0)
    fusion = EnhancedHCAT(make_config(missing="mask")).eval()
    plain = fusion(tokens, tokens.value, None)
    dirty = tokens.value + 5 * (~tokens.present).unsqueeze(-1)
    torch.testing.assert_close(fusion(tokens, dirty, None).logit, plain.logit)
    assert not plain.weight[~tokens.present].any()


def test_nobody_with_no_modality_breaks_it(make_model, make_config, batch):
    tokens = make_model().tokens(batch).only(torch.zeros(4, 5, dtype=torch.bool))
    fusion = EnhancedHCAT(make_config(missing="mask")).eval()
    assert torch.isfinite(fusion(tokens, tokens.value, None).logit).all()


def test_an_uncertain_imputation_counts_less_and_a_present_token_does_not(
    make_model, make_config, batch
):
    tokens = make_model().tokens(batch)
    fusion = EnhancedHCAT(make_config()).eval()
    sure = fusion(tokens, tokens.value, torch.full((4, 5), -4.0)).weight
    unsure = fusion(tokens, tokens.value, torch.full((4, 5), 3.0)).weight
    assert torch.equal(sure[tokens.present], unsure[tokens.present])
    assert (unsure < sure)[~tokens.present].all()


def test_without_a_gate_all_present_tokens_weigh_one(make_model, make_config, batch):
    tokens = make_model().tokens(batch)
    fusion = EnhancedHCAT(make_config(gate=False, missing="mask"))
    assert fusion.gate is None
    weight = fusion(tokens, tokens.value, None).weight
    assert torch.equal(weight, tokens.present.float())


def test_the_linear_path_starts_at_nothing_and_reads_its_modalities_alone(make_config):
    fusion = EnhancedHCAT(make_config(linear_modalities=("clinical", "spatial")))
    assert fusion.linear.weight.shape == (2, 1024)
    assert not fusion.linear.weight.any()
    assert EnhancedHCAT(make_config(linear=False)).linear is None
