"""No patient is told by name or number in what is printed, logged, tracked or reported."""

import re
from pathlib import Path

import numpy as np
import pytest
import ray

from ehr_ray.cli.main import main

pytestmark = pytest.mark.ray

NUMBERED, NAMED = "884135072619", "Quincy"  # Ray writes numbers of its own: none has so many digits
TOLD = re.compile(rf"{NUMBERED}\d+|{NAMED}-?\d*".encode())
DATA = {".parquet", ".arrow", ".safetensors", ".csv"}
"""Files that hold patients by purpose: shards, predictions, embeddings."""
COLUMNS = "--id-column pid --time-column minute --time-unit minutes --code-column what"
SPLITS = "0.6,0.2,0.2"


def patients(path, count=60):
    """Write events and labels; half of the subjects have numbers, half names."""
    rng = np.random.default_rng(0)
    names = [f"{NUMBERED}{i:04d}" if i % 2 else f"{NAMED}-{i:03d}" for i in range(count)]
    dead = rng.random(count) < 0.4
    rows = [
        f"{name},{60 * t},{code},{rng.normal() + dead[i]:.3f}"
        for i, name in enumerate(names)
        for t in range(4)
        for code in ("HR", "RR", "Temp")
    ]
    path.mkdir()
    bad = [f"{names[1]},5,HR,80,one cell too many", f"{names[2]},x,HR,80"]
    (path / "a.csv").write_text("\n".join(["pid,minute,what,amount", *rows, *bad]) + "\n")
    labels = [f"{name},{int(d)}" for name, d in zip(names, dead, strict=True)]
    (path.parent / "labels.csv").write_text("\n".join(["pid,death", *labels]) + "\n")
    return names


def told_in(folder):
    """Return the files, other than data, that tell of a patient."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in DATA)
    return [str(p) for p in files if TOLD.search(p.read_bytes())]


def fails(command, capfd):
    with pytest.raises(SystemExit):
        main([str(word) for word in command])
    return capfd.readouterr().err


def test_nothing_that_is_not_data_tells_of_a_patient(cluster, tmp_path, capfd, caplog):
    names = patients(tmp_path / "in")
    ingest = f"ingest --source table --input {tmp_path}/in --splits {SPLITS} {COLUMNS}".split()
    ingest += ["--value-column", "amount", "--labels", f"{tmp_path}/labels.csv"]
    error = fails([*ingest, "--output", tmp_path / "none", "--max-rejected", "0"], capfd)
    assert "rejected 2 of" in error
    assert not TOLD.search(error.encode()), error
    main([*map(str, ingest), "--output", str(tmp_path / "cohort")])

    runs = [f"data.cohort={tmp_path}/cohort", f"output={tmp_path}/runs", "cluster.num_workers=0"]
    settings = ["evaluation.bootstrap=20", "train.max_epochs=1", "tracking.experiment=privacy"]
    root = Path(__file__).parents[2]
    main(["train", str(root / "configs/tiny/set_vae.yaml"), *runs, *settings, "name=one"])
    main(["evaluate", str(tmp_path / "runs" / "one"), "--task", "death"])
    said = capfd.readouterr()
    assert "death on held_out" in said.out + said.err

    shard = sorted((tmp_path / "cohort" / "data" / "train").glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-50])
    error = fails(["evaluate", tmp_path / "runs" / "one", "--task", "death"], capfd)
    assert str(shard) in error
    for text in (said.out, said.err, error, caplog.text):
        assert not TOLD.search(text.encode())
    assert told_in(tmp_path / "runs") == []
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    assert (tmp_path / "runs" / "one" / "report.html").is_file()
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    assert list(logs.glob("worker*"))
    assert told_in(logs) == []
    assert TOLD.search(names[0].encode())
    assert TOLD.search(names[1].encode())
