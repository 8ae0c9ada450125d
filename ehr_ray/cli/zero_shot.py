"""The options of `evaluate --zero-shot`, which ask something only together."""

from typing import TYPE_CHECKING

from ehr_ray.cli.parser import Arguments, Parser, number
from ehr_ray.errors import InputError

if TYPE_CHECKING:
    from ehr_ray.events.zero_shot import ZeroShot

_OPTIONS = {"horizon": "hours", "from_hour": "from_hour", "draws": "draws", "max_events": "events"}
"""Options beside `--zero-shot`, and what they are in the question."""


def add_zero_shot(parser: Parser) -> None:
    """Add `--zero-shot` and what belongs to it."""
    group = parser.add_argument_group("futures that the model draws, of a decoder")
    group.add_argument(
        "--zero-shot",
        metavar="CODE",
        help="how likely a code is, or one that begins with it before a slash: the share of the "
        "futures in which it occurs",
    )
    group.add_argument("--horizon", type=number, metavar="HOURS", help="within so many hours")
    group.add_argument(
        "--from-hour",
        type=number,
        metavar="HOURS",
        help="after the origin, where each future begins (default: at the task's prediction times)",
    )
    group.add_argument(
        "--draws", type=int, metavar="N", help="futures of each prediction (default 100)"
    )
    group.add_argument(
        "--max-events", type=int, metavar="N", help="of a future, which is then cut (default 1000)"
    )


def zero_shot_of(args: Arguments) -> "ZeroShot | None":
    """Return what is asked; None without `--zero-shot`. InputError for half of a question."""
    given = {name: getattr(args, name) for name in _OPTIONS if getattr(args, name) is not None}
    if args.zero_shot is None:
        for name in given:
            raise InputError(
                f"--{name.replace('_', '-')} {given[name]:g}: nothing is drawn; --zero-shot CODE"
            )
        return None
    if "horizon" not in given:
        raise InputError(f"--zero-shot {args.zero_shot}: within how many hours? --horizon HOURS")
    from ehr_ray.events.zero_shot import ZeroShot

    return ZeroShot(code=args.zero_shot, **{_OPTIONS[name]: value for name, value in given.items()})
