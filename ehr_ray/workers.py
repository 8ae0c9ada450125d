"""How many workers a config asks for: a number, or a range of them."""

from typing import Annotated, Any

from pydantic import PlainValidator


def parse_workers(value: Any) -> int | tuple[int, int]:
    """Return a number of workers, or the least and the most; ValueError for anything else."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair):
        raise ValueError("must be a whole number, as in 4, or [least, most], as in [1, 4]")
    least, most = pair
    if least < 0:
        raise ValueError("must not be negative")
    if pair is not value:
        return least
    if least == 0:
        raise ValueError("a range starts at 1; 0 alone trains without Ray")
    if most < least:
        raise ValueError("the first number of [least, most] is above the second")
    return least, most


Workers = Annotated[int | tuple[int, int], PlainValidator(parse_workers)]
"""Type of a config's field."""
