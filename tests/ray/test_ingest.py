from pathlib import Path

import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError

pytestmark = pytest.mark.ray


def tree(path):
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def test_ray_tasks_give_the_same_bytes_as_this_process(tmp_path):
    options = {"patients": 2500, "max_visits": 16}
    lines = []
    for name, cpus in (("here", 1), ("ray", 2)):
        ingest(
            "synthetic", None, tmp_path / name, options=options, cpus=cpus, progress=lines.append
        )
    assert tree(tmp_path / "here") == tree(tmp_path / "ray")
    assert lines.count("read 3/3") == 2


def test_bad_input_in_a_task_is_one_line(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.csv").write_text("who,when\n1,2\n")
    with pytest.raises(InputError) as error:
        ingest("table", tmp_path / "in", tmp_path / "out", options={}, cpus=2)
    assert str(error.value).startswith("--id-column subject_id: ")
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_many_files_need_few_tasks(tmp_path, monkeypatch):
    counts = []
    import ehr_ray.commands.ingest as module

    run = module.run_jobs

    def counted(function, jobs, **options):
        counts.append(len(jobs))
        return run(function, jobs, **options)

    monkeypatch.setattr(module, "run_jobs", counted)
    folder = tmp_path / "in" / "set-a"
    folder.mkdir(parents=True)
    for i in range(1, 4001):
        Path(folder / f"{i}.txt").write_text(f"Time,Parameter,Value\n00:01,HR,{i % 90}\n")
    summary = ingest("physionet2012", tmp_path / "in", tmp_path / "out", options={}, cpus=2)
    assert sum(summary.subjects.values()) == 4000
    assert counts[0] == 2
