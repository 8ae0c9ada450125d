import dataclasses

from ehr_ray.experiment import parse
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared


def test_rows_are_made_once_and_again_where_an_option_of_the_transform_changes(
    tiny_experiment, tmp_path
):
    family = get_family("set_vae")
    lines = []

    def files(**changes):
        experiment = tiny_experiment(changes={"data.cache_dir": str(tmp_path), **changes})
        lines.clear()
        with prepared(experiment, family, on_ray=False, say=lines.append) as data:
            assert len(data.store("train")) > len(data.store("tuning")) > 0
            return data.blocks["train"]

    first = files()
    assert lines
    assert files() == first
    assert not lines
    assert files(**{"data.batch_size": 3}) == first
    assert files(**{"model.carry_minutes": 60}) != first
    changed = dataclasses.replace(family, version=family.version + 1)
    with prepared(tiny_experiment(), changed, on_ray=False) as data:
        assert data.blocks["train"] != first


def test_each_scale_has_rows_of_its_own(synthetic_cohort, tmp_path):
    data = {"cohort": str(synthetic_cohort), "cache_dir": str(tmp_path)}
    folders = set()
    for scale in ("robust", "standard"):
        plain = {"family": "vitals_vae", "name": "x", "data": {**data, "scale": scale}}
        with prepared(parse(plain), get_family("vitals_vae"), on_ray=False) as found:
            assert found.vocabulary.scaling == scale
            folders.add(found.blocks["train"][0].parent)
    assert len(folders) == 2
