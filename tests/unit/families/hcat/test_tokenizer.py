import pytest
import torch

from ehr_ray.families.hcat.tokenizer import Tokenizer


def test_a_modality_without_events_is_missing_and_the_rest_is_not(make_config, vocabulary, batch):
    tokens = Tokenizer(make_config(), vocabulary)(batch)
    assert tokens.value.shape == (4, 5, 512)
    expected = torch.ones(4, 5, dtype=torch.bool)
    expected[2, 1] = expected[3, 3] = expected[3, 4] = False
    assert torch.equal(tokens.present, expected)
    assert not tokens.value[~expected].any()
    assert not tokens.quality[~expected].any()
    assert tokens.value[expected].square().mean(-1).min() > 0.05


def test_quality_is_the_share_of_columns_observed(make_config, vocabulary, batch):
    keep = ~((batch["row"] == 0) & (batch["code"] == vocabulary.codes.index("BLOOD//0")))
    part = {k: v[keep] if k in ("row", "code", "value") else v for k, v in batch.items()}
    tokens = Tokenizer(make_config(), vocabulary)(part)
    assert tokens.quality[0, 1] == 0.75
    assert tokens.quality[1, 1] == 1


def test_repeats_of_a_code_are_averaged_and_leave_their_spread(make_config, vocabulary, batch):
    tokenizer = Tokenizer(make_config(), vocabulary)
    code = vocabulary.codes.index("TMA//HE//0")
    first = (batch["code"] == code) & (batch["row"] == 0)
    twice = {
        **batch,
        "row": torch.cat([batch["row"], torch.tensor([0])]),
        "code": torch.cat([batch["code"], torch.tensor([code])]),
        "value": torch.cat([batch["value"], batch["value"][first] + 2]),
    }
    mean, count, variance = tokenizer.columns(twice)
    assert count[0, code] == 2
    torch.testing.assert_close(mean[0, code], batch["value"][first][0] + 1)
    torch.testing.assert_close(variance[0, code], torch.tensor(1.0))
    assert tokenizer(twice).spread[0, 4].item() == pytest.approx(1)
    assert tokenizer(batch).spread[0, 4] == 0


def test_tokens_are_not_rounded_by_autocast(make_config, vocabulary, batch):
    tokenizer = Tokenizer(make_config(), vocabulary)
    with torch.autocast("cpu", torch.bfloat16):
        found = tokenizer(batch)
    assert torch.equal(found.value, tokenizer(batch).value)


def test_hiding_a_modality_leaves_nothing_of_it(make_config, vocabulary, batch):
    tokens = Tokenizer(make_config(), vocabulary)(batch)
    visible = torch.ones(4, 5, dtype=torch.bool)
    visible[:, 0] = False
    kept = tokens.only(visible)
    assert not kept.present[:, 0].any()
    assert not kept.value[:, 0].any()
    assert torch.equal(kept.value[:, 2], tokens.value[:, 2])
