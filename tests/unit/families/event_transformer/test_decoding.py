import pytest
import torch

from ehr_ray.families.event_transformer.decoding import Continuation
from ehr_ray.nn.transformer import Block, rotary_turns

WIDTH, HEADS, BEGUN, MORE, NUMBER = 8, 2, 5, 70, 3


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return [Block(WIDTH, HEADS, 0.0).eval() for _ in range(2)]


@pytest.fixture
def tokens():
    """Three continuations of one beginning, longer than a cache is at first."""
    torch.manual_seed(1)
    begun, more = torch.randn(1, BEGUN, WIDTH), torch.randn(NUMBER, MORE, WIDTH)
    return torch.cat([begun.expand(NUMBER, -1, -1), more], 1)


def at_once(blocks, hidden, turns):
    for block in blocks:
        hidden = block(hidden, None, True, turns)
    return hidden


@torch.no_grad()
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_token_by_token_is_as_all_at_once(blocks, tokens, rotary, shared):
    turns = rotary_turns(BEGUN + MORE, WIDTH // HEADS, tokens.device) if rotary else None
    wanted = at_once(blocks, tokens, turns)
    going = Continuation(blocks)
    begun = tokens[: 1 if shared else NUMBER, :BEGUN]
    read = going.read(begun, None if turns is None else turns[:BEGUN])
    torch.testing.assert_close(read[0], wanted[0, :BEGUN], rtol=1e-4, atol=1e-5)
    rows = torch.arange(NUMBER)
    for at in range(BEGUN, BEGUN + MORE):
        if at == 40:
            rows = torch.tensor([2, 0])
            going.keep(rows)
        one = going.follow(tokens[rows, at : at + 1], None if turns is None else turns[at : at + 1])
        torch.testing.assert_close(one[:, 0], wanted[rows, at], rtol=1e-4, atol=1e-5)
