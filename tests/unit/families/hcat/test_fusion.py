from dataclasses import replace

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


def test_the_gate_weighs_each_token_by_the_quality_of_its_modality(make_model, make_config, batch):
    tokens = make_model().tokens(batch)
    torch.manual_seed(0)
    fusion = EnhancedHCAT(make_config(missing="mask")).eval()
    poor = replace(tokens, quality=tokens.quality - 2.0 * tokens.present)
    found, other = (fusion(seen, seen.value, None).weight for seen in (tokens, poor))
    there = tokens.present
    assert ((found[there] > 0) & (found[there] < 1)).all()
    assert (found - other)[there].abs().min() > 1e-4


def heard(fusion, seen, value):
    """What each part of the fusion is given and gives: name to (input, output)."""
    found, hooks = {}, []
    for name in ("temporal", "spatial", "semantic", "cross"):
        keep = lambda _, given, out, name=name: found.update({name: (given[0], out)})  # noqa: E731
        hooks.append(getattr(fusion, name).register_forward_hook(keep))
    fusion(seen, value, torch.zeros(seen.present.shape))
    for hook in hooks:
        hook.remove()
    return found


def test_branches_hear_their_own_modalities_and_are_fused_to_three_vectors(
    make_model, make_config, batch
):
    tokens = make_model().tokens(batch)
    torch.manual_seed(0)
    fusion = EnhancedHCAT(make_config()).eval()
    before = heard(fusion, tokens, tokens.value)
    assert [len(before[name][0][0]) for name in ("temporal", "spatial", "cross")] == [2, 2, 3]
    branch = {0: "temporal", 1: "temporal", 2: "spatial", 3: "semantic", 4: "spatial"}
    for place, own in branch.items():
        value = tokens.value.clone()
        value[:, place] += 1.0
        after = heard(fusion, tokens, value)
        moved = {n for n in before if not torch.equal(before[n][1], after[n][1])}
        assert moved == {own, "cross"}


def test_a_token_says_which_modality_it_is(make_model, make_config, batch):
    tokens = make_model().tokens(batch)
    fusion = EnhancedHCAT(make_config(gate=False)).eval()
    with torch.no_grad():
        fusion.doubt.fill_(-99.0)  # imputations are believed
        for layer in fusion.project:
            layer.bias.zero_()
    given, _ = heard(fusion, tokens, torch.zeros_like(tokens.value))["temporal"]
    torch.testing.assert_close(given, fusion.modality[:2].expand_as(given))
