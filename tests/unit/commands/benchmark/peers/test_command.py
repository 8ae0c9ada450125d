from ehr_ray.commands.benchmark import command as benchmark
from ehr_ray.commands.benchmark.peers import command


def test_the_figures_of_all_peers_are_printed_and_written(synthetic_cohort, tmp_path, monkeypatch):
    for part in ("preparing", "phrases"):
        monkeypatch.setattr(command, part, lambda _, place, p=part: {p: f"left out: {place.name}"})
    monkeypatch.setattr(command, "carrying", lambda _: {"carrying": 1.0})
    monkeypatch.setattr(command, "published_steps", lambda _: {"steps": 2.0})
    target = tmp_path / "peers.json"
    found = benchmark.benchmark(target, cohort=synthetic_cohort, only="peers")["peers"]
    assert found == {
        "carrying": 1.0,
        "preparing": "left out: prepared",
        "phrases": "left out: phrases",
        "steps": 2.0,
    }
    assert '"steps": 2.0' in target.read_text()
