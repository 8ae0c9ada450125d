import threading

import pytest

from ehr_ray.train.ahead import made_ahead


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def items(count, seen=None):
    for number in range(count):
        if seen is not None:
            seen.append(number)
        yield number


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_what_is_made_comes_in_the_order_of_the_items(threads):
    assert list(made_ahead(lambda x: x * x, items(20), threads)) == [x * x for x in range(20)]
    assert list(made_ahead(lambda x: x, items(0), threads)) == []
    assert loader_threads() == []


def test_two_threads_make_two_items_at_once():
    second = threading.Event()

    def make(number):
        if number == 0:  # made once another thread has made the next one
            assert second.wait(60)
        if number == 1:
            second.set()
        return number

    assert list(made_ahead(make, items(4), 2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_a_few_are_made_ahead_and_closing_ends_the_threads_and_the_items(threads):
    seen = []
    source = items(100, seen)
    made = made_ahead(lambda x: x, source, threads)
    assert next(made) == 0
    assert len(loader_threads()) == threads
    made.close()
    assert loader_threads() == []
    assert len(seen) <= 2 * threads + 3
    with pytest.raises(StopIteration):
        next(source)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["make", "items"])
def test_an_error_is_raised_in_the_place_of_its_item(threads, where):
    def odd(number):
        if number == 2:
            raise ValueError("row 2 is odd")
        return number

    source = items(9) if where == "make" else (odd(n) for n in range(9))
    made = made_ahead(odd if where == "make" else (lambda x: x), source, threads)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ValueError, match="row 2 is odd"):
        next(made)
    assert loader_threads() == []
