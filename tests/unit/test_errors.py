import pickle

import pytest

from ehr_ray.errors import (
    ConfigError,
    DamagedRowsError,
    InputError,
    LeaseHeldError,
    ResourcesUnavailableError,
    RunError,
    StoreUnavailableError,
    UserError,
    error_of_kind,
    one_line,
)


@pytest.mark.parametrize(
    "kind",
    [
        UserError,
        ConfigError,
        InputError,
        DamagedRowsError,
        RunError,
        ResourcesUnavailableError,
        StoreUnavailableError,
        LeaseHeldError,
    ],
)
def test_an_error_of_another_process_is_the_same_error_here(kind):
    error = error_of_kind(kind.__name__, "a: why;\n  do this")
    assert type(error) is kind
    assert str(error) == "a: why; do this"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_of_an_unknown_kind_is_that_of_a_run():
    assert type(error_of_kind("KeyError", "x")) is RunError


def test_lines_are_joined_and_the_spaces_of_a_path_stay():
    assert one_line("a  b/run: gone;\n\n   why\tso \n") == "a  b/run: gone; why\tso"
