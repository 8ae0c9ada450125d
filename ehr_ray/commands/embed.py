"""Embed a cohort by batch inference: one row a patient."""

from collections.abc import Callable
from pathlib import Path

from ehr_ray.errors import InputError
from ehr_ray.events.patients import splits_of
from ehr_ray.runtime.data.coverage import MIN_KNOWN, measure_coverage, require_coverage
from ehr_ray.runtime.data.dataset import check_cohort, named_origin
from ehr_ray.runtime.inference import Request, predict_shards, read_tables, write_embeddings
from ehr_ray.runtime.session import session
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import canonical, local, uri_of
from ehr_ray.train import checkpoint


def embed(
    run: str | Path,
    cohort: str | Path,
    output: str | Path,
    *,
    min_known_events: float = MIN_KNOWN,
    address: str | None = None,
    verbose: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Write one row a patient, `subject_id, embedding`, from all of its events; return the rows.

    A cohort is refused where the model knows a smaller share of its events than
    `min_known_events`.
    """
    folder = checkpoint.checkpoint_folder(sync.fetch_run(run)).absolute()
    cohort = sync.fetch(cohort)
    if not cohort.is_dir():
        raise InputError(f"--cohort {cohort}: no such folder; make it with `ehr-ray ingest`")
    shards = [path for paths in splits_of(cohort).values() for path in paths]
    loaded = checkpoint.load(run)
    check_cohort(cohort, loaded.experiment.cache, say)
    home = cohort.resolve() == loaded.experiment.cohort.resolve()
    request = Request(canonical(folder), origin=None if home else named_origin(cohort))
    stored = sync.names_in(output) if uri_of(output) is not None else set()
    output = local(output)
    if output.is_dir() or stored - {""}:
        raise InputError(f"--output {output}: is a folder; give the name of a Parquet file")
    output = output.absolute()
    scratch = files.temporary(output)
    with files.writes(output):  # told before Ray starts
        scratch.mkdir(parents=True)
    try:
        with session(address, verbose=verbose):
            coverage = measure_coverage(shards, loaded.vocabulary, on_ray=True, say=say)
            require_coverage(coverage, min_known_events, cohort)
            if coverage.unknown:
                say(coverage.line())
            parts = predict_shards(shards, scratch, request, None, say=say)
        table = read_tables(parts, "samples")
        assert table is not None
        write_embeddings(output, table)
        sync.push(output)
        return int(table.num_rows)
    finally:
        sync.remove(scratch)
