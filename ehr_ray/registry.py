"""The families, by name; what a family is made of is imported when it is asked for."""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ehr_ray.config.schema import AnySchema
from ehr_ray.errors import ConfigError

if TYPE_CHECKING:
    from ehr_ray.family import AnyFamily

FAMILIES = {
    "event_transformer": "ehr_ray.families.event_transformer",
    "set_vae": "ehr_ray.families.set_vae",
    "seqset_poe": "ehr_ray.families.set_vae.sequence",
    "vitals_vae": "ehr_ray.families.vitals_vae",
    "jepa": "ehr_ray.families.jepa",
    "hcat": "ehr_ray.families.hcat",
}


def get_family(name: str) -> "AnyFamily":
    """Return the `FAMILY` record of a known name, from `family.py` of its folder."""
    family: AnyFamily = _module(name, "family").FAMILY
    return family


def get_schema(name: str) -> AnySchema:
    """Return what a config of the family is checked against; without torch, unlike the record."""
    schema: AnySchema = _module(name, "config").SCHEMA
    return schema


def _module(name: str, part: str) -> Any:
    if name not in FAMILIES:
        close = get_close_matches(name, FAMILIES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        known = ", ".join(FAMILIES)
        raise ConfigError(f"family: unknown family {name!r}; known: {known}{hint}")
    return import_module(f"{FAMILIES[name]}.{part}")
