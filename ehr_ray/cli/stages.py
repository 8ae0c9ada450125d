"""What a verb does with one experiment, and a pipeline with each of its stages."""

import shlex
from typing import Any

from ehr_ray.cli.parser import relative
from ehr_ray.runtime.screen import Screen


def make_phrases(experiment: Any, screen: Screen, verbose: bool) -> None:
    """Embed the phrases of an experiment."""
    from ehr_ray.commands.phrases import embed_phrases

    folder, count = embed_phrases(experiment, verbose=verbose, say=screen.passing)
    screen.say(f"{relative(folder)}: {count:,} phrases, as model.phrases")


def make_cohort(stage: Any, cohort: str, screen: Screen) -> None:
    """Ingest what a stage of a pipeline asks for into its cohort."""
    from ehr_ray.commands.ingest import ingest
    from ehr_ray.train.allocator import keep_freed_memory

    keep_freed_memory()
    options = dict(stage.options)
    if "units" in options:
        options["conversions"] = options.pop("units")
    screen.say(
        str(
            ingest(
                stage.source,
                stage.input,
                cohort,
                options=stage.source_options,
                progress=screen.passing,
                **options,
            )
        )
    )


def train_run(
    experiment: Any, screen: Screen, verbose: bool, *, judged_later: bool = False
) -> None:
    """Train a run, and evaluate it where it asks for that and no later stage does."""
    from ehr_ray.commands.train.command import train
    from ehr_ray.train.allocator import pass_over_imports

    pass_over_imports()  # this process is a command's, and no other program's
    trained = train(experiment, screen=screen, verbose=verbose)
    if trained.already_finished:
        screen.say(f"{trained.run}: already trained to step {trained.step}; nothing to do")
    best = "" if trained.best is None else f", best selection metric {trained.best:.5g}"
    screen.say(f"{relative(trained.run)}: {trained.step} steps{best}")
    known = trained.already_finished and (trained.run / "metrics.json").is_file()
    if experiment.evaluation.after_training and not judged_later and not known:
        evaluate_run(experiment, screen, verbose)
    else:
        screen.say(f"next: ehr-ray evaluate {shlex.quote(str(relative(trained.run)))}")


def evaluate_run(experiment: Any, screen: Screen, verbose: bool) -> None:
    """Evaluate the run of an experiment."""
    from ehr_ray.commands.evaluate.command import evaluate

    address = experiment.cluster.address
    for line in evaluate(experiment.location, address=address, verbose=verbose, say=screen.passing):
        screen.say(line)
