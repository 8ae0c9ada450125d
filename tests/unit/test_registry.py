import subprocess
import sys

import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.family import Family
from ehr_ray.registry import FAMILIES, get_family, get_schema


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_found_under_its_own_name(name):
    family = get_family(name)
    assert isinstance(family, Family)
    assert family.name == name


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_is_checked_against_what_the_record_of_its_family_holds(name):
    family, schema = get_family(name), get_schema(name)
    assert family.schema is schema
    assert schema.takes_task == (family.represent is not None)


def test_an_unknown_family_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match=r"unknown family 'nope'; known: .*set_vae"):
        get_family("nope")
    with pytest.raises(ConfigError, match="unknown family 'nope'"):
        get_schema("nope")
    with pytest.raises(ConfigError, match=r"did you mean set_vae\?"):
        get_schema("set_va")


def test_importing_the_registry_loads_no_family():
    code = (
        "import sys, ehr_ray.registry as r; "
        "sys.exit(any(m in sys.modules for m in r.FAMILIES.values()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
