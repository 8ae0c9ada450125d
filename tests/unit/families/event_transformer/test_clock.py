import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.events.tokens import GAPS
from ehr_ray.families.event_transformer.clock import fit_clock
from ehr_ray.families.event_transformer.data import token_book

EACH = torch.linspace(0, 0.999, 100).double()


@pytest.fixture
def fitted(make_model, make_batch, vocabulary):
    """A clock by hourly records whose first two events are at once, and its book."""

    def fit(lengths=(9, 9), **changes):
        model = make_model(arch="decoder", **changes).eval()
        book = token_book(vocabulary, model.config.token_options)
        return fit_clock(model, book, [make_batch(lengths, model.config)]), book

    return fit


def test_gaps_of_a_phrase_are_those_that_records_have_within_its_range(fitted):
    clock, book = fitted(gaps="own")
    hour = torch.full((100,), book.first_gap + GAPS.index("1 to 2 hours later"))
    code = torch.zeros(100, dtype=torch.long)
    assert not clock.by_head
    assert set(clock.draw(clock.group(hour, code, None), EACH, None).tolist()) == {60.0}
    assert set(clock.draw(clock.group(code, code, None), EACH, None).tolist()) == {0.0}
    after_a_gap = clock.group(code, hour, None)
    assert set(clock.draw(after_a_gap, EACH, None).tolist()) == {0.0}


def test_a_gap_phrase_that_no_record_has_is_drawn_evenly_over_its_range(fitted):
    clock, book = fitted(gaps="own")
    days = torch.full((100,), book.first_gap + GAPS.index("1 to 2 days later"))
    drawn = clock.draw(clock.group(days, days * 0, None), EACH, None)
    assert drawn.min() == pytest.approx(1440, rel=0.02)
    assert drawn.max() == pytest.approx(2880, rel=0.02)
    assert drawn.diff().max() < 30


def test_by_the_head_gaps_are_drawn_as_often_as_records_have_them(fitted):
    clock, _ = fitted(next_time_weight=0.1, lengths=(9,) * 40)
    code = torch.zeros(100, dtype=torch.long)
    groups = len(clock.gaps)
    assert clock.by_head
    assert groups > 5
    lowest, highest = clock.edges[0] - 1, clock.edges[-1] + 1
    told = torch.stack([lowest, *(clock.edges[1:] + clock.edges[:-1]) / 2, highest])
    found = clock.group(code[:groups], code[:groups], told)
    assert found.tolist() == list(range(groups))
    drawn = torch.stack([clock.draw(found[g].expand(100), EACH, None) for g in range(groups)])
    assert set(drawn.flatten().tolist()) == {0.0, 60.0}
    assert (drawn == 60).double().mean() == pytest.approx(7 / 8, abs=0.03)  # of 8 gaps one is 0


def test_what_is_longer_than_a_time_is_drawn_from_the_rest(fitted):
    clock, _ = fitted(next_time_weight=0.1)
    group = torch.zeros(100, dtype=torch.long)
    assert clock.longer(group[:1], -1.0).item() == 1
    assert clock.longer(group[:1], 60.0).item() == 0
    assert clock.longer(group[:1] - 1, -1.0).item() == 0
    assert set(clock.gaps[0].tolist()) == {0.0}  # the others have the hours
    assert set(clock.draw(group, EACH, 30.0).tolist()) == {60.0}
    assert set(clock.draw(group, EACH, 200.0).tolist()) == {200.0}


def test_a_value_of_its_own_comes_with_its_event(fitted):
    clock, book = fitted(gaps="none", values="own", units="own", next_time_weight=0.1)
    value, code = torch.tensor([len(book.vocabulary)]), torch.tensor([0])
    assert clock.group(value, code, torch.tensor([3.0])).tolist() == [-1]
    assert clock.draw(torch.tensor([-1]), EACH[:1], None).tolist() == [0.0]


def test_records_of_one_event_are_refused(fitted):
    with pytest.raises(InputError, match="no record of tuning has two events"):
        fitted(lengths=(1, 1, 0), next_time_weight=0.1)
