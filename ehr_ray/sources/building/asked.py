"""What an ingest is asked for, checked: the plan of it, and the units of its input."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from ehr_ray.errors import InputError
from ehr_ray.events.code_map import load_code_map
from ehr_ray.events.schema import parse_origin
from ehr_ray.sources.building.limits import load_limits
from ehr_ray.sources.building.staging import Plan, Repeats, Unlisted
from ehr_ray.sources.parsing.databases import SUFFIX as DATABASE
from ehr_ray.sources.parsing.databases import is_address, to_address
from ehr_ray.sources.source import Source, Unit
from ehr_ray.sources.splits import SplitPolicy, parse_splits
from ehr_ray.storage import sync
from ehr_ray.storage.paths import local


@dataclass(frozen=True)
class Asked:
    """What `ingest` is asked for beside its source; `units` are its conversions."""

    splits: str | None
    seed: int
    origin: str | None
    ranges: str | None
    units: str | None
    repeats: str
    code_map: str | None
    split_by: str | None
    unlisted: str
    max_rejected: float

    def plan(self, kind: Source, chosen: Any) -> Plan:
        """Return the plan of it, whose staging folder is not known yet; InputError as `ingest`."""
        policy = parse_splits(self.splits, self.seed)
        if self.origin is not None and kind.relative_time(chosen):
            raise InputError(
                f"--origin {self.origin}: times of this input count from the admission already"
            )
        if not 0 <= self.max_rejected <= 1:
            raise InputError(f"--max-rejected {self.max_rejected}: not a share between 0 and 1")
        if self.repeats not in get_args(Repeats):
            known = ", ".join(get_args(Repeats))
            raise InputError(f"--repeats {self.repeats}: choose from {known}")
        if self.unlisted not in get_args(Unlisted):
            known = ", ".join(get_args(Unlisted))
            raise InputError(f"--unlisted {self.unlisted}: choose from {known}")
        if self.unlisted == "drop" and policy.file is None:
            raise InputError("--unlisted drop: nobody is left out without a table as --splits FILE")
        if self.split_by is not None:
            policy = _by_groups(policy, self.splits, self.split_by)
        return Plan(
            kind.name,
            chosen,
            policy,
            Path(),
            kind.origin if self.origin is None else parse_origin(self.origin, "--origin"),
            load_limits(self.ranges or kind.limits[0], self.units or kind.limits[1]),
            cast(Repeats, self.repeats),
            None if self.code_map is None else load_code_map(self.code_map),
            self.split_by,
            unlisted=cast(Unlisted, self.unlisted),
        )


def _by_groups(policy: SplitPolicy, splits: str | None, code: str) -> SplitPolicy:
    """Return the policy of `--split-by`: shares of whole groups, whatever the source says."""
    if not code.strip("/ "):
        raise InputError("--split-by: no code; name a static one, such as HOSPITAL")
    if policy.file is not None:
        raise InputError(f"--split-by {code}: --splits {splits} divides already; give one of them")
    return replace(policy, keep_source=False)


def treatment(plan: Plan) -> tuple[str, ...]:
    """Return what decides the bytes beside source and options; what was not asked adds nothing."""
    # So a cohort that was made before there was such an option is still known as the same.
    more = {"code_map": plan.code_map and plan.code_map.digest, "split_by": plan.split_by}
    more |= {"unlisted": plan.unlisted if plan.unlisted == "drop" else None}
    asked = (f"{key}={value}" for key, value in more.items() if value)
    return (plan.limits.digest, plan.repeats, *asked)


def units_of(
    source: Source, given: str | Path | None, options: Any
) -> tuple[str | Path, list[Unit]]:
    """Return (the input here, or the address of a database; the units of it)."""
    if given is not None and not source.needs_input:
        raise InputError(
            f"--input {given}: --source {source.name} makes its own patients; drop --input"
        )
    if given is not None:
        if not is_address(given):
            database = local(given).suffix == DATABASE
            given = sync.fetch(given) if database else sync.outline(given)
        if (address := to_address(given)) is not None:
            if source.database_units is None:
                raise InputError(
                    f"--input {address}: --source {source.name} reads no database; give files"
                )
            return address, source.database_units(address, options)
        given = Path(given)
    path = _existing(given, source.name, source.needs_input)
    return path, source.units(path, options)


def _existing(path: Path | None, source: str, needed: bool) -> Path:
    if path is None:
        if needed:
            raise InputError(f"--source {source} reads files: say where by --input PATH")
        return Path()
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder; check the path")
    return path.absolute()
