import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.source import SOURCES, Source, Unit, get_source, make_options, options_of


@dataclass(frozen=True)
class Options:
    size: int = field(default=3, metadata={"help": "how many"})
    share_ratio: float | None = field(default=None, metadata={"help": "which share"})
    labels: Path | None = field(default=None, metadata={"help": "a file"})
    unit: Literal["a", "b"] = field(default="a", metadata={"help": "which unit"})


SOURCE = Source(name="made", description="", options=Options, units=None, read=None)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_complete_and_travels(name):
    source = get_source(name)
    assert source.name == name
    assert source.description
    assert all(option.help for option in options_of(source))
    options = make_options(source, {})
    assert pickle.loads(pickle.dumps(options)) == options
    assert isinstance(source.relative_time(options), bool)


def test_a_flag_of_two_sources_means_the_same_in_both():
    types = {}
    for name in SOURCES:
        for option in options_of(get_source(name)):
            assert types.setdefault(option.flag, option.type) is option.type


def test_options_become_flags_with_their_types():
    flags = [(o.flag, o.type, o.choices, o.default) for o in options_of(SOURCE)]
    assert flags == [
        ("--size", int, (), 3),
        ("--share-ratio", float, (), None),
        ("--labels", Path, (), None),
        ("--unit", str, ("a", "b"), "a"),
    ]


def test_text_is_converted_and_none_is_the_default():
    options = make_options(
        SOURCE, {"size": "7", "share-ratio": "0.5", "labels": "x.csv", "unit": None}
    )
    assert options == Options(7, 0.5, Path("x.csv"), "a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "x"}, "--size x: not a whole number"),
        ({"share_ratio": "x"}, "--share-ratio x: not a number"),
        ({"unit": "c"}, "--unit c: choose from a, b"),
        ({"sizes": 1}, "--sizes: no option of --source made; it has --size, --share-ratio"),
    ],
)
def test_bad_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        make_options(SOURCE, given)


def test_a_unit_is_small_and_pickles():
    unit = Unit("root", tuple(f"{i}.parquet" for i in range(2000)))
    assert len(pickle.dumps(unit)) < 50_000
    assert pickle.loads(pickle.dumps(unit)) == unit
