"""The families, by name; a family's module is imported when it is asked for."""

from importlib import import_module

from ehr_ray.errors import ConfigError
from ehr_ray.family import AnyFamily

FAMILIES = {
    "event_transformer": "ehr_ray.families.event_transformer",
    "set_vae": "ehr_ray.families.set_vae",
    "seqset_poe": "ehr_ray.families.set_vae.sequence",
    "vitals_vae": "ehr_ray.families.vitals_vae",
    "jepa": "ehr_ray.families.jepa",
    "hcat": "ehr_ray.families.hcat",
}


def get_family(name: str) -> AnyFamily:
    """Return the `FAMILY` record of a known name."""
    if name not in FAMILIES:
        raise ConfigError(f"family: unknown family {name!r}; known: {', '.join(FAMILIES)}")
    family: AnyFamily = import_module(FAMILIES[name]).FAMILY
    return family
