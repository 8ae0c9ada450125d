import dataclasses

import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.experiment import parse
from ehr_ray.families.hcat.config import PRESETS, HCATConfig


def test_a_preset_fills_the_sizes_that_are_not_given():
    assert HCATConfig(preset="published").size == PRESETS["published"]
    assert HCATConfig(width=48).size.width == 48
    assert HCATConfig().size == PRESETS["small"]
    beside = HCATConfig(preset="small", width=64, global_layers=2).size
    assert beside == PRESETS["small"]._replace(width=64, global_layers=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "width 30 must be a multiple of heads 4"),
        ({"preset": "published", "heads": 5}, "width 512 must be a multiple of heads 5"),
        ({"preset": "tiny", **PRESETS["small"]._asdict()}, "preset tiny has no say beside width"),
        ({"codes": {"radiology": ("x",)}}, "no modality radiology"),
        ({"alpha_impute": 0.0}, "set missing=mask"),
        ({"survival": dataclasses.replace(HCATConfig().recurrence)}, "both outcomes are called"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        HCATConfig(**changes)


def test_a_model_that_workers_cannot_divide_is_refused_with_its_config():
    raw = {
        "family": "hcat",
        "name": "a",
        "output": "runs",
        "data": {"cohort": "cohorts/c"},
        "cluster": {"strategy": "fsdp", "num_workers": 2},
    }
    refused = r"^cluster\.strategy=fsdp: with model\.missing=impute a parameter is a single number"
    with pytest.raises(ConfigError, match=refused):
        parse(raw)
    parse({**raw, "cluster": {"strategy": "fsdp", "num_workers": 1}})
    parse({**raw, "model": {"missing": "mask"}})
