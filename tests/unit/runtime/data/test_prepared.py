import dataclasses
import functools
import importlib.util
import shutil

import numpy as np
import pytest

from ehr_ray.errors import ResourcesUnavailableError
from ehr_ray.events.block_files import BlockFiles, scanned, write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.events.row_index import RowIndex, read_index
from ehr_ray.experiment import parse
from ehr_ray.registry import get_family
from ehr_ray.runtime.data import prepared as prepared_module
from ehr_ray.runtime.data.prepared import Prepared, fetched, index_of, prepared


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
    family = dataclasses.replace(family, version=family.version + 1)
    assert files() != first


def test_an_edit_of_the_transform_s_module_makes_rows_anew(tiny_experiment, tmp_path):
    experiment = tiny_experiment(changes={"data.cache_dir": str(tmp_path / "cache")})
    own = get_family("set_vae")
    module = tmp_path / "own_rows.py"

    def folder(text):
        module.write_text(text)
        spec = importlib.util.spec_from_file_location("own_rows", module)
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        family = dataclasses.replace(own, transform=found.transform)
        with prepared(experiment, family, on_ray=False) as data:
            return data.blocks["train"]

    text = "from ehr_ray.families.set_vae.data import transform as whole\n\n\n"
    text += "def transform(patient, config, vocabulary):\n"
    text += "    return whole(patient, config, vocabulary)\n"
    first = folder(text)
    assert folder(text) == first
    assert folder(text.replace("return whole", "return  whole")) != first
    bound = dataclasses.replace(own, transform=functools.partial(own.transform))
    with prepared(experiment, bound, on_ray=False) as data:  # whose module nobody knows
        assert data.blocks["train"] != first


def test_an_index_is_made_with_rows_and_again_where_it_is_none_of_theirs(
    tiny_experiment, tmp_path, monkeypatch
):
    experiment, looked = tiny_experiment(changes={"data.cache_dir": str(tmp_path)}), []
    measured = prepared_module.measured_file

    def lengths():
        looked.clear()
        with prepared(experiment, get_family("set_vae"), on_ray=False) as data:
            paths = data.blocks["train"]
            found = BlockStore(paths, index_of(paths)).lengths
            np.testing.assert_array_equal(found, BlockStore(paths).lengths)
            assert read_index(index_of(paths), [p.stat().st_size for p in paths]) is not None
            return paths

    def count(path):
        looked.append(path)
        return measured(path)

    monkeypatch.setattr(prepared_module, "measured_file", count)
    paths = lengths()
    made = list(looked)
    lengths()
    assert not looked
    paths[0].unlink()
    index_of(paths).unlink()
    lengths()
    assert sorted(looked) == sorted(path for path in made if path.parent == paths[0].parent)


def test_a_start_beside_another_leaves_an_index_that_has_not_been_sent_yet(
    tiny_experiment, tmp_path, fetched_unsent
):
    experiment = tiny_experiment(changes={"data.cache_dir": f"file://{tmp_path}/store"})
    with prepared(experiment, get_family("set_vae"), on_ray=False):
        assert {"train.index", "tuning.index"} <= {*fetched_unsent}
    assert len([*(tmp_path / "store").rglob("*.index")]) == 2


def test_a_dataset_of_others_is_streamed_where_the_cache_takes_no_files(
    tiny_experiment, synthetic_cohort, tmp_path
):
    shutil.copytree(synthetic_cohort / "data", tmp_path / "cohort" / "data")
    (tmp_path / "file").touch()
    experiment = tiny_experiment(
        changes={
            "data.cohort": str(tmp_path / "cohort"),
            "data.cache_dir": str(tmp_path / "file" / "cache"),
            "data.mode": "stream",
        }
    )
    with prepared(experiment, get_family("set_vae"), on_ray=False) as data:
        assert len(data.store("train")) > len(data.store("tuning")) > 0


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Block files in a store, their index beside, and where they are on this node."""
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "staging"))
    names = {"train": ["0.arrow", "1.arrow"], "tuning": ["0.arrow"], "held_out": []}
    given = {split: [tmp_path / "store" / split / n for n in own] for split, own in names.items()}
    for path in [*given["train"], *given["tuning"]]:
        write_block(path, [{"x": np.arange(3)}] * 4)
    scanned(given["train"]).write(index_of(given["train"]))
    found = fetched(
        {s: BlockFiles(f"file://{tmp_path}/store/{s}", tuple(own)) for s, own in names.items()}
    )
    assert {split: [path.name for path in paths] for split, paths in found.items()} == names
    return given, found


def test_a_node_copies_what_is_known_of_rows_and_files_when_their_rows_are_wanted(stored):
    _, found = stored
    assert index_of(found["train"]).exists()
    assert not any(path.exists() for path in [*found["train"], *found["tuning"]])
    rows = Prepared(None, found).store("train")
    assert (len(rows), rows.shard_blocks.tolist()) == (8, [1, 1])
    assert not any(path.exists() for path in found["train"])
    assert len(rows.rows([4, 7])) == 2
    assert [path.exists() for path in found["train"]] == [False, True]
    windows = [[np.array([0]), np.array([3, 5])]]
    assert [len(part) for part in rows.read(windows)] == [1, 2]
    assert all(path.exists() for path in found["train"])
    assert len(Prepared(None, found).store("tuning")) == 4  # without an index all are looked at


def test_rows_whose_cache_takes_no_index_are_read_all_the_same(
    tiny_experiment, tmp_path, monkeypatch
):
    def full(self, path):
        raise ResourcesUnavailableError("full")

    monkeypatch.setattr(RowIndex, "write", full)
    experiment = tiny_experiment(changes={"data.cache_dir": str(tmp_path)})
    with prepared(experiment, get_family("set_vae"), on_ray=False) as data:
        assert not index_of(data.blocks["train"]).exists()
        assert len(data.store("train").rows([0, 1])) == 2


def test_each_scale_has_rows_of_its_own(synthetic_cohort, tmp_path):
    data = {"cohort": str(synthetic_cohort), "cache_dir": str(tmp_path)}
    folders = set()
    for scale in ("robust", "standard"):
        plain = {"family": "vitals_vae", "name": "x", "data": {**data, "scale": scale}}
        with prepared(parse(plain), get_family("vitals_vae"), on_ray=False) as found:
            assert found.vocabulary.scaling == scale
            folders.add(found.blocks["train"][0].parent)
    assert len(folders) == 2
