"""Phrases a CPU second: as they are embedded here, and by other ways, with what each way loses.

Beside every rate stands the mean cosine with the vectors of the full model in float32, one `encode`
a phrase: a way that is faster may say something else.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from ehr_ray.commands.benchmark.peers.timing import INSTALL, Figures, in_turn, library
from ehr_ray.errors import InputError, RunError
from ehr_ray.experiment import parse
from ehr_ray.nn.sentence_encoder import BATCH_TEXTS, find_model
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import vocabulary_of
from ehr_ray.runtime.text_embedding import TextEmbedder, precision

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
MODEL: Final = "all-MiniLM-L6-v2"
PHRASES: Final = 512
LEAST_COSINE: Final = 0.99
"""Of what is embedded here with the full model: below it the vectors are others."""
FULL: Final = "one encode a phrase"
ONNX: Final = ("onnx", "onnxscript", "onnxruntime")


def phrases(cohort: Path, place: Path) -> Figures:
    """Return phrases per CPU second and mean cosine of each way, on one thread of torch.

    Raises RunError where the vectors made here are not the model's.
    """
    try:
        folder = find_model(MODEL)
    except InputError:
        return {"phrases": f"left out: {MODEL} is not on this machine; {INSTALL}"}
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as progress

    progress.disable_progress_bar()
    texts = texts_of(cohort)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        place.mkdir(parents=True)
        full = SentenceTransformer(folder, device="cpu")
        here = f"here ({str(precision(gpu=False)).removeprefix('torch.')})"
        ways: dict[str, Encode] = {
            here: Here(MODEL, place / "part.parquet"),
            FULL: partial(one_by_one, full),
            "one encode of all": partial(at_once, full),
            "a static table": static_table(full, texts),
        }
        missing = [why for why in map(library, ONNX) if isinstance(why, str)]
        if not missing:
            ways["ONNX int8"] = Quantised(full, place)
        vectors = {name: way(texts) for name, way in ways.items()}
        figures = rated(here, vectors, in_turn({n: partial(w, texts) for n, w in ways.items()}))
    finally:
        torch.set_num_threads(before)
    if missing:
        figures["phrases per CPU second, ONNX int8"] = missing[0]
    return figures


def rated(here: str, vectors: dict[str, Vectors], spent: dict[str, float]) -> Figures:
    """Return rates and cosines of ways by name; RunError where those of `here` are not the model's.

    `spent` are CPU seconds of each.
    """
    full = vectors[FULL]
    figures: Figures = {"phrases": float(len(full))}
    rates = {name: len(full) / seconds for name, seconds in spent.items()}
    cosines = {name: mean_cosine(found, full) for name, found in vectors.items()}
    if not cosines[here] >= LEAST_COSINE:
        raise RunError(
            f"--only peers: phrases embedded here have a mean cosine of {cosines[here]:.4f} with "
            f"those of {MODEL}, below {LEAST_COSINE}"
        )
    for name, rate in rates.items():
        figures[f"phrases per CPU second, {name}"] = rate
        figures[f"mean cosine with the full model, {name}"] = cosines[name]
        if name != here:
            figures[f"phrases, here over {name}"] = rates[here] / rate
    return figures


def texts_of(cohort: Path) -> list[str]:
    """Return up to `PHRASES` distinct phrases of a cohort's events, evenly spaced."""
    plan = parse(
        {"family": "event_transformer", "name": "phrases", "data": {"cohort": str(cohort)}}
    )
    make = get_family(plan.family).files.phrases
    assert make is not None
    texts = list(dict.fromkeys(make(plan.model, vocabulary_of(cohort, 1))))
    chosen = np.linspace(0, len(texts) - 1, min(PHRASES, len(texts))).astype(int)
    return [texts[i] for i in chosen]


def mean_cosine(found: Vectors, full: Vectors) -> float:
    """Return the mean cosine of rows [N, E] of two tables; a row of zeros counts as 0."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(full, axis=1)
    return float(((found * full).sum(1) / np.maximum(norms, 1e-12)).mean())


class Here:
    """The product's own job of a part: texts in, a Parquet file with their vectors out."""

    def __init__(self, name: str, part: Path) -> None:
        self._job = TextEmbedder(name, gpu=False)
        self._part = part

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed and write the texts; return the vectors, read from the file."""
        self._job((list(texts), str(self._part)))
        column = pq.read_table(self._part, columns=["vector"])["vector"].combine_chunks()
        vectors: Vectors = column.values.to_numpy().reshape(len(texts), -1)
        return vectors


def one_by_one(full: "SentenceTransformer", texts: Sequence[str]) -> Vectors:
    """Call `encode` once a phrase."""
    return np.stack([full.encode(text, show_progress_bar=False) for text in texts])


def at_once(full: "SentenceTransformer", texts: Sequence[str], size: int = BATCH_TEXTS) -> Vectors:
    """Call `encode` once, in batches as large as those here unless told otherwise."""
    vectors: Vectors = full.encode(
        list(texts), batch_size=size, show_progress_bar=False, convert_to_numpy=True
    )
    return vectors


def static_table(full: "SentenceTransformer", texts: Sequence[str]) -> Encode:
    """Return the mean of a vector a word piece, which is the model's own of that piece alone.

    The table has the pieces of the texts; a table of the whole vocabulary is read as fast.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    words = full.tokenizer
    pieces = words(list(texts), add_special_tokens=False)["input_ids"]
    used = sorted({piece for text in pieces for piece in text})
    rows = torch.tensor([[words.cls_token_id, piece, words.sep_token_id] for piece in used])
    with torch.inference_mode():
        alone = full({"input_ids": rows, "attention_mask": torch.ones_like(rows)})
    vectors = alone["sentence_embedding"]
    table = torch.zeros(len(words), vectors.shape[1])
    table[used] = vectors
    own = Tokenizer.from_str(words.backend_tokenizer.to_str())  # whose padding it turns off
    module = StaticEmbedding(own, embedding_weights=table.numpy())
    model = SentenceTransformer(modules=[module], device="cpu")
    return partial(at_once, model, size=len(texts))


class Quantised:
    """The model exported to ONNX, its weights in int8, run on one thread.

    Batches are those made here: sorted by word pieces, padded to the longest.
    """

    def __init__(self, full: "SentenceTransformer", place: Path) -> None:
        import onnxruntime

        self._tokenizer = full.tokenizer
        small = place / "int8.onnx"
        with _unheard():
            export(full, place / "model.onnx")
            quantise(place / "model.onnx", small)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(small), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return the embedding of each text, float32 [N, E]."""
        pieces = self._tokenizer(list(texts))
        order = sorted(range(len(texts)), key=lambda i: len(pieces["input_ids"][i]))
        parts = [self._run(pieces, rows) for rows in _batches(order)]
        vectors = np.concatenate(parts)
        result = np.empty_like(vectors)
        result[order] = vectors
        return result

    def _run(self, pieces: Any, rows: Sequence[int]) -> Vectors:
        kept = {name: [pieces[name][i] for i in rows] for name in NAMES}
        padded = self._tokenizer.pad(kept, return_tensors="np")
        vectors: Vectors = self._session.run(None, {n: padded[n].astype(np.int64) for n in NAMES})[
            0
        ]
        return vectors


NAMES: Final = ("input_ids", "attention_mask")


def _batches(order: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), BATCH_TEXTS):
        yield order[start : start + BATCH_TEXTS]


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep warnings of the exporter, which are for its makers, off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def quantise(model: Path, target: Path) -> None:
    """Write an ONNX model anew with its weights in int8, its activations as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, target, weight_type=QuantType.QInt8)


def export(full: "SentenceTransformer", path: Path) -> None:
    """Write a sentence transformer as one ONNX graph from word pieces to embedding."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.full = full

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            vectors: torch.Tensor = self.full(features)["sentence_embedding"]
            return vectors

    ids = torch.randint(1000, 2000, (2, 7))
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=1)
    with torch.inference_mode():
        torch.onnx.export(
            Whole().eval(),
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=list(NAMES),
            dynamic_shapes={name: {0: batch, 1: length} for name in NAMES},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
