import numpy as np
import pytest
import torch

from ehr_ray.events.patients import Patient
from ehr_ray.events.tokens import GAPS
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.sampling import Sampler, lacks
from ehr_ray.family import Horizon

MINUTE = 60_000_000
A, B, C = range(3)
CYCLE = Vocabulary(("A", "B", "C"), np.ones(3, np.int64), np.zeros(3), np.ones(3))
AFTER_A, AFTER_B = 90, 300
"""Minutes from A to B, which is "1 to 2 hours later", and back, "4 to 8 hours later"."""


def cycling(length, subject=1, offset=0):
    """A, B, A, B ... with their gaps, the first at `offset`."""
    gaps = [(AFTER_A, AFTER_B)[i % 2] for i in range(length - 1)]
    time = (offset + np.cumsum([0, *gaps])) * MINUTE
    code = np.array([(A, B)[i % 2] for i in range(length)], np.int32)
    return Patient(subject, 0, time.astype(np.int64), code, np.full(length, np.nan, np.float32))


def batch_of(config, vocabulary, *patients):
    return FAMILY.collate([FAMILY.transform(p, config, vocabulary) for p in patients], config)


@torch.no_grad()
def certain(**changes):
    """A decoder that is sure of B after A, and of A after B, and when; with what it draws by."""
    config = EventTransformerConfig(
        arch="decoder",
        text_model="hashing",
        embedding_dim=64,
        model_dim=64,
        n_heads=2,
        n_layers=2,
        dropout=0.0,
        values="none",
        value_channel=False,
        positions=("rotary",),
        **changes,
    )
    model = FAMILY.build(config, CYCLE).eval()
    for block in model.blocks:  # a state is the phrase itself
        for layer in (block.out, block.feed[2]):
            layer.weight.zero_()
            layer.bias.zero_()
    model.table.copy_(torch.eye(64)[: len(model.table)])
    model.project.weight.copy_(10 * torch.eye(64))
    model.project.bias.zero_()
    model.score.weight.zero_()
    model.score.bias.fill_(-1e3)
    steps = {A: B, B: A}
    if config.gaps == "own":
        first, later = (
            model.first_gap + GAPS.index("1 to 2 hours later"),
            GAPS.index("4 to 8 hours later"),
        )
        steps = {A: first, first: B, B: model.first_gap + later, model.first_gap + later: A}
    for before, after in steps.items():
        model.score.weight[after, before] = 1e3
    if config.gaps == "merged":
        model.project_gap.weight.zero_()
    if config.next_time_weight:
        model.next_time.weight.zero_()
        model.next_time.weight[0, A] = 1.0
    records = batch_of(config, CYCLE, *(cycling(9, subject) for subject in range(1, 5)))
    return model, Sampler(model, CYCLE, [records])


def horizon(start, hours, *ends, events=100, codes=3):
    there = np.zeros(codes, bool)
    there[list(ends)] = True
    return Horizon(start=start, end=start + 60 * hours, codes=there, events=events)


WAYS = [
    {"gaps": "own"},
    {"gaps": "merged", "next_time_weight": 0.1},
    {"gaps": "none", "next_time_weight": 0.1},
    {"gaps": "own", "next_time_weight": 0.1, "max_length": 6},  # reads anew, time and again
]


@pytest.mark.parametrize("changes", WAYS, ids=str)
def test_what_is_certain_is_drawn_each_time_at_the_right_minutes(changes):
    model, sampler = certain(**changes)
    patient = cycling(5, 9, offset=7)
    batch, last = batch_of(model.config, CYCLE, patient), int(patient.minute[-1])
    found = sampler(batch, horizon(last, 30), torch.arange(20), 0)
    minutes = last + np.cumsum([AFTER_A, AFTER_B] * 10)
    minutes = minutes[minutes <= last + 30 * 60]
    assert found["minute"].tolist() == [minutes.tolist()] * 20
    assert found["code"].tolist() == [[(B, A)[i % 2] for i in range(len(minutes))]] * 20
    assert not found["cut"].any()


def test_a_future_ends_at_a_code_that_ends_it_at_its_horizon_or_where_it_is_cut():
    model, sampler = certain(gaps="own")
    patient = cycling(5, 9)
    batch, last = batch_of(model.config, CYCLE, patient), float(patient.minute[-1])
    draws = torch.arange(3)
    at_a = sampler(batch, horizon(last, 100, A), draws, 0)
    assert at_a["code"].tolist() == [[B, A]] * 3
    before_b = sampler(batch, horizon(last, 1), draws, 0)
    assert before_b["code"].shape == (3, 0)
    cut = sampler(batch, horizon(last, 100, events=4), draws, 0)
    assert cut["code"].tolist() == [[B, A, B, A]] * 3
    assert cut["cut"].tolist() == [True] * 3
    assert not at_a["cut"].any()
    assert not before_b["cut"].any()


@pytest.mark.parametrize("changes", WAYS[:3], ids=str)
def test_no_event_comes_in_the_time_until_the_prediction_which_is_known(changes):
    """An hour has passed since A, and B, which comes after 90 minutes, is still to come."""
    model, sampler = certain(**changes)
    patient = cycling(5, 9)
    batch, last = batch_of(model.config, CYCLE, patient), float(patient.minute[-1])
    found = sampler(batch, horizon(last + 60, 1), torch.arange(3), 0)
    assert found["minute"].tolist() == [[last + AFTER_A]] * 3
    assert found["code"].tolist() == [[B]] * 3


DRAWS = 4000
CHI_SQUARE = 13.82
"""99.9 % quantile of the chi-square distribution with 2 degrees of freedom."""


@pytest.fixture(scope="module")
def spread(vocabulary, make_patient):
    """An untrained decoder of three codes, sharp enough to differ from even odds."""
    torch.manual_seed(3)
    config = EventTransformerConfig(
        arch="decoder",
        text_model="hashing",
        embedding_dim=16,
        model_dim=16,
        n_heads=2,
        n_layers=2,
        dropout=0.0,
        values="none",
        value_channel=False,
        positions=("rotary", "time"),
        next_time_weight=0.1,
    )
    model = FAMILY.build(config, vocabulary).eval()
    with torch.no_grad():
        model.score.weight.mul_(1.5)
        model.score.weight[model.first_gap :] = 0
        model.score.bias[model.first_gap :] = -1e3  # phrases that no token is
    hourly = [make_patient(30, subject, subject) for subject in range(1, 9)]
    return model, Sampler(model, vocabulary, [batch_of(config, vocabulary, *hourly)])


def odds(model, vocabulary, patient):
    """What the model itself says comes next."""
    batch = batch_of(model.config, vocabulary, patient)
    with torch.no_grad():
        state = model.norm(model.encode(batch)[:, -1])
        return model.scores(state).softmax(-1)[0, : len(vocabulary)].numpy()


def chi_square(codes, expected):
    count = np.bincount(codes, minlength=len(expected))
    wanted = expected * count.sum()
    return float(((count - wanted) ** 2 / wanted).sum())


def test_events_are_as_frequent_as_the_model_says_and_so_are_those_after_them(
    spread, vocabulary, make_patient
):
    model, sampler = spread
    patient = make_patient(12, 40, 40)
    last = float(patient.minute[-1])
    batch = batch_of(model.config, vocabulary, patient)
    found = sampler(batch, horizon(last, 2.5), torch.arange(DRAWS), 1)
    assert set(found["minute"][:, :2].flatten().tolist()) <= {last + 60, last + 120, 0.0}
    expected = odds(model, vocabulary, patient)
    assert expected.max() - expected.min() > 0.1
    assert chi_square(found["code"][:, 0].numpy(), expected) < CHI_SQUARE
    for first in range(len(vocabulary)):
        rows = (found["code"][:, 0] == first) & (found["minute"][:, 1] == last + 120)
        longer = Patient(
            40,
            0,
            np.append(patient.time, patient.time[-1] + 60 * MINUTE),
            np.append(patient.code, np.int32(first)),
            np.append(patient.value, np.float32(np.nan)),
        )
        after = odds(model, vocabulary, longer)
        assert rows.sum() > 100
        assert chi_square(found["code"][rows, 1].numpy(), after) < CHI_SQUARE
        assert chi_square(found["code"][rows, 1].numpy(), after[[1, 2, 0]]) > CHI_SQUARE


def events_of(found):
    there = (found["code"] >= 0).sum(1).tolist()
    pairs = zip(found["code"].tolist(), found["minute"].tolist(), there, strict=True)
    return [list(zip(code[:n], minute[:n], strict=True)) for code, minute, n in pairs]


@pytest.mark.parametrize(
    "changes",
    [
        {"next_time_weight": 0.1},
        {"next_time_weight": 0.1, "max_length": 10},
        {"gaps": "own", "values": "own", "units": "own", "head": "tied"},
    ],
    ids=str,
)
def test_a_draw_is_a_function_of_subject_number_and_seed_alone(
    changes, make_model, make_batch, vocabulary
):
    model = make_model(arch="decoder", **changes).eval()
    sampler = Sampler(model, vocabulary, [make_batch([20, 25, 30], model.config, first=50)])
    batch = make_batch([14], model.config)
    ask = horizon(13 * 60, 200_000, events=8)
    many = events_of(sampler(batch, ask, torch.arange(12), 5))
    assert len({str(one) for one in many}) > 3
    assert events_of(sampler(batch, ask, torch.arange(5, 10), 5)) == many[5:10]
    assert events_of(sampler(batch, ask, torch.arange(12), 6)) != many
    other = {**batch, "subject_id": batch["subject_id"] + 1}
    assert events_of(sampler(other, ask, torch.arange(12), 5)) != many


def test_values_of_drawn_events_are_those_of_their_bin(make_model, make_batch, vocabulary):
    model = make_model(arch="decoder", next_time_weight=0.1)
    sampler = Sampler(model, vocabulary, [make_batch([20], model.config)])
    texts = model.first_gap
    values = sampler.values[:texts]
    levels = values[3:8]  # HR from very low to very high
    assert (levels.diff(dim=0) >= 0).all()
    assert levels[0].max() < levels[4].min()
    assert (values[:3] == 0).all()  # HR, Lactate and RASH without a value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "encoder"}, "model.arch=encoder tells no next event"),
        ({"arch": "decoder", "head": "none"}, "model.head=none tells no next event"),
        ({"arch": "decoder", "gaps": "none"}, "model.gaps=none without model.next_time_weight"),
        ({"arch": "decoder"}, "model.gaps=merged without model.next_time_weight"),
        (
            {"arch": "decoder", "next_event_weight": 0.0, "next_time_weight": 0.1},
            "model.next_event_weight=0 learned no next event",
        ),
    ],
)
def test_a_model_that_tells_no_event_or_no_time_is_named(changes, said):
    assert lacks(EventTransformerConfig(text_model="hashing", **changes)).startswith(said)


def test_a_record_without_events_is_refused(make_model, make_batch, vocabulary):
    model = make_model(arch="decoder", next_time_weight=0.1)
    sampler = Sampler(model, vocabulary, [make_batch([20], model.config)])
    with pytest.raises(ValueError, match="at least one event"):
        sampler(make_batch([0], model.config), horizon(0, 1), torch.arange(2), 0)
