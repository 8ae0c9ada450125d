"""Embed a cohort by batch inference: one row a patient."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import (
    MIN_KNOWN,
    check_min_known,
    measure_coverage,
    require_coverage,
)
from ehr_ray.events.code_map import CodeMap, load_code_map
from ehr_ray.events.patients import shard_names, splits_of
from ehr_ray.runtime.data.dataset import check_cohort, named_origin
from ehr_ray.runtime.data.manifest import opened
from ehr_ray.runtime.data.mapped import mapped_cohort
from ehr_ray.runtime.data.tasks import run_shards
from ehr_ray.runtime.inference.embeddings import EMBEDDINGS, ShardEmbedder
from ehr_ray.runtime.inference.shards import Request, ShardPredictor, check_gpus, of_precision
from ehr_ray.runtime.session import session
from ehr_ray.runtime.verb_tracking import of_training, tracked_verb
from ehr_ray.sources.building.resume import has_changed
from ehr_ray.sources.building.staging import MAPPED
from ehr_ray.storage import copies, files, in_place, runs, sync
from ehr_ray.storage.claim import claim
from ehr_ray.storage.listing import stamp
from ehr_ray.storage.paths import (
    absolute,
    canonical,
    check_cohort_folder,
    check_output,
    check_outside,
    local,
    uri_of,
    written,
)
from ehr_ray.train import checkpoint

SUFFIX = ".parquet"
"""How the name of an output ends that is one file."""
OTHER_SUFFIXES = (".csv", ".tsv", ".json", ".npy", ".npz", ".h5", ".arrow", ".feather", ".pkl")
"""Of files that somebody may expect, and that are not written."""
MANIFEST = "_embed.json"


def embed(
    run: str | Path,
    cohort: str | Path,
    output: str | Path,
    *,
    min_known_events: float = MIN_KNOWN,
    code_map: str | None = None,
    gpus: float = 0.0,
    address: str | None = None,
    on_ray: bool = True,
    verbose: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Write one row a patient, `subject_id, embedding`, from all of its events; return the rows.

    An `output` that ends in `.parquet` is one file. Any other is a folder with a file a shard,
    `<split>/<n>.parquet`; files that are there already are kept, so a killed job continues, and
    those of another run or cohort are refused. No process ever holds the embeddings of more than
    some shards. A cohort is refused where the model knows a smaller share of its events than
    `min_known_events`, unless it has codes of as large a share of what the model was trained on.
    `code_map` is a shipped map's name or a CSV file, from the cohort's codes
    and units to those that the model knows. Each process reserves `gpus` GPUs, on which a run
    that was trained in bf16 predicts so. Without `on_ray` all happens in this process.
    """
    check_gpus(gpus)
    check_min_known(min_known_events)
    if local(output).suffix in OTHER_SUFFIXES:
        raise InputError(
            f"--output {output}: embeddings are Parquet; name a file that ends in {SUFFIX}, or a "
            "folder"
        )
    check_output(output, "--output ", file=local(output).suffix == SUFFIX)
    check_outside(output, "--output ", cohort)
    run = runs.fetch_run(run)
    folder = checkpoint.checkpoint_folder(run).absolute()
    cohort = sync.fetch_cohort(cohort)
    check_cohort_folder(cohort, "--cohort ")
    loaded = checkpoint.load(run)
    home = cohort.resolve() == loaded.experiment.cohort.resolve()
    origin = None if home else named_origin(cohort)
    request = Request(canonical(folder), origin=origin, gpus=gpus)
    opened = partial(session, address, verbose=verbose) if on_ray else None
    mapped = None if code_map is None else load_code_map(code_map)
    job = _Job(loaded, request, cohort, splits_of(cohort), min_known_events, opened, say, mapped)
    target = local(output).absolute()
    given = {
        "run": run.absolute(),
        "cohort": cohort.absolute(),
        "output": target,
        "min_known_events": min_known_events,
        "code_map": code_map,
        "gpus": gpus,
    }
    place, name = of_training(run, loaded.experiment), cohort.resolve().name
    with tracked_verb(place, "embed", f"{name} by {run.resolve().name}", given) as record:
        if target.suffix == SUFFIX:
            rows = _one_file(job, output, target)
        else:
            rows = _folder(job, target)
            record.artifacts.append((target, (MANIFEST,)))
        record.metrics |= {"patients": rows, "shards": sum(map(len, job.splits.values()))}
    return rows


def _folder(job: "_Job", target: Path) -> int:
    """Write the parts that are not there yet; return the rows of all."""
    for part in job.targets(target):
        written(part)  # refused before anything is there
    content = job.content()
    # Notes of earlier versions name the weights alone.
    formerly = {name: value for name, value in content.items() if name != "applied"}
    there = claim(target, MANIFEST, content, "embedding", formerly=formerly)
    parts = job.fill(target, there, bring=False)
    return sum(in_place.footer(part).num_rows for part in parts)


def _one_file(job: "_Job", output: str | Path, target: Path) -> int:
    """Write the parts beside the file, then the file from them, one after the other."""
    stored = sync.names_in(output) if uri_of(output) is not None else set()
    if target.is_dir() or stored - {""}:
        raise InputError(f"--output {output}: is a folder; give the name of a Parquet file")
    files.remove_abandoned([target])
    scratch = files.temporary(target)
    with files.writes(target):  # told before Ray starts
        scratch.mkdir(parents=True)
    try:
        parts = job.fill(scratch, set(), bring=True)
        with copies.unsent(target):
            with (
                files.new_file(target) as unfinished,
                pq.ParquetWriter(unfinished, EMBEDDINGS, **files.CHECKED) as writer,
            ):
                for part in parts:
                    writer.write_table(files.read_parquet(part))
            sync.push(target)
        return int(pq.read_metadata(target).num_rows)
    finally:
        sync.remove(scratch)


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Remove a folder after the block, if it is there."""
    try:
        yield
    finally:
        sync.remove(folder)


@dataclass(frozen=True)
class _Job:
    """A model over the shards of a cohort."""

    loaded: checkpoint.Loaded
    request: Request
    cohort: Path
    splits: Mapping[str, list[Path]]
    least: float
    """Share of the events that the model must know."""
    session: Callable[[], AbstractContextManager[Any]] | None
    """Opens a Ray; None: all happens in this process."""
    say: Callable[[str], None]
    code_map: CodeMap | None = None

    def content(self) -> dict[str, Any]:
        """Return what the embeddings depend on, for the note in their folder."""
        shards = [path for paths in self.splits.values() for path in paths]
        folder = local(self.request.checkpoint)
        return {
            "weights": files.sha256(folder / checkpoint.WEIGHTS),
            "applied": [files.sha256(folder / name) for name in checkpoint.FILES[1:]],
            "cohort": absolute(self.cohort),
            "origin": self.request.origin,
            "shards": [(str(p.relative_to(self.cohort)), *stamp(p)) for p in shards],
            **({"code_map": self.code_map.digest} if self.code_map else {}),
            **of_precision(self.loaded.experiment, self.request.gpus),
        }

    def targets(self, folder: Path) -> dict[Path, Path]:
        """Return the shard of each file of a folder."""
        return {
            folder / split / f"{name}{SUFFIX}": path
            for split, paths in self.splits.items()
            for path, name in zip(paths, shard_names(self.cohort, split, paths), strict=True)
        }

    def fill(self, folder: Path, there: Collection[str], *, bring: bool) -> list[Path]:
        """Embed what is not `there` into `<folder>/<split>/<n>.parquet`; return all of these."""
        shards = self.targets(folder)
        jobs = [
            {"shard": str(path), "target": str(target)}
            for target, path in shards.items()
            if target.relative_to(folder).as_posix() not in there
        ]
        files.remove_abandoned([folder, *shards])
        scratch = files.temporary(folder)
        if jobs:
            with self.session() if self.session else nullcontext(), _removed(scratch):
                cache, on_ray = self.loaded.experiment.cache, self.session is not None
                check_cohort(self.cohort, cache, self.say, on_ray=on_ray)
                cohort = self._mapped(scratch)
                for job in jobs:
                    job["shard"] = str(cohort / Path(job["shard"]).relative_to(self.cohort))
                self._require(cohort)
                embedder = ShardEmbedder(ShardPredictor(self.request))
                run_shards(
                    jobs,
                    embedder,
                    on_ray=on_ray,
                    say=self.say,
                    verb="embedded shards",
                    bring=bring,
                    pool=True,
                    num_gpus=self.request.gpus,
                )
        return list(shards)

    def _mapped(self, folder: Path) -> Path:
        """Return the cohort, or its copy by the code map."""
        if self.code_map is None:
            return self.cohort
        cohort, lines = mapped_cohort(
            self.cohort,
            [*self.splits],
            self.code_map,
            self.loaded.vocabulary,
            folder,
            on_ray=self.session is not None,
            say=self.say,
        )
        for line in lines:
            self.say(line)
        return cohort

    def _require(self, cohort: Path) -> None:
        """Raise InputError where the model knows too few of the events of a cohort."""
        cache = self.loaded.experiment.cache
        if cohort != self.cohort:  # what is known of a mapped copy goes with it
            cache = cohort
        on_ray = self.session is not None
        with opened(cohort, cache, on_ray=on_ray, say=self.say) as manifest:
            coverage = measure_coverage(manifest, self.loaded.vocabulary)
        mapped = self.code_map is not None or has_changed(self.cohort, MAPPED)
        require_coverage(coverage, self.least, self.cohort, mapped=mapped)
        for line in (coverage.line() if coverage.unknown else "", coverage.absent_line()):
            if line:
                self.say(line)
