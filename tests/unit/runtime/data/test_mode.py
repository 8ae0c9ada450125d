import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from ehr_ray.commands.benchmark import size
from ehr_ray.commands.benchmark.faults import same_weights
from ehr_ray.errors import ConfigError
from ehr_ray.events.row_batches import to_bytes
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.train.task import family_of

CONFIG = Path(__file__).parents[4] / "configs" / "tiny" / "set_vae.yaml"


@pytest.mark.parametrize(("free", "mode"), [(10**12, "kept there"), (10**4, "streamed, each")])
def test_auto_keeps_rows_where_the_disk_has_room_and_says_what_it_weighed(
    tiny_experiment, tmp_path, monkeypatch, free, mode
):
    experiment = tiny_experiment(changes={"data.cache_dir": str(tmp_path / "cache")})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    said = []
    with prepared(experiment, get_family("set_vae"), on_ray=False, say=said.append) as data:
        assert (data.stream is None) == (free > 10**6)
        rows = data.store("train").rows(range(len(data.store("train"))))
        tuning = data.store("tuning").rows(range(len(data.store("tuning"))))
    assert mode in said[0]
    taken = sum(len(to_bytes([row])) for row in [*rows, *tuning])
    assert 0.5 < told(said) / taken < 2
    again = []
    with prepared(experiment, get_family("set_vae"), on_ray=False, say=again.append) as data:
        assert (data.stream is None) == (free > 10**6)
    assert bool(again) == (free < 10**6)  # rows that are there are not weighed


def told(said):
    return float(said[0].split("about ")[1].split(" kB")[0]) * 1000


def test_patients_that_make_no_row_are_weighed_as_such(tiny_experiment, tmp_path):
    """Of a task's train patients `task.label_ratio` make rows: the others' events take no room."""
    changes = {"task.name": "outcome", "task.label_ratio": 0.3, "data.cache_dir": str(tmp_path)}
    experiment, said = tiny_experiment(changes=changes), []
    with prepared(experiment, family_of(experiment), on_ray=False, say=said.append) as data:
        stores = [data.store(split) for split in ("train", "tuning")]
        taken = sum(len(to_bytes([row])) for rows in stores for row in rows.rows(range(len(rows))))
    assert 0.5 < told(said) / taken < 2


def test_rows_that_are_there_are_not_weighed_again(tiny_experiment, tmp_path):
    """Else a preparation that was stopped when the disk was half full would go on as a stream."""
    experiment = tiny_experiment(changes={"data.cache_dir": str(tmp_path)})
    said = [], []
    with prepared(experiment, family_of(experiment), on_ray=False, say=said[0].append) as data:
        first, *others = (path for paths in data.blocks.values() for path in paths)
        assert others
        first.unlink()
    with prepared(experiment, family_of(experiment), on_ray=False, say=said[1].append):
        assert told(said[1]) < 0.8 * told(said[0])


def test_what_is_weighed_of_a_cohort_in_a_store_is_read_where_it_lies(
    tiny_experiment, synthetic_cohort, tmp_path, monkeypatch
):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    shutil.copytree(synthetic_cohort, tmp_path / "store")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**4))
    changes = {"data.cohort": f"file://{tmp_path}/store", "data.cache_dir": str(tmp_path / "cache")}
    experiment, said = tiny_experiment(changes=changes), []
    with prepared(experiment, get_family("set_vae"), on_ray=False, say=said.append) as data:
        assert data.stream is not None
    assert told(said) > 0
    assert [p for p in (tmp_path / "copies").rglob("*.parquet") if "data" in p.parts] == []


def test_a_stream_that_no_cpu_is_left_for_is_refused_before_rows_are_counted(
    tiny_experiment, monkeypatch
):
    changes = {"data.mode": "stream", "cluster.num_workers": 2}
    experiment = tiny_experiment(changes=changes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ConfigError, match=r"2 workers .* leave no whole CPU of 2"),
        prepared(experiment, get_family("set_vae"), on_ray=True),
    ):
        pass


def test_a_stream_keeps_nothing_in_memory_either(tiny_experiment):
    with pytest.raises(ConfigError, match="mode=stream keeps no rows, so cache=memory"):
        tiny_experiment(changes={"data.mode": "stream", "data.cache": "memory"})


LIMITED = """
import resource, sys, threading, time
from pathlib import Path
most, limit = [0], int(sys.argv[1])

def watch():
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        most[0] = max(most[0], *(int(l.split()[1]) * 1024 for l in lines if l.startswith("VmData")))
        time.sleep(0.01)

if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
threading.Thread(target=watch, daemon=True).start()
from ehr_ray.cli.main import main
try:
    main(sys.argv[3:])
finally:
    Path(sys.argv[2]).write_text(str(most[0]))
"""
MOUNT = 'mount -t tmpfs -o size=16m none "$1" && shift && exec "$@"'


@pytest.mark.slow
def test_a_cohort_larger_than_disk_and_memory_trains_to_the_same_weights(tmp_path, monkeypatch):
    """That rows which neither fit are streamed, where the system itself sets both limits.

    Rows of 60,000 patients are 239 MB; there are 16 MB of disk, and 200 MB of memory beyond what
    the same program takes for 400 patients.
    """
    monkeypatch.setattr(size, "EVENTS", 40)
    cache = tmp_path / "cache"
    cache.mkdir()
    small_disk = ["unshare", "-rm", "sh", "-c", MOUNT, "", cache]
    if not shutil.which("unshare") or subprocess.run([*small_disk, "true"], check=False).returncode:
        pytest.skip("nobody may mount a small disk here")
    for name, patients, shards in (("few", 400, 4), ("many", 60_000, 200)):
        size.write_tiny(tmp_path / name, patients, shards)

    def trained(name, cohort, *more, limit=0, before=()):
        note = tmp_path / f"{name}.txt"
        command = [*before, sys.executable, "-c", LIMITED, limit, note, "train", CONFIG]
        settings = [f"data.cohort={tmp_path / cohort}", f"output={tmp_path}", f"name={name}", *more]
        settings += ["data.min_code_count=1", "data.shuffle_patients=1024", "train.max_epochs=1"]
        settings += ["train.max_steps=60", "train.report_steps=30", "cluster.num_workers=0"]
        settings += ["tracking.experiment=null"]
        done = subprocess.run(
            [*map(str, command), *settings], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr, int(note.read_text())

    _, base = trained("base", "few", "data.mode=stream")
    auto = ("data.mode=auto", f"data.cache_dir={cache}")
    said, _ = trained("limited", "many", *auto, limit=base + 200_000_000, before=small_disk)
    assert "rows streamed" in said
    trained("whole", "many", "data.mode=cache")
    rows = sum(path.stat().st_size for path in (tmp_path / ".cache").rglob("*.arrow"))
    assert rows > 16_000_000 + 200_000_000
    assert same_weights(tmp_path / "limited", tmp_path / "whole")
