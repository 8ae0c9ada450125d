import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings

from ehr_ray.commands.ingest import ingest
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.events.blocks import BlockStore, write_block
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.registry import get_family
from ehr_ray.train.loader import Loader

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
settings.load_profile("untimed")

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Divide tests among processes (`pytest -n`): those that share a cluster go to one of them.

    `tests/jobs` and `tests/ray` mostly wait, so they run side by side; the rest goes by file, so
    that what a file trains for its tests is trained once.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            folder = "/".join(nodeid.split("/")[:2])
            waits = folder in ("tests/jobs", "tests/ray")
            return folder if waits else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # else files of many short tests hold up the long ones
    return ByFile(config, log)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true", help="store the losses of this code as golden"
    )


@pytest.fixture(scope="session")
def synthetic_cohort(tmp_path_factory):
    """A cohort of 60 made-up patients: about 42 train, 12 tuning, 6 held out."""
    path = tmp_path_factory.mktemp("cohorts") / "synthetic"
    ingest("synthetic", None, path, splits="0.7,0.2,0.1", options={"patients": 60}, cpus=1)
    return path


@pytest.fixture(scope="session")
def synthetic_vocabulary(synthetic_cohort):
    table = pq.read_table(synthetic_cohort / "metadata" / "codes.parquet")
    return Vocabulary.from_table(table, min_count=1)


@pytest.fixture(scope="session")
def synthetic_patients(synthetic_cohort, synthetic_vocabulary):
    """The patients of each split."""
    return {
        split: [
            patient
            for shard in cohort_shards(synthetic_cohort, split)
            for patient in read_patients(shard, synthetic_vocabulary)
        ]
        for split in ("train", "tuning", "held_out")
    }


@pytest.fixture(scope="session")
def tiny_experiment(synthetic_cohort):
    """A family's own tiny config, of its name or without a task: tiny_experiment("set_vae", {})."""

    def build(family="set_vae", changes=None):
        paths = sorted(
            (CONFIGS / "tiny").glob("*.yaml"), key=lambda path: (path.stem != family, path)
        )
        raws = (read_yaml(path) for path in paths)
        raw = next(r for r in raws if r.get("family") == family and not r.get("task"))
        changes = {"data.cohort": str(synthetic_cohort), **(changes or {})}
        return parse(override(raw, changes))

    return build


@pytest.fixture(scope="session")
def make_loader(synthetic_patients, synthetic_vocabulary, tmp_path_factory):
    """The loader of an experiment over the synthetic cohort; blocks are made once."""
    made = {}

    def build(experiment):
        family, config = get_family(experiment.family), experiment.model
        key = (family.name, *(repr(getattr(config, name)) for name in family.cache_fields))
        if key not in made:
            folder = tmp_path_factory.mktemp("blocks")
            for split in ("train", "tuning"):
                rows = [
                    family.transform(patient, config, synthetic_vocabulary)
                    for patient in synthetic_patients[split]
                ]
                half = len(rows) // 2
                write_block(folder / split / "0.arrow", rows[:half], chunk=5)
                write_block(folder / split / "1.arrow", rows[half:])
            made[key] = folder
        stores = {
            split: BlockStore([made[key] / split / f"{i}.arrow" for i in range(2)])
            for split in ("train", "tuning")
        }
        return Loader(
            collate=lambda rows: family.collate(rows, config),
            config=experiment.data,
            seed=experiment.seed,
            accumulate=experiment.train.accumulate,
            **stores,
        )

    return build
