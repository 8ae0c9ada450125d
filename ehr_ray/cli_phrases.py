"""The verbs on embedded phrases: `phrases` and `export-pt`."""

from typing import Any

from ehr_ray.cli import Arguments, _config_verb, _path, _relative, _screen


def add_phrases(verbs: Any) -> None:
    """Add `phrases`."""

    def run(args: Arguments) -> None:
        from ehr_ray.config import load

        embed(load(args.config, args.overrides), args.verbose)

    _config_verb(
        verbs,
        "phrases",
        run,
        "embed the phrases of a cohort's events by a sentence transformer, on Ray Data",
        "ehr-ray phrases configs/event_decoder.yaml data.cohort=cohorts/p12",
    )


def embed(experiment: Any, verbose: bool) -> None:
    """Embed an experiment's phrases and say where they are."""
    from ehr_ray.runtime.phrases import embed_phrases

    screen = _screen()
    folder, count = embed_phrases(experiment, verbose=verbose, say=screen.passing)
    screen.say(f"{_relative(folder)}: {count:,} phrases, as model.phrases")


def add_export_pt(verbs: Any) -> None:
    """Add `export-pt`."""

    def run(args: Arguments) -> None:
        from ehr_ray.config import load
        from ehr_ray.runtime.export_pt import export_pt

        screen = _screen()
        count = export_pt(
            load(args.config, args.overrides),
            args.output,
            task=args.task,
            skip_unlabelled=args.skip_unlabelled,
            verbose=args.verbose,
            say=screen.passing,
        )
        screen.say(f"{args.output}: {count:,} patients, one .pt each")

    parser = _config_verb(
        verbs,
        "export-pt",
        run,
        "write embedded events as one .pt a patient: embeddings, token_ids, label",
        "ehr-ray export-pt configs/event_decoder.yaml data.cohort=cohorts/p12 --output pt",
    )
    parser.add_argument("--output", type=_path, required=True, help="new folder")
    parser.add_argument("--task", help="label file of the cohort, such as mortality")
    parser.add_argument(
        "--skip-unlabelled", action="store_true", help="leave out patients without a label"
    )
