"""Every shell block of every README, in the order it stands, in one folder that is no repository.

The folder has what a reader's has: `configs/`, `jobs/`, and files of made-up patients where the
READMEs speak of downloaded ones. Commands are run in this process, on one Ray, whose workers have
another working folder; the quickstart, submitted jobs and tokens by a shell. Blocks build on those
before them, so a single one does not run alone. A command that has been run is not run twice.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from forked_workers import forked_session
from made_up import eicu, exports, hancock, mimic_iv, omop, physionet2012

from ehr_ray.cli.main import build_parser, main
from ehr_ray.families.vitals_vae.evaluation import suites

ROOT = Path(__file__).parents[2]
P12 = ROOT.parent / "shared" / "data" / "physionet2012"
READMES = [
    "README.md",
    *sorted(
        str(path.relative_to(ROOT))
        for folder in ("configs", "ehr_ray", "jobs", "tests")
        for path in (ROOT / folder).rglob("README.md")
    ),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "ehr_ray").rglob("TUTORIAL.md")),
]

MY_FAMILY = ROOT / "configs" / "tiny" / "my_family.yaml"
NOT_RUN = {
    r"pip install ": "comes before the tests",
    r"pytest ": "is this suite",
    r"ehr-ray new-family ": "needs a clone; unit/commands/new_family gives it in a copy of one",
    r"ruff check ": "is `.ci/run`, before this suite",
    r"ray start --head": "is the head of conftest.py: free ports, and a token of its own",
    r"ray (up|dashboard|down) ": "needs machines; test_cluster.py checks `cluster.yaml`",
    r"ray job submit --address http://localhost:8265": "goes to that cluster",
    r"docker |kubectl ": "needs a Kubernetes; contract/test_kubernetes.py checks its files",
    r"export (AWS|MLFLOW)_": "are the reader's own; the store here is one on loopback",
}
"""Start of a line to why it is not run."""
if not MY_FAMILY.exists():  # a reader who has followed families/README.md has it, and its README
    NOT_RUN[r"ehr-ray train configs/tiny/my_family"] = "needs that family"

STEPS = (
    "train.max_steps=4 train.report_steps=2 train.warmup_steps=0 evaluation.bootstrap=20 "
    "evaluation.max_patients=20 evaluation.umap_patients=0 evaluation.baselines=false "
    "evaluation.hours=[] evaluation.after_training=false"
)
SMALLER = {
    r"ehr-ray (train|tune|crossval) ": STEPS,
    r"ehr-ray train configs/set_vae.*num_workers": "evaluation.hours=[24]",  # the others: none
    # Of several stages the last is trained on Ray, by one process far from the reader's folder: as
    # good as two, which the first train has. See ray/test_relative_paths.py for the others.
    r"ehr-ray train configs/(visit_jepa|visit_jepa_probe|seqset_poe)\.": "cluster.num_workers=0",
    r"ehr-ray train configs/(visit|seqset).*finetune": "cluster.num_workers=1",
    # Where a line speaks neither of workers nor of a run to start from: the same loop without Ray.
    r"ehr-ray train (?!.*(num_workers|init_from|s3:))": "cluster.num_workers=0",
    r".*configs/event_": "model.text_model=hashing model.max_length=128",  # see ray/test_phrases.py
    r"ehr-ray crossval ": "--folds 2 --repeats 1",
    r"ehr-ray crossval configs/": "cluster.num_workers=0",  # on Ray: ray/test_crossval.py
    r"ehr-ray train configs/vitals_": "model.last_hour=96 model.fallback=null data.batch_size=16",
    r"ehr-ray tune ": "tune.trials=2",
    r"ehr-ray ingest --source synthetic ": "--patients 120",  # tuning has both outcomes
    r"ehr-ray ingest --source synthetic-vitals ": "--patients 60",
    r".*--sample-frac 0.05": "--sample-frac 0.5",  # of 80 patients
    r"ehr-ray train .*s3://": "tracking.experiment=null",  # as the README says, without a server
}
"""Start of a line to what is changed in it, for size alone or where said so; all that fit count."""

INSTEAD = {"runs/beta_sweep/trials/0007": "runs/beta_sweep/trials/0001"}
"""What stands in a line to what is run: the search above has fewer trials."""


@dataclass(frozen=True)
class Block:
    """A shell block of a README."""

    readme: str
    number: int
    lines: tuple[str, ...]
    output: str = ""
    """What stands right behind it as `text`: what its last command says, but for numbers."""

    def __str__(self) -> str:
        return f"{self.readme}-{self.number}"


def blocks_of(readme: str) -> list[Block]:
    text = (ROOT / readme).read_text()
    pattern = r"^```bash\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    found = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    return [
        Block(readme, number, tuple(block.strip().splitlines()), output)
        for number, (block, output) in enumerate(found, start=1)
    ]


def programs_of(readme: str) -> dict[str, str]:
    """Return the Python files that a page tells its reader to save, by name."""
    text = (ROOT / readme).read_text()
    return dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


BLOCKS = [block for readme in READMES for block in blocks_of(readme)]
LINES = [line for block in BLOCKS for line in block.lines]
SHELL = [line for line in LINES if not any(re.match(pattern, line) for pattern in NOT_RUN)]


def changed(line: str) -> str:
    """Return a line with its sizes made smaller: values behind its own, options at its end."""
    for words, others in INSTEAD.items():
        line = line.replace(words, others)
    command = re.sub(r"\s+#.*", "", line)
    options = ""
    for pattern, changes in SMALLER.items():
        if not re.match(pattern, line):
            continue
        if changes.startswith("--"):
            options += f" {changes}"
        else:
            last = list(re.finditer(r"\s(?!--)\S+(\.yaml|=\S+)(?=\s|$)", command))[-1].end()
            command = f"{command[:last]} {changes}{command[last:]}"
    return command + options


def shell(command: str, place: Path, environment: dict[str, str] | None = None) -> str:
    given = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    given |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **(environment or {})}
    done = subprocess.run(
        command, shell=True, cwd=place, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def check_output(printed: str, said: str) -> None:
    """Check that the lines of `printed` stand in `said` in their order, but for numbers.

    A line of dots stands for lines that are left out.
    """

    def plain(line: str) -> str:
        return " ".join(re.sub(r"[-+]?\d[\d,.]*", "0", line).split())

    rest = iter([plain(line) for line in said.splitlines()])
    for line in printed.splitlines():
        if line != "...":
            assert plain(line) in rest, f"{line}\nis not in\n{said}"


def check_result(words: list[str]) -> None:
    """Check that what a command makes is there: its `--output`, a checkpoint, a report."""
    if words[1] == "quickstart":
        return
    verb, first = words[1], words[2]
    named = dict(pairwise(words))
    for option in ("--output", "--export"):
        if option in named and "://" not in named[option]:
            assert Path(named[option]).exists(), words
    if verb == "evaluate" and "://" not in first:
        assert (Path(named.get("--output", first)) / "report.html").is_file(), words
    values = dict(word.split("=", 1) for word in words if "=" in word)
    if verb == "train" and "://" not in values.get("output", ""):
        config = yaml.safe_load(Path(first).read_text())
        if "stages" not in config:
            run = Path("runs") / values.get("name", config["name"])
            assert (run / "checkpoint" / "model.safetensors").is_file(), words


@pytest.fixture(scope="module")
def place(ray_folder, tmp_path_factory):
    """The reader's folder; the Ray of the tests was started in another."""
    path = tmp_path_factory.mktemp("reader")
    for name in ("configs", "jobs"):
        shutil.copytree(ROOT / name, path / name)
    shutil.copy(ROOT / ".rayignore", path)
    (path / "home").mkdir()
    physionet2012.write(path / "physionet2012", stays=100)
    listed = [f"{132539 + i},{'test' if i % 5 == 0 else 'train'}" for i in range(98)]
    (path / "published_splits.csv").write_text("\n".join(["subject_id,split", *listed]) + "\n")
    mimic_iv.write(path / "mimiciv" / "3.1", mimic_iv.stays(80))
    eicu.write(path / "eicu-crd" / "2.0", eicu.hospitals(60))
    eicu.write_hours(path / "eicu-crd-demo", 60)
    omop.write(path / "cdm")
    hancock.write(path / "hancock")
    exports.write_meds(path / "mimic_meds")
    exports.write_tables(path / "export", path / "plausible.csv")
    for readme in READMES:
        for name, program in programs_of(readme).items():
            (path / name).write_text(program)
    rows = [f"{i},{hour},HR,{70 + i + hour}" for i in range(30) for hour in (0.5, 2, 7)]
    (path / "events.csv").write_text("\n".join(["stay,hours,item,reading", *rows]) + "\n")
    # Two CPUs are what the commands ask for; each more is another process that imports torch.
    with forked_session(ray_folder, num_cpus=2), pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        # As few clusterings as say how stable one is: with UMAP before each they take minutes.
        patch.setattr(suites, "RESAMPLES", 1)
        patch.setattr(suites, "MAPPED_RESAMPLES", 1)
        yield path


@pytest.fixture(scope="module")
def done():
    """The commands that have been run."""
    return set()


@pytest.mark.ray
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_runs_as_it_stands(block, place, done, request, capsys):
    exported = {"HOME": str(place / "home")}  # where a token is made
    tutorial, said = block.readme.endswith("TUTORIAL.md"), None
    for line in block.lines:
        if line not in SHELL or line in done:
            continue
        done.add(line)
        # A tutorial is as small as it stands, and its reader compares what comes out.
        command = line if tutorial else changed(line)
        words = shlex.split(command)
        if words[0] == "export":
            exported |= dict(word.split("=", 1) for word in words[1:])
        elif words[:2] == ["ehr-ray", "quickstart"]:
            shell(command, place)
        elif words[0] == "ehr-ray":
            if "s3://" in command:
                request.getfixturevalue("bucket")
            capsys.readouterr()
            main(words[1:])
            said = "".join(capsys.readouterr())
            check_result(words)
        elif words[:3] == ["ray", "job", "submit"]:
            head = request.getfixturevalue("head")
            head.have_nodes(2)
            said = shell(command, place, exported | head.environment)
            assert (place / "runs" / "submitted" / "checkpoint").is_dir()
        else:
            said = shell(command, place, exported)
    if block.output and said is not None:  # None: another test has run it
        check_output(block.output, said)


@pytest.mark.ray
def test_the_quickstart_ends_with_a_report(place):
    run = place / "quickstart" / "runs" / "quickstart"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["held_out/auroc"] > 0.6
    assert metrics["held_out/reconstruction/visible/r2"] > 0.2
    assert (run / "report.html").is_file()


def test_every_shell_block_is_found_and_every_exception_is_one():
    fences = [
        line
        for readme in READMES
        for line in (ROOT / readme).read_text().splitlines()
        if re.match(r"\s*```\s*\w", line)
    ]
    known = {"```bash", "```text", "```yaml", "```python"}
    assert set(fences) <= known, "a block in another language is not run"
    assert fences.count("```bash") == len(BLOCKS)
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in LINES), f"NOT_RUN: {pattern}"
    for pattern in SMALLER:
        assert any(re.match(pattern, line) for line in SHELL), f"SMALLER: {pattern}"
    for words in INSTEAD:
        assert any(words in line for line in SHELL), f"INSTEAD: {words}"


def test_every_verb_of_the_readme_exists_and_none_is_missing():
    named = set(re.findall(r"^\| `ehr-ray ([\w-]+)` \|", (ROOT / "README.md").read_text(), re.M))
    assert named == set(build_parser()._subparsers._group_actions[0].choices)


@pytest.mark.ray
@pytest.mark.slow
def test_all_commands_on_real_patients_run_in_full(tmp_path):
    """The printed sizes on the 8,000 stays, from a shell: the model learns what it should."""
    if not P12.is_dir():
        pytest.skip("needs the PhysioNet 2012 files beside the repository, in shared/data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "physionet2012").symlink_to(P12)
    (block,) = (block for block in blocks_of("README.md") if "physionet2012" in block.lines[0])
    for line in block.lines:
        shell(line, tmp_path)
    metrics = json.loads((tmp_path / "runs" / "set_vae" / "metrics.json").read_text())
    assert metrics["held_out/auroc"] > 0.8
    assert metrics["held_out/latent/active_units"] > 0
    assert metrics["held_out/reconstruction/hidden_live/r2"] > 0
