"""`init_from`: weights of an earlier run under the names of this model; every tensor's fate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment, parse
from ehr_ray.family import AnyFamily, Axis
from ehr_ray.train.checkpoint import checkpoint_folder, read_vocabulary
from ehr_ray.train.members import of_member
from ehr_ray.train.task import family_of, num_members


def initialise(
    model: nn.Module,
    path: str | Path,
    family: AnyFamily,
    vocabulary: Vocabulary,
    config: Any = None,
    *,
    member: int = 0,
) -> list[str]:
    """Copy the tensors of a checkpoint that match by name and shape; return every tensor's fate.

    The model may hold the other as a part (a SetVAE in a SeqSetVAE, either under a task head), or
    be a part of it. Of `train.seeds` it is one member: `member` counts, here and in a checkpoint
    with several. Rows of `Transfer.code_indexed_tensors` are matched by code and places along
    `Transfer.axes`, which `config` is asked for, by name: a checkpoint of another vocabulary gives
    what both know. Raises InputError where its inputs mean other things or are scaled otherwise
    (`data.scale`), and when they fill less than half of both, the checkpoint and the model: those
    are unlike, and training would silently start from scratch.
    """
    folder = checkpoint_folder(path)
    other = parse(read_yaml(folder / "experiment.yaml"))
    old_vocabulary = read_vocabulary(folder)
    _check_kin(other, path, family, config)
    _check_scaling(old_vocabulary, path, vocabulary)
    by_code, own = family.transfer.code_indexed_tensors, family.transfer.data_buffers
    everything = load_file(folder / "model.safetensors")
    mine = of_member(everything, member, num_members(other))
    source = {name: tensor for name, tensor in mine.items() if not named_by(name, own)}
    axes = _axes(family, config, vocabulary)
    old_axes = _axes(family_of(other), other.model, old_vocabulary)
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
        elif (axis := _of(axes, name)) != (old_axis := _of(old_axes, name)):
            shared = _copy_places(tensor, old, axis, old_axis)
            copied += old.numel() if shared else 0
            total = 0 if axis is None else len(axis.names)
            lines.append(f"{name}: {shared} of {total} features copied, by name")
        elif old.shape != tensor.shape:
            lines.append(f"{name}: initialised, {list(old.shape)} there, {list(tensor.shape)} here")
        else:
            tensor.copy_(old)
            copied += old.numel()
            lines.append(f"{name}: copied")
    lines += [f"{name}: not used here" for name in unused]
    total = sum(tensor.numel() for tensor in source.values())
    size = sum(tensor.numel() for name, tensor in target.items() if not named_by(name, own))
    _check_copied(copied, path, total, size)
    return lines


def named_by(name: str, endings: Sequence[str]) -> bool:
    """Whether a tensor's dotted name is one of the `endings`, or ends with it after a dot.

    So `tokenizer.meaning` names the tensor under a task head too, `base.tokenizer.meaning`.
    """
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def _axes(family: AnyFamily, config: Any, vocabulary: Vocabulary) -> Mapping[str, Axis]:
    axes = family.transfer.axes
    return {} if axes is None or config is None else axes(config, vocabulary)


def _of(axes: Mapping[str, Axis], name: str) -> Axis | None:
    return next((axis for ending, axis in axes.items() if named_by(name, [ending])), None)


def _meanings(family: AnyFamily, config: Any) -> Mapping[str, Any]:
    meanings = family.transfer.meanings
    return {} if meanings is None or config is None else meanings(config)


def _check_kin(experiment: Experiment, path: str | Path, family: AnyFamily, config: Any) -> None:
    """Raise InputError for a checkpoint of another kind of model: names may agree by chance."""
    other = family_of(experiment)
    theirs = _meanings(other, experiment.model)
    for option, ours in _meanings(family, config).items():
        if option in theirs and theirs[option] != ours:
            raise InputError(
                f"init_from={path}: its {option} is {theirs[option]}, here it is {ours}; inputs "
                "mean other things, so set that, or drop init_from"
            )
    if other.name != family.name and _home(other) != _home(family):
        raise InputError(
            f"init_from={path}: a checkpoint of {other.name}, whose tensors mean other things than "
            f"those of {family.name}; choose a run of the same family, or drop init_from"
        )


def _check_scaling(old: Vocabulary, path: str | Path, new: Vocabulary) -> None:
    """Raise InputError where the values of a checkpoint's training were scaled otherwise."""
    if old.scaling != new.scaling:
        raise InputError(
            f"init_from={path}: trained on {old.scaling} values, this run has {new.scaling} ones; "
            f"set data.scale={old.scaling}"
        )


def _check_copied(copied: int, path: str | Path, total: int, size: int) -> None:
    """Raise InputError where a checkpoint of `total` values gave a model of `size` too few."""
    # A head over thousands of phrases outweighs the rest of a checkpoint, and is left behind.
    if copied < 0.5 * min(total, size) or copied == 0:
        raise InputError(
            f"init_from={path}: only {copied} of {total} values fit this model; "
            "choose a checkpoint of the same architecture or drop init_from"
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


def _copy_places(tensor: Tensor, old: Tensor, axis: Axis | None, old_axis: Axis | None) -> int:
    """Copy the places along an axis whose names both have; return their number."""
    if axis is None or old_axis is None or axis.dim != old_axis.dim:
        return 0
    ours, theirs = tensor.movedim(axis.dim, 0), old.movedim(axis.dim, 0)
    if ours.shape[1:] != theirs.shape[1:]:
        return 0
    place = {name: i for i, name in reversed(list(enumerate(old_axis.names)))}
    pairs = [(i, place[name]) for i, name in enumerate(axis.names) if name in place]
    for here, there in pairs:
        ours[here] = theirs[there]
    return len(pairs)


def _copy_rows(tensor: Tensor, old: Tensor, codes: Vocabulary, old_codes: Vocabulary) -> int:
    """Copy the rows of the codes both know; return their number."""
    if tensor.shape[1:] != old.shape[1:]:
        return 0
    ids = torch.from_numpy(old_codes.encode(codes.codes)).long()
    known = ids >= 0
    tensor[known] = old[ids[known]]
    return int(known.sum())
