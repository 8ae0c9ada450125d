"""Texts to one table of embeddings on Ray Data: an actor pool of sentence transformers.

Every distinct text is embedded once and kept by content: part files named by the hash of what they
hold, under a folder named by the hash of the model. A job that is killed goes on with the texts
no part has yet, and another cohort or other options pay for new texts only.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.hashed_text import HASHED_WIDTH, HASHING, hashed
from ehr_ray.events.phrases import phrase_of
from ehr_ray.events.schema import VECTORS_FILE
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily
from ehr_ray.nn.sentence_encoder import (
    SentenceEncoder,
    find_model,
    folder_width,
    half_type,
    model_key,
)
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.tasks import Say, pool_size, run_jobs
from ehr_ray.storage import copies, files, sync
from ehr_ray.storage.paths import canonical, local

if TYPE_CHECKING:
    import torch

PART_TEXTS = 1024
"""Texts of one part: what a killed job loses at most, and what is sorted by length together."""
TABLE, TEXTS = "table.safetensors", "phrases.parquet"


def with_phrases(
    experiment: Experiment, vocabulary: Vocabulary, *, on_ray: bool, say: Say = lambda _: None
) -> Experiment:
    """Return the experiment with the folder of its embedded phrases, making what is missing.

    A family without phrases is left alone, and so is one that hashes its texts as it is built.
    """
    family = get_family(experiment.family)
    if family.files.phrases is None:
        return experiment
    config = experiment.model
    own = own_vectors(experiment) is not None
    if config.phrases is None and (
        config.text_model is None or (config.text_model == HASHING and not own)
    ):
        return experiment
    texts = family.files.phrases(config, vocabulary)
    if config.phrases is None:
        folder = make_phrases(experiment, texts, on_ray=on_ray, say=say)
    else:
        folder = sync.fetch(config.phrases)
        _check_texts(folder, texts)
    width = _width(folder) if config.embedding_dim is None else config.embedding_dim
    return replace(
        experiment, model=replace(config, phrases=canonical(folder), embedding_dim=width)
    )


def as_before(run: Path, experiment: Experiment) -> Experiment:
    """Return the experiment with the phrases the run began with, where it names none itself."""
    path = run / "experiment.yaml"
    family: AnyFamily = get_family(experiment.family)
    if family.files.phrases is None or experiment.model.phrases is not None or not path.is_file():
        return experiment
    before = read_yaml(path).get("model") or {}
    kept = {name: before.get(name) for name in ("phrases", "embedding_dim")}
    if kept["phrases"] is None or experiment.model.embedding_dim not in (None, *kept.values()):
        return experiment
    return replace(experiment, model=replace(experiment.model, **kept))


def make_phrases(
    experiment: Experiment, texts: Sequence[str], *, on_ray: bool, say: Say = lambda _: None
) -> Path:
    """Embed the texts, write the table of them all, and return its folder."""
    base = experiment.cache.absolute()
    if (own := own_vectors(experiment)) is not None:
        return _own_table(base, own, texts, experiment)
    name, width = experiment.model.text_model, experiment.model.embedding_dim
    gpu = on_ray and experiment.cluster.gpus_per_worker > 0
    dtype = precision(gpu)
    key = f"{HASHING}-{width or HASHED_WIDTH}" if name == HASHING else model_key(name, dtype)
    digest = hashlib.sha256("\0".join([key, *texts]).encode()).hexdigest()[:16]
    folder = sync.fetch(canonical(base / f"phrases-{digest}"), missing_ok=True)
    if (folder / TABLE).is_file():
        return folder
    if name != HASHING and width not in (None, known := folder_width(find_model(name)) or width):
        raise ConfigError(
            f"model.embedding_dim={width}: {name} makes {known}; write {known}, or drop it"
        )
    distinct = list(dict.fromkeys(texts))
    if name == HASHING:
        vectors = dict(zip(distinct, hashed(distinct, width or HASHED_WIDTH), strict=True))
    else:
        cache = base / f"texts-{key}"
        vectors = embed_texts(distinct, name, cache, on_ray=on_ray, gpu=gpu, say=say)
    table = np.stack([vectors[text] for text in texts]).astype(np.float32)
    if width not in (None, table.shape[1]):
        raise ConfigError(
            f"model.embedding_dim={width}: {name} gives {table.shape[1]}; drop embedding_dim"
        )
    with copies.unsent(folder):
        write_table(folder, texts, table)
        sync.push(folder)
    return folder


def own_vectors(experiment: Experiment) -> Path | None:
    """Return the file of a cohort's own embeddings of its codes; None where texts are embedded."""
    cohort = sync.fetch_cohort(experiment.data.cohort, missing_ok=True)
    return path if (path := cohort / VECTORS_FILE).is_file() else None


def _own_table(base: Path, own: Path, texts: Sequence[str], experiment: Experiment) -> Path:
    """Write the table of a cohort whose events came embedded, and return its folder.

    Raises ConfigError where the config has phrases that are no code's, or another width.
    """
    read = files.read_parquet(own, remedy="ingest the cohort again")
    column = read["vector"].combine_chunks()
    rows = column.values.to_numpy().reshape(len(read), -1)
    vectors = dict(zip(map(phrase_of, read["code"].to_pylist()), rows, strict=True))
    lacking = next((text for text in texts if text not in vectors), None)
    if lacking is not None:
        raise ConfigError(
            f"data.cohort={experiment.data.cohort}: its events came embedded, and {lacking!r} did "
            "not; give model.gaps=none, and no lookup"
        )
    width = experiment.model.embedding_dim
    if width not in (None, rows.shape[1]):
        raise ConfigError(
            f"model.embedding_dim={width}: the embeddings of {experiment.data.cohort} have "
            f"{rows.shape[1]}; drop embedding_dim"
        )
    table = np.stack([vectors[text] for text in texts])
    digest = hashlib.sha256(table.tobytes())
    digest.update("\0".join(texts).encode())
    folder = sync.fetch(canonical(base / f"phrases-{digest.hexdigest()[:16]}"), missing_ok=True)
    if not (folder / TABLE).is_file():
        with copies.unsent(folder):
            write_table(folder, texts, table)
            sync.push(folder)
    return folder


def embed_texts(
    texts: Sequence[str],
    name: str,
    cache: Path,
    *,
    on_ray: bool,
    gpu: bool = False,
    actors: tuple[int, int] | None = None,
    say: Say = lambda _: None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the embedding of each distinct text, from the cache or made now, part by part.

    With `gpu` each process of the pool reserves one and holds a model on it. Raises ConfigError
    where the cluster has none.
    """
    find_model(name)
    cache.mkdir(parents=True, exist_ok=True)
    known = _cached(cache)
    missing = sorted({*texts} - known.keys(), key=lambda text: (len(text), text))
    parts = [missing[i : i + PART_TEXTS] for i in range(0, len(missing), PART_TEXTS)]
    if not parts:
        return known
    jobs = [(part, canonical(cache / f"{_digest(part)}.parquet")) for part in parts]
    pool = (actors or _actors(len(jobs), gpu=gpu)) if on_ray else None
    run_jobs(
        TextEmbedder(name, gpu=gpu),
        jobs,
        on_ray=on_ray,
        say=say,
        verb="embedded parts of phrases",
        label=lambda job: job[1],
        num_gpus=int(gpu),
        actors=pool,
    )
    return {**known, **_cached(cache)}


class TextEmbedder:
    """The job of a part: its texts and the file, or URI, that gets them with their vectors.

    The sentence transformer is loaded by the first job of a process, on a GPU where that is asked
    for: one that is merely there is another's, and jobs of a CPU have its precision.
    """

    def __init__(self, name: str, *, gpu: bool) -> None:
        self._name, self._device = name, "cuda" if gpu else "cpu"
        self._dtype = str(precision(gpu)).removeprefix("torch.")

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        import torch

        torch.set_num_threads(1)
        return SentenceEncoder(self._name, self._device, getattr(torch, self._dtype))

    def __call__(self, job: tuple[list[str], str]) -> None:
        """Embed the texts and write the part."""
        texts, place = job
        vectors = self._encoder.encode(texts)
        flat = pa.array(vectors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table({"text": pa.array(texts, pa.string()), "vector": column})
        path = local(place)
        with copies.unsent(path.parent):
            files.write_parquet(table, path)
            sync.push(path)


def write_table(folder: Path, texts: Sequence[str], table: npt.NDArray[np.float32]) -> None:
    """Write `phrases.parquet` (id, phrase) and the table, float32 [P, E], which comes last."""
    ids = np.arange(len(texts), dtype=np.int32)
    phrases = pa.table({"id": ids, "phrase": pa.array(texts, pa.string())})
    files.write_parquet(phrases, folder / TEXTS)
    with files.new_file(folder / TABLE) as partial:
        save_file({"table": table}, partial)
        partial.chmod(0o644)


def precision(gpu: bool) -> "torch.dtype":
    """Return what texts are embedded in, on GPUs or on processors such as this machine's.

    A cluster's GPUs are taken to multiply bf16, unless this process sees one that does not.
    """
    import torch

    if gpu and not torch.cuda.is_available():
        return torch.bfloat16
    return half_type("cuda" if gpu else "cpu")


def _actors(jobs: int, *, gpu: bool) -> tuple[int, int]:
    pool = pool_size(jobs, "GPU" if gpu else "CPU")
    if gpu and not pool[0]:
        raise ConfigError(
            "cluster.gpus_per_worker: phrases are embedded on GPUs then, and the cluster has none; "
            "set 0, or join one that has"
        )
    return pool


def _cached(cache: Path) -> dict[str, npt.NDArray[np.float32]]:
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    sync.fetch(cache, missing_ok=True)
    for path in sorted(cache.glob("[!.]*.parquet")):
        with contextlib.suppress(pa.ArrowInvalid):  # a damaged part is made again
            table = pq.read_table(path)
            column = table["vector"].combine_chunks()
            rows = column.values.to_numpy().reshape(len(table), -1)
            vectors |= zip(table["text"].to_pylist(), rows, strict=True)
    return vectors


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


def _width(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / TABLE, "numpy") as file:
        return int(file.get_slice("table").get_shape()[1])


def _check_texts(folder: Path, texts: Sequence[str]) -> None:
    """Raise InputError unless a folder's phrases are those of the config, id by id."""
    if not (folder / TABLE).is_file() or not (folder / TEXTS).is_file():
        raise InputError(
            f"model.phrases={folder}: no {TABLE} and {TEXTS} there; make them with `ehr-ray "
            "phrases CONFIG`, or drop the key and training makes them"
        )
    there = pq.read_table(folder / TEXTS)["phrase"].to_pylist()
    if there != list(texts):
        pairs = zip([*there, None], [*texts, None], strict=False)
        at = next((i for i, (old, new) in enumerate(pairs) if old != new), 0)
        here = repr(texts[at]) if at < len(texts) else "nothing"
        was = repr(there[at]) if at < len(there) else "nothing"
        raise InputError(
            f"model.phrases={folder}: id {at} is {was} there and {here} by this cohort and config; "
            "drop model.phrases, or run `ehr-ray phrases` with this config"
        )
