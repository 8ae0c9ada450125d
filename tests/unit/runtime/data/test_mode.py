import shutil
from types import SimpleNamespace

import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.events.blocks import to_bytes
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared


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
    told = float(said[0].split("about ")[1].split(" kB")[0]) * 1000
    taken = sum(len(to_bytes([row])) for row in [*rows, *tuning])
    assert 0.5 < told / taken < 2
    again = []
    with prepared(experiment, get_family("set_vae"), on_ray=False, say=again.append) as data:
        assert (data.stream is None) == (free > 10**6)
    assert bool(again) == (free < 10**6)  # rows that are there are not weighed


def test_a_stream_keeps_nothing_in_memory_either(tiny_experiment):
    with pytest.raises(ConfigError, match="mode=stream keeps no rows, so cache=memory"):
        tiny_experiment(changes={"data.mode": "stream", "data.cache": "memory"})
