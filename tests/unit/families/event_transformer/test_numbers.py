import numpy as np
import pytest
import torch

from ehr_ray.events.tokens import GAP_EDGES
from ehr_ray.families.event_transformer.data import token_book
from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.numbers import (
    Pieces,
    since_edges,
    since_last,
    value_edges,
)
from ehr_ray.families.event_transformer.sampling import lacks

BOTH = ("value", "since")


def pieces(edges):
    made = Pieces(np.array(edges, float), 4, 3)
    with torch.no_grad():
        made.of_pieces.weight.copy_(torch.eye(3)[:, : len(edges[0]) - 1])
    return made


def test_a_number_fills_the_pieces_below_it():
    made = pieces([[0, 1, 3, 5]])
    number = torch.tensor([[-1.0, 0.5, 2.0, 9.0, torch.nan]])
    phrase = torch.zeros(1, 5, dtype=torch.long)
    found = made(number, phrase, torch.ones(1, 3))
    expected = [[0, 0, 0], [0.5, 0, 0], [1, 0.5, 0], [1, 1, 1], [0, 0, 0]]
    torch.testing.assert_close(found[0], torch.tensor(expected))


def test_each_phrase_has_its_edges_and_its_map():
    made = pieces([[0, 1, 2, 3], [10, 10, 20, 30]])
    number, phrase = torch.tensor([[1.5, 15.0]]), torch.tensor([[0, 1]])
    found = made(number, phrase, torch.tensor([[1.0, 2, 3], [-1, -2, -3]]))
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 1, 0], [-1, -1, 0]]))


@pytest.mark.parametrize("values", ["merged", "own", "none"])
def test_edges_of_values_are_quantiles_of_train_of_phrases_that_have_one(
    values, make_model, vocabulary
):
    model = make_model(numbers=("value",), values=values)
    book = token_book(vocabulary, model.config.token_options)
    edges = value_edges(book, 5.0)
    code, share = book.begun
    for phrase in range(len(book)):
        if np.isfinite(share[phrase, 0]):
            at = code[phrase]
            z = (vocabulary.quantiles[at] - vocabulary.location[at]) / vocabulary.scale[at]
            np.testing.assert_allclose(edges[phrase], z.clip(-5, 5), rtol=1e-5)
        else:
            assert edges[phrase].min() > 1e8
    assert np.isfinite(share[:, 0]).any()
    assert (edges > 1e8).any()


def test_time_since_is_of_the_same_code_and_skips_what_has_none():
    code = torch.tensor([[0, 1, 0, -1, 1, -1, 0]])
    minute = torch.tensor([[0.0, 5, 60, 61, 65, 70, 60]], dtype=torch.float64)
    nan = torch.nan
    expected = torch.tensor([[nan, nan, 60, nan, 60, nan, 0]], dtype=torch.float64)
    torch.testing.assert_close(since_last(code, minute), expected, equal_nan=True)


def test_the_first_piece_of_time_says_that_there_was_one_before():
    edges = since_edges()[0]
    assert edges[0] < edges[1] == 0
    np.testing.assert_allclose(np.expm1(edges[2:]), GAP_EDGES)
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("arch", ["encoder", "decoder"])
def test_they_change_what_is_read_and_are_trained_and_padding_changes_nothing(
    arch, make_model, make_batch
):
    plain, model = make_model(arch=arch), make_model(arch=arch, numbers=BOTH)
    own = {n for n, _ in model.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert {n.split(".")[0] for n in own} == {"value_pieces", "since_pieces"}
    whole = make_batch([9, 30], model.config)
    together = FAMILY.predict(model.eval(), whole)["embedding"]
    alone = FAMILY.predict(model, make_batch([9], model.config))["embedding"]
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    model.encode(whole).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name in own:
            assert parameter.grad.abs().sum() > 0


def test_a_hidden_token_is_not_told_by_the_times_of_others(make_model, make_batch):
    model = make_model(arch="encoder", numbers=BOTH).eval()
    batch = make_batch([40], model.config)
    holes = torch.zeros_like(batch["mask"])
    holes[0, 20] = True
    other = {**batch, "phrase": batch["phrase"].clone()}
    other["phrase"][0, 20] = 0 if int(batch["phrase"][0, 20]) != 0 else 2
    torch.testing.assert_close(model.encode(batch, holes), model.encode(other, holes))


def test_a_decoder_is_told_nothing_later(make_model, make_batch):
    model = make_model(arch="decoder", numbers=BOTH).eval()
    batch = make_batch([12], model.config)
    changed = {**batch, "phrase": batch["phrase"].clone()}
    changed["phrase"][:, 8:] = 0
    before, after = model.encode(batch)[:, :8], model.encode(changed)[:, :8]
    torch.testing.assert_close(before, after)


def test_futures_are_drawn_with_values_and_refused_with_times(make_model):
    given = {"arch": "decoder", "gaps": "own"}
    assert lacks(make_model(**given, numbers=("value",)).config) is None
    assert "model.numbers=since" in lacks(make_model(**given, numbers=BOTH).config)
