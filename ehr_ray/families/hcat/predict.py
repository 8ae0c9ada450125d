"""What a trained HCAT says of a patient: deterministic, from all that is there.

B patients, M modalities, 512 wide.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from ehr_ray.events.auroc import auroc
from ehr_ray.events.leakage import LIMIT
from ehr_ray.events.modalities import layout_of
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.model import HCAT
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, forked_rng, uniform

MC_SEED = 1
MAX_GROUP = 100
"""Codes of one name before the last part, above which they are one vector."""


def predict(model: HCAT, batch: Batch) -> Batch:
    """Return `embedding` [B, 3 D], `<outcome>_logit` [B] of the positive class, `weights` [B, M].

    With `mc_samples`, `<outcome>_std` [B] too: the spread of the probability over passes with every
    dropout on.
    """
    tokens = model.tokens(batch)
    fused, _ = model.predict(tokens)
    found = {"embedding": fused.embedding, "weights": fused.weight}
    for place, outcome in enumerate(model.config.outcomes):
        found[f"{outcome.name}_logit"] = fused.logit[:, place]
    if model.config.mc_samples:
        spread = mc_dropout(model, batch, model.config.mc_samples).std(0)
        for place, outcome in enumerate(model.config.outcomes):
            found[f"{outcome.name}_std"] = spread[:, place]
    return found


def task_outputs(config: HCATConfig) -> Mapping[str, str]:
    """Return which output answers which task."""
    return {outcome.name: f"{outcome.name}_logit" for outcome in config.outcomes}


def baseline_codes(config: HCATConfig, vocabulary: Vocabulary) -> np.ndarray:
    """Return the codes baselines read, bool [V]: features, but no vectors of hundreds of numbers.

    Of texture features or embeddings a vector's codes share all but their last part. Where there
    is nothing else, they are read.
    """
    feature = layout_of(vocabulary, config.codes).modality >= 0
    group = [code.rpartition("//")[0] for code in vocabulary.codes]
    size = Counter(name for name, kept in zip(group, feature, strict=True) if kept)
    small = feature & np.array([size[name] <= MAX_GROUP for name in group], bool)
    return small if small.any() else feature


def thinned(model: HCAT, batch: Batch, missing: int, draw: int) -> Tensor:
    """Return logits [B, 2] with up to `missing` of the modalities each patient has taken away.

    Which ones is drawn for each patient; one is always left.
    """
    tokens = model.tokens(batch)
    key = combine(batch["subject_id"], draw, missing, MC_SEED)
    chance = uniform(key.unsqueeze(1), torch.arange(tokens.present.shape[1], device=key.device))
    rank = chance.masked_fill(~tokens.present, 2.0).argsort(1).argsort(1)
    taken = torch.minimum(torch.full_like(key, missing), tokens.present.sum(1) - 1)
    return model.predict(tokens.only(rank >= taken.unsqueeze(1)))[0].logit


def with_modalities_missing(model: HCAT, batch: Batch) -> Batch:
    """Return `thinned` for each number of modalities taken away, an entry a patient and number.

    `patient`, `missing` and `<outcome>_logit`.
    """
    size = len(batch["subject_id"])
    counts = range(1, len(MODALITIES))
    logits = torch.cat([thinned(model, batch, missing, 0) for missing in counts])
    return {
        "patient": torch.arange(size, device=logits.device).repeat(len(counts)),
        "missing": torch.arange(1, len(MODALITIES), device=logits.device).repeat_interleave(size),
        **{f"{o.name}_logit": logits[:, i] for i, o in enumerate(model.config.outcomes)},
    }


def mc_dropout(model: HCAT, batch: Batch, samples: int) -> Tensor:
    """Return probabilities [S, B, 2] with every dropout of the model on, the same ones each time.

    (Gal and Ghahramani 2016.) Attention here has no fused path that would leave dropout out.
    """
    with dropout_on(model), forked_rng(batch["subject_id"].device), torch.no_grad():
        torch.manual_seed(MC_SEED)
        tokens = model.tokens(batch)
        passes = [torch.sigmoid(model.predict(tokens)[0].logit) for _ in range(samples)]
    return torch.stack(passes)


@contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Switch every dropout on, and nothing else, for a while."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    was = [layer.training for layer in layers]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer, before in zip(layers, was, strict=True):
            layer.train(before)


def latents(model: HCAT, batch: Batch) -> Batch:
    """Return each patient's joint latent: `mu`, `logvar` [B, Z], `patient` [B]; {} without one."""
    _, filled = model.predict(model.tokens(batch))
    if filled is None:
        return {}
    patient = torch.arange(len(filled.mu), device=filled.mu.device)
    return {"mu": filled.mu, "logvar": filled.logvar_z, "patient": patient}


def imputations(model: HCAT, batch: Batch) -> Batch:
    """Return how well each present modality is told from the others, an entry a token.

    `patient`, `modality`, `error` and `spread` (mean squared distance of the token from its
    imputation and from the mean of train) and `logvar`, the log of the error expected.
    """
    tokens = model.tokens(batch)
    parts: list[Batch] = []
    for place in range(tokens.present.shape[1]):
        others = torch.ones_like(tokens.present)
        others[:, place] = False
        if model.imputer is None:
            break
        filled = model.impute(tokens.only(others), torch.zeros_like(batch["subject_id"]))
        rows = (tokens.present[:, place] & (tokens.present & others).any(1)).nonzero()[:, 0]
        truth = tokens.value[rows, place] / model.token_scale[place]
        parts.append(
            {
                "patient": rows,
                "modality": torch.full_like(rows, place),
                "error": (filled.value[rows, place] - truth).square().mean(-1),
                "spread": truth.square().mean(-1),
                "logvar": filled.logvar[rows, place],
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


@torch.no_grad()
def measure(model: HCAT, batches: Iterable[Batch]) -> Mapping[str, float]:
    """Return AUROC, AUPRC, accuracy and F1 at 0.5 of both outcomes on tuning, and their averages.

    `auc_surv`, `f1_rec`, ... Rows with an unknown label do not count; an outcome with one class
    only has AUROC 0.5. `nll_*` is the mean cross-entropy, NaN without any label; `nll_avg` is that
    of the outcomes which have one.
    """
    logits, labels = [], []
    for batch in batches:
        logits.append(model.predict(model.tokens(batch))[0].logit.float().cpu())
        labels.append(batch["label"].cpu())
    if not logits:
        return {}
    logit, label = torch.cat(logits).double().numpy(), torch.cat(labels).numpy()
    found: dict[str, float] = {}
    for place, name in enumerate(("surv", "rec")):
        known = label[:, place] >= 0
        found |= {
            f"{metric}_{name}": value
            for metric, value in _scores(logit[known, place], label[known, place] == 1).items()
        }
    for metric in ("auc", "f1"):
        found[f"{metric}_avg"] = (found[f"{metric}_surv"] + found[f"{metric}_rec"]) / 2
    known_nll = [v for v in (found["nll_surv"], found["nll_rec"]) if not math.isnan(v)]
    found["nll_avg"] = sum(known_nll) / len(known_nll) if known_nll else math.nan
    return found


def warnings(reports: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a line where an AUROC on tuning is too good to be true."""
    last = reports[-1] if reports else {}
    return [
        f"AUROC {last[f'auc_{name}']:.3f} of {said} on tuning: look for a column that leaks it"
        for name, said in (("surv", "the first outcome"), ("rec", "the second outcome"))
        if last.get(f"auc_{name}", 0.0) > LIMIT
    ]


def _scores(logit: np.ndarray, label: np.ndarray) -> dict[str, float]:
    if not len(label):
        return {"auc": 0.5, "ap": 0.0, "acc": 0.0, "f1": 0.0, "nll": math.nan}
    nll = np.logaddexp(0, np.where(label, -logit, logit)).mean()
    if label.all() or not label.any():
        return {"auc": 0.5, "ap": 0.0, "acc": 0.0, "f1": 0.0, "nll": float(nll)}
    return {
        "auc": auroc(label, logit),
        "ap": float(average_precision_score(label, logit)),
        "acc": float(((logit >= 0) == label).mean()),
        "f1": float(f1_score(label, logit >= 0, zero_division=0)),
        "nll": float(nll),
    }
