"""The training loop, once for every family and every backend."""

from pathlib import Path

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily
from ehr_ray.train.backend import Backend
from ehr_ray.train.checkpoint import Progress, load_state
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import (
    learning_rate,
    make_optimizer,
    set_lr,
    set_weight_decay,
    weight_decay,
)
from ehr_ray.train.report import SILENT, Reporter, Run, Watch
from ehr_ray.train.seeds import noise_seed, scheduled_at, seed_step
from ehr_ray.train.start import starting_model
from ehr_ray.train.step import OptimizerStep


def train(
    experiment: Experiment,
    family: AnyFamily,
    vocabulary: Vocabulary,
    loader: Loader,
    backend: Backend,
    folder: Path,
    watch: Watch = SILENT,
) -> Progress:
    """Train to the end of the plan, from the last state in `folder` if there is one.

    The result depends on the experiment and the data alone: order, noise and schedules are
    functions of (seed, step), so a run killed anywhere ends with the same weights.
    """
    run = Run(experiment, family, vocabulary, loader, backend, folder, watch)
    plan, per_epoch, total = experiment.train, loader.steps_per_epoch, run.total_steps
    module = starting_model(run)
    model = backend.wrap(module)
    # After the backend: a sharded model has other parameters by then, which a state is put into.
    optimizer = make_optimizer(module, plan)
    progress = load_state(folder, module, optimizer) or Progress()
    sums = Sums(backend)
    take_step = OptimizerStep(experiment, family, model, optimizer, backend, sums)
    reporter = Reporter(run, module, optimizer, progress, sums)
    batches = loader.steps(progress.step, total, backend)
    while progress.step < total and not progress.finished:
        # Whatever a step draws or looks up is a function of its number: a resumed run repeats it.
        step = progress.step
        seed_step(experiment.seed, step, backend.rank)
        scheduled = scheduled_at(experiment, step, per_epoch)
        lr = learning_rate(step, total, plan, progress.reductions, per_epoch)
        set_lr(optimizer, lr, step / per_epoch)
        set_weight_decay(optimizer, weight_decay(step, total, plan))
        micro = reporter.waited_for(batches)  # made ahead by the loader, so seldom waited for
        norm = take_step(micro, scheduled, noise_seed(experiment.seed, step))
        if family.training.after_step:
            family.training.after_step(module, scheduled)
        progress.step = step + 1
        if backend.rank == 0:
            watch.on_step(progress.step, total)
        every = plan.kept_every(per_epoch)
        keep = every is not None and progress.step % every == 0
        # The last step is reported too, so that no training is lost for want of a report.
        report = progress.step % run.report_steps == 0 or progress.step == total
        if keep or report:
            take_step.check()  # before anything is written: of a GPU nobody has looked until now
        if keep:
            reporter.keep_checkpoint()
        if report:
            reporter.report({"lr": lr, **scheduled, "grad_norm": float(norm)})
    batches.close()  # the loader's threads end with it
    return progress
