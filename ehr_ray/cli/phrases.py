"""The verbs on embedded phrases: `phrases` and `export-pt`."""

from typing import Any

from ehr_ray.cli.parser import Arguments, config_verb, new_screen, path, relative


def phrases_arguments(verbs: Any) -> None:
    """Add `phrases`."""

    def run(args: Arguments) -> None:
        from ehr_ray.experiment import load

        embed(load(args.config, args.overrides), args.verbose)

    config_verb(
        verbs,
        "phrases",
        run,
        "embed the phrases of a cohort's events by a sentence transformer, on Ray Data",
        "ehr-ray phrases configs/event_decoder.yaml data.cohort=cohorts/p12",
    )


def embed(experiment: Any, verbose: bool) -> None:
    """Embed an experiment's phrases and say where they are."""
    from ehr_ray.commands.phrases import embed_phrases

    screen = new_screen()
    folder, count = embed_phrases(experiment, verbose=verbose, say=screen.passing)
    screen.say(f"{relative(folder)}: {count:,} phrases, as model.phrases")


def export_pt_arguments(verbs: Any) -> None:
    """Add `export-pt`."""

    def run(args: Arguments) -> None:
        from ehr_ray.commands.export_pt import export_pt
        from ehr_ray.experiment import load

        screen = new_screen()
        count = export_pt(
            load(args.config, args.overrides),
            args.output,
            task=args.task,
            skip_unlabelled=args.skip_unlabelled,
            verbose=args.verbose,
            say=screen.passing,
        )
        screen.say(f"{relative(args.output)}: {count:,} patients, one .pt each")

    parser = config_verb(
        verbs,
        "export-pt",
        run,
        "write embedded events as one .pt a patient: embeddings, token_ids, label",
        "ehr-ray export-pt configs/event_decoder.yaml data.cohort=cohorts/p12 --output pt",
    )
    parser.add_argument("--output", type=path, required=True, help="new folder")
    parser.add_argument("--task", help="label file of the cohort, such as mortality")
    parser.add_argument(
        "--skip-unlabelled", action="store_true", help="leave out patients without a label"
    )
