"""One optimizer step: losses of the micro-batches, exact means over ranks, clipping, the update."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Scheduled, Terms, unwrapped
from ehr_ray.nn.noise import forked_rng
from ehr_ray.train.backend import Backend
from ehr_ray.train.feed import move
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import drop_held
from ehr_ray.train.sharding import is_part, own


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """Takes the steps of a run.

    Args:
        experiment: the run's; its `train` section has clipping and precision.
        family: whose loss is minimised.
        model: as the backend wrapped it, so that gradients are averaged over ranks.
        optimizer: of the model's parameters.
        backend: this rank among the others.
        sums: what the terms of each batch are added to.
    """

    experiment: Experiment
    family: AnyFamily
    model: nn.Module
    optimizer: torch.optim.Optimizer
    backend: Backend
    sums: Sums
    faults: "Faults" = field(default_factory=lambda: Faults())

    def __call__(self, micro: list[Batch], scheduled: Scheduled, seed: int) -> Tensor:
        """Take one step over this rank's micro-batches; return the norm of the gradient, a scalar.

        Of parts that are clipped alone it is the largest. `seed` keys the noise of the loss. On the
        CPU raises RunError where the gradient is not finite; on a GPU `check` does, later: the host
        would wait at every step to know.
        """
        model, plan = self.model, self.experiment.train
        self.optimizer.zero_grad(set_to_none=True)
        micro = [move(batch, self.backend.device) for batch in micro]
        begun = self._begin_counts(micro, scheduled, seed)
        counts: Mapping[str, Tensor] | None = None
        losses = []
        if plan.compile == "reduce-overhead":  # graphs of a GPU use memory of the last step's
            torch.compiler.cudagraph_mark_step_begin()
        for index, batch in enumerate(micro):
            # DDP averages gradients in the last backward pass alone, once a step. A sharded model
            # does in each, so that no rank ever holds all gradients.
            last = index == len(micro) - 1
            no_sync = getattr(model, "no_sync", contextlib.nullcontext)
            with contextlib.nullcontext() if last else no_sync():
                terms = loss_terms(self.family, model, batch, scheduled, seed, plan.precision)
                if counts is None:
                    counts = (begun or begin_counts([_counts_of(terms)], self.backend))()
                objective(terms, counts, self.backend.world).backward()
            self.sums.add(terms)
            losses.append({name: term.sum.detach() for name, term in terms.items()})
        drop_held(self.optimizer)
        # Without a gradient the optimizer passes a parameter over; with one of zeros decay and
        # moments would still move it.
        if self.family.training.held:
            for parameter in self.family.training.held(unwrapped(model), scheduled):
                parameter.grad = None
        clipped = self.family.training.clipped
        norm = self._clip(clipped(model) if clipped else [model])
        self.faults.note(norm, losses, scheduled)
        if norm.device.type == "cpu":
            self.check()
        self.optimizer.step()
        return norm

    def _clip(self, parts: Iterable[nn.Module]) -> Tensor:
        """Limit the norm of each part's gradient; return the largest there was, a scalar."""
        limit = self.experiment.train.clip
        norms = [clip([*part.parameters()], limit) for part in parts]
        return torch.stack(norms).amax()

    def check(self) -> None:
        """Raise RunError where a gradient since the last look was not finite."""
        if fault := self.faults.read():
            raise RunError(f"{self.experiment.name}: {fault}; lower train.lr, or set train.clip")

    def _begin_counts(
        self, micro: list[Batch], scheduled: Scheduled, seed: int
    ) -> Callable[[], Mapping[str, Tensor]] | None:
        """Begin to count each term over the micro-batches of every rank, and return what waits.

        A term is divided by its count over the whole step, so counts come before gradients; they
        are summed beside the forward pass, or no rank could begin its backward pass before the
        slowest had ended its forward pass. A family that cannot tell them runs micro-batches twice.
        The generator is forked: both passes then have the same draws, hence the same counts. None
        where the terms of a single micro-batch tell them: of one rank, or without such a function.
        """
        tell, precision = self.family.training.counts, self.experiment.train.precision
        if len(micro) == 1 and (tell is None or self.backend.world == 1):
            return None
        with torch.no_grad(), forked_rng(self.backend.device):
            if tell is not None:
                parts = [tell(self.model, batch, seed) for batch in micro]
            else:
                parts = [
                    _counts_of(loss_terms(self.family, self.model, b, scheduled, seed, precision))
                    for b in micro
                ]
        return begin_counts(parts, self.backend)


class Faults:
    """The first step since the last look whose gradient was not finite, noted on the device."""

    def __init__(self) -> None:
        self._scheduled: list[Scheduled] = []
        self._names: list[str] = []
        self._first: Tensor | None = None
        """Its number among the steps, -1 for none, and what of (norm, terms) is not finite."""

    def note(self, norm: Tensor, losses: list[dict[str, Tensor]], scheduled: Scheduled) -> None:
        """Take note of a step: the norm of its gradient and the terms of its micro-batches."""
        totals: dict[str, Tensor] = {}
        for name, value in (item for part in losses for item in part.items()):
            totals[name] = value + totals.get(name, 0)
        bad = ~torch.stack([value.isfinite() for value in (norm, *totals.values())])
        number = torch.full((1,), len(self._scheduled), device=norm.device)
        now = torch.where(bad[0], torch.cat([number, bad.long()]), -1)
        first = self._first
        self._first = now if first is None else torch.where(first[0] < 0, now, first)
        self._names = list(totals)
        self._scheduled.append(dict(scheduled))

    def read(self) -> str:
        """Return what was not finite at that step and its scheduled values, "" for none; forget."""
        if self._first is None:
            return ""
        number, _, *bad = self._first.tolist()
        scheduled = self._scheduled[number]
        self._first, self._scheduled = None, []
        if number < 0:
            return ""
        at_fault = [name for name, wrong in zip(self._names, bad, strict=True) if wrong]
        values = ", ".join(f"{name} {value:.4g}" for name, value in scheduled.items())
        said = ", ".join(at_fault) or "gradient"
        return f"{said} is not finite with {values or 'no schedule'}"


def clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients down to a norm of `limit` at most, None for any; return their norm before.

    It is 0, on the device of the parameters, where none has a gradient: all may be held. Where the
    host sees at once that they are within the limit, it does not go through them to multiply each
    by 1: a twentieth of a step of HCAT on a CPU.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    norm = nn.utils.get_total_norm([own(gradient) for gradient in gradients])
    if divided := any(is_part(gradient) for gradient in gradients):
        # Each rank has its own part of every gradient, so that squares of norms add up.
        square = norm.square()
        dist.all_reduce(square)
        norm = square.sqrt()
    if limit is None or (norm.is_cpu and bool(norm + 1e-6 <= limit)):
        return norm
    if divided:
        for gradient in gradients:
            own(gradient).mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    else:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def objective(terms: Terms, counts: Mapping[str, Tensor], world: int) -> Tensor:
    """Return `world * sum_i coef_i * sum_i / count_i`: DDP's mean over ranks makes it exact."""
    # A count is 0 where no rank has anything of a term in this step; then its sum is 0 as well.
    parts = [
        term.coef * term.sum / counts[name].clamp(min=1e-12)
        for name, term in terms.items()
        if term.coef
    ]
    return world * torch.stack(parts).sum()


def loss_terms(
    family: AnyFamily,
    model: nn.Module,
    batch: Batch,
    scheduled: Scheduled,
    seed: int,
    precision: str,
) -> Terms:
    """Return the family's terms of a batch, under autocast where `precision` is `bf16`."""
    with autocast(next(iter(batch.values())).device.type, precision):
        return family.loss(model, batch, scheduled, seed)


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast of a precision."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def begin_counts(
    parts: list[Mapping[str, Tensor]], backend: Backend
) -> Callable[[], Mapping[str, Tensor]]:
    """Begin to sum counts over micro-batches and ranks: what waits for them, float64 [] by term."""
    names = [*parts[0]]
    # In float64 sums of whole counts are exact, in whatever order ranks are added.
    stacked = torch.stack([torch.stack([part[n].double() for n in names]) for part in parts])
    wait = backend.begin_sum(stacked.sum(0))
    return lambda: dict(zip(names, wait(), strict=True))


def _counts_of(terms: Terms) -> Mapping[str, Tensor]:
    return {name: term.count.detach() for name, term in terms.items()}
