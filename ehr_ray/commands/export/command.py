"""`export`: a model one can hand on, as a folder that says what it is, with nobody's data."""

import shutil
from pathlib import Path
from string import Template

from ehr_ray.commands.export.card import model_card, task_of
from ehr_ray.commands.export.program import PROGRAM, write_program
from ehr_ray.errors import InputError
from ehr_ray.experiment import portable, to_yaml
from ehr_ray.storage import files, sync
from ehr_ray.train import checkpoint
from ehr_ray.train.checksums import document
from ehr_ray.train.run_model import load_run
from ehr_ray.train.task_probe import FOLDER as PROBES

CARD, SUMS, METRICS = "README.md", "SHA256SUMS", "metrics.json"
SCRIPT = Template('''"""$says: python predict.py EVENTS.parquet OUTPUT.parquet"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import ehr_ray
from ehr_ray.errors import InputError

if len(sys.argv) != 3:
    sys.exit(__doc__)
model = ehr_ray.load(Path(__file__).parent)
try:
    events = pq.read_table(sys.argv[1])  # subject_id, time, code, numeric_value
    pq.write_table(model.$call, sys.argv[2])
except (OSError, pa.ArrowException, InputError) as error:
    sys.exit(f"predict.py {sys.argv[1]}: {error}")
''')


def export(run: str | Path, output: Path, *, torch_export: bool = False) -> list[Path]:
    """Write a run's model to a new folder; return its files, relative to it.

    Weights, `experiment.yaml` without anybody's paths, `vocabulary.parquet` with the statistics
    that scale values, the probes and metrics of `evaluate`, a model card as `README.md`,
    `predict.py` and `SHA256SUMS`; with `torch_export` the program `model.pt2` too. `InputError`
    where the run has no checkpoint, its results are of other weights, the folder is not empty, or
    torch can make no program of such a model.
    """
    output = files.place_of_folder(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: there already; name a new folder")
    files.check_replaceable(output, "")
    run = sync.fetch_run(run)
    model = load_run(run)
    task = task_of(model)
    with files.new_folder(output) as folder:
        for name in (checkpoint.WEIGHTS, "vocabulary.parquet"):
            shutil.copyfile(model.weights.parent / name, folder / name)
        config = document(to_yaml(portable(model.experiment)))
        (folder / "experiment.yaml").write_text(config)
        if (run / PROBES).is_dir():
            shutil.copytree(run / PROBES, folder / PROBES)
        if (run / METRICS).is_file():
            shutil.copyfile(run / METRICS, folder / METRICS)
        (folder / "predict.py").write_text(_script(task))
        inputs = write_program(model, folder / PROGRAM) if torch_export else {}
        hashes = _hashes(folder)
        (folder / CARD).write_text(model_card(model, task, hashes, inputs))
        hashes |= {CARD: files.sha256(folder / CARD)}
        lines = [f"{digest}  {name}\n" for name, digest in sorted(hashes.items())]
        (folder / SUMS).write_text("".join(lines))
        return [Path(name) for name in sorted([*hashes, SUMS])]


def _script(task: str | None) -> str:
    if task is None:
        return SCRIPT.substitute(says="An embedding of each subject", call="embed(events)")
    return SCRIPT.substitute(
        says=f"What the model says of {task}, of each subject",
        call=f"predict(events, task={task!r})",
    )


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by its name in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in paths}
