"""`init_from`: weights of an earlier run under the names of this model; every tensor's fate."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily
from ehr_ray.registry import get_family
from ehr_ray.train.checkpoint import checkpoint_folder, read_vocabulary


def initialise(
    model: nn.Module, path: str | Path, family: AnyFamily, vocabulary: Vocabulary
) -> list[str]:
    """Copy the tensors of a checkpoint that match by name and shape; return every tensor's fate.

    The model may hold the other as a part (a SetVAE in a SeqSetVAE, either under a task head), or
    be a part of it. Rows of `Transfer.code_indexed_tensors` are matched by code, so a checkpoint of
    another vocabulary gives the codes both know. Raises InputError when they fill less than half of
    both, the checkpoint and the model: those are unlike, and training would silently start from
    scratch.
    """
    folder = checkpoint_folder(path)
    _check_kin(folder, path, family)
    by_code, own = family.transfer.code_indexed_tensors, family.transfer.data_buffers
    everything = load_file(folder / "model.safetensors")
    source = {name: tensor for name, tensor in everything.items() if not named_by(name, own)}
    old_vocabulary = read_vocabulary(folder)
    target = model.state_dict()
    renamed, unused = _renamed(source, target)
    lines, copied = [], 0
    for name, tensor in target.items():
        old = renamed.get(name)
        if named_by(name, own):
            lines.append(f"{name}: kept, made of this cohort")
        elif old is None:
            lines.append(f"{name}: new, initialised")
        elif named_by(name, by_code) and old_vocabulary.codes != vocabulary.codes:
            shared = _copy_rows(tensor, old, vocabulary, old_vocabulary)
            copied += old.numel() if shared else 0
            lines.append(f"{name}: rows of {shared} of {len(vocabulary)} codes copied")
        elif old.shape != tensor.shape:
            lines.append(f"{name}: initialised, {list(old.shape)} there, {list(tensor.shape)} here")
        else:
            tensor.copy_(old)
            copied += old.numel()
            lines.append(f"{name}: copied")
    lines += [f"{name}: not used here" for name in unused]
    total = sum(tensor.numel() for tensor in source.values())
    # A head over thousands of phrases outweighs the rest of a checkpoint, and is left behind.
    size = sum(tensor.numel() for name, tensor in target.items() if not named_by(name, own))
    if copied < 0.5 * min(total, size) or copied == 0:
        raise InputError(
            f"init_from={path}: only {copied} of {total} values fit this model; "
            "choose a checkpoint of the same architecture or drop init_from"
        )
    return lines


def named_by(name: str, endings: Sequence[str]) -> bool:
    """Whether a tensor's dotted name is one of the `endings`, or ends with it after a dot.

    So `tokenizer.meaning` names the tensor under a task head too, `base.tokenizer.meaning`.
    """
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def _check_kin(folder: Path, path: str | Path, family: AnyFamily) -> None:
    """Raise InputError for a checkpoint of another kind of model: names may agree by chance."""
    other = get_family(str(read_yaml(folder / "experiment.yaml").get("family")))
    if other.name != family.name and _home(other) != _home(family):
        raise InputError(
            f"init_from={path}: a checkpoint of {other.name}, whose tensors mean other things than "
            f"those of {family.name}; choose a run of the same family, or drop init_from"
        )


def _home(family: AnyFamily) -> str:
    """Return the folder of a family: SetVAE and SeqSetVAE-PoE share theirs."""
    return ".".join(str(family.schema.config.__module__).split(".")[:3])


def by_part(lines: list[str]) -> list[str]:
    """Return the fates in one line a part of the model, as in `prior.blocks: 24 tensors copied`."""
    counts: dict[tuple[str, str], int] = {}
    for line in lines:
        name, _, fate = line.partition(": ")
        parts = name.split(".")
        key = (".".join(parts[: min(2, len(parts) - 1)]) or name, fate)
        counts[key] = counts.get(key, 0) + 1
    return [f"{part}: {n} tensor{'s'[: n > 1]} {fate}" for (part, fate), n in counts.items()]


def _renamed(
    source: dict[str, Tensor], target: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the source under the names of the target, by the prefix that fits most values."""
    best: tuple[int, dict[str, str]] = (-1, {})
    for outer in _prefixes(target):
        for inner in _prefixes(source):
            names = {
                name: outer + name.removeprefix(inner)
                for name in source
                if name.startswith(inner) and outer + name.removeprefix(inner) in target
            }
            fits = sum(
                source[a].numel() for a, b in names.items() if source[a].shape == target[b].shape
            )
            if fits > best[0]:
                best = (fits, names)
    names = best[1]
    return {b: source[a] for a, b in names.items()}, [name for name in source if name not in names]


def _prefixes(names: dict[str, Tensor]) -> list[str]:
    """Return the names of modules that hold tensors, the whole first: `""`, `base.`, ..."""
    prefixes = {""}
    for name in names:
        parts = name.split(".")[:-1]
        prefixes |= {".".join(parts[: i + 1]) + "." for i in range(min(2, len(parts)))}
    return sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))


def _copy_rows(tensor: Tensor, old: Tensor, codes: Vocabulary, old_codes: Vocabulary) -> int:
    """Copy the rows of the codes both know; return their number."""
    if tensor.shape[1:] != old.shape[1:]:
        return 0
    ids = torch.from_numpy(old_codes.encode(codes.codes)).long()
    known = ids >= 0
    tensor[known] = old[ids[known]]
    return int(known.sum())
