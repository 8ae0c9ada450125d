"""The table of verbs: name, help, example, what it does, and its options."""

from pathlib import Path

from ehr_ray.cli import actions
from ehr_ray.cli.ingest import add_source, add_source_options
from ehr_ray.cli.parser import number, path, positive
from ehr_ray.cli.verb import Verb, option
from ehr_ray.cli.zero_shot import add_zero_shot
from ehr_ray.storage.paths import location

RUN = option("run_folder", "folder of a trained run", metavar="RUN", type=location)
ADDRESS = option("--address", "Ray cluster to join")
CODE_MAP = option(
    "--code-map",
    "codes renamed and values scaled: eicu or mimic-iv (to the names and units of PhysioNet 2012), "
    "or a CSV file of code,to,scale,offset",
    metavar="CSV",
)
TRACKING = (
    option(
        "--tracking-uri",
        "MLflow that gets a run of this (default MLFLOW_TRACKING_URI; with neither, none does)",
        metavar="URI",
    ),
    option("--experiment", "of that MLflow run (default ehr_ray)", metavar="NAME"),
)
MIN_KNOWN_EVENTS = option(
    "--min-known-events",
    "share of another cohort's events whose codes the model must know, or of the events it was "
    "trained on whose codes the cohort must have (default 0.5)",
    type=number,
    default=0.5,
)
GPUS = option(
    "--gpus",
    "GPUs of each process that predicts, where a run trained in bf16 does so (default 0: CPUs)",
    type=number,
    default=0.0,
    metavar="N",
)
OVERRIDES = option("overrides", "values to change", nargs="*", default=[], metavar="a.b=value")
CONFIG = (option("config", "YAML of the experiment; see configs/", type=Path), OVERRIDES)


VERBS = (
    Verb(
        "quickstart",
        "ingest, LVCF, train, evaluate and report on synthetic patients, in minutes",
        "ehr-ray quickstart --output quickstart",
        actions.quickstart,
        (option("--output", "new folder", type=path, default="quickstart"),),
    ),
    Verb(
        "ingest",
        "turn raw data into a cohort: a MEDS dataset with splits, statistics and labels",
        "ehr-ray ingest --source physionet2012 --input physionet2012/ --output cohorts/p12",
        actions.ingest,
        (
            add_source,
            option("--input", "file, folder, URI or database of raw data", type=location),
            option("--output", "folder or URI of the cohort", type=location, required=True),
            option(
                "--splits",
                "shares of train,tuning,held_out (default 0.8,0.1,0.1, or the source's own), "
                "all:held_out, or a CSV or Parquet table of subject_id and split, kept as written",
            ),
            option(
                "--origin",
                "codes whose first event is a subject's minute 0 (default: the usual names of an "
                "admission, as HOSPITAL_ADMISSION, ICU_ADMISSION, VISIT//IP; never a birth)",
                metavar="CODE[,CODE]",
            ),
            option("--seed", "of the hash that splits subjects", type=int, default=0),
            option(
                "--max-rejected", "share of bad rows or files allowed", type=number, default=0.01
            ),
            option(
                "--ranges",
                "plausible values by code; those outside are left out and counted: none, "
                "physionet2012, mimic-iv, eicu, or a CSV file of code,low,high,unit (default: the "
                "source's own, else none)",
            ),
            option(
                "--units",
                "conversions of units: none, mimic-iv, or a CSV file of "
                "code,unit,to,factor,offset, for codes that end in //unit (default: the source's "
                "own, else none)",
            ),
            option(
                "--repeats",
                "keep or drop exact repeats of a row; they are counted either way (default keep)",
                default="keep",
            ),
            CODE_MAP,
            option(
                "--split-by",
                "static code, such as HOSPITAL: everybody who shares a value of it (CODE//value) "
                "comes into one split",
                metavar="CODE",
            ),
            option(
                "--unlisted",
                "subjects that the table of --splits leaves out: refuse the input (default), or "
                "drop them, counted",
                default="refuse",
            ),
            option("--cpus", "1: this process; more: as Ray Data tasks", type=positive),
            *TRACKING,
            add_source_options,
        ),
    ),
    Verb(
        "expand",
        "carry last values forward over a cohort, as a distributed Ray Data job, to Parquet",
        "ehr-ray expand cohorts/p12 --output expanded/p12 --lvcf-minutes 2880",
        actions.expand,
        (
            option("cohort", "folder or URI of the cohort", type=location),
            option("--output", "folder of the expansion", type=location, required=True),
            option(
                "--lvcf-minutes", "longest age carried (default 2880)", type=number, default=2880.0
            ),
            option("--always-carry", "codes carried for ever: a,b,c", default=""),
            option("--value-stats", "CSV of code, mean, std for z-scores", type=location),
            option(
                "--scale",
                "of values: standard by mean and standard deviation of train (default), robust by "
                "median and interquartile range",
                choices=("standard", "robust"),
                default="standard",
            ),
            option(
                "--origin",
                "codes whose first event is minute 0, for a dataset used as it stands (default: "
                "those of its ingest, else the usual names of an admission)",
                metavar="CODE[,CODE]",
            ),
            option("--smoke", "try the first shard, and keep nothing", action="store_true"),
            *TRACKING,
            ADDRESS,
        ),
    ),
    Verb(
        "labels",
        "label a cohort by a task written in ACES, on Ray Data (needs ehr_ray[aces])",
        "ehr-ray labels in_icu_mortality.yaml --cohort cohorts/p12 --task mortality_24h",
        actions.labels,
        (
            option("config", "ACES file: predicates, trigger, windows", metavar="FILE", type=Path),
            option("--cohort", "cohort to label", type=location, required=True),
            option("--task", "name of the labels (default: that of the file)"),
            option(
                "--predicates", "ACES file of predicates, in place of the first's", type=location
            ),
            ADDRESS,
        ),
    ),
    Verb(
        "phrases",
        "embed the phrases of a cohort's events by a sentence transformer, on Ray Data",
        "ehr-ray phrases configs/event_decoder.yaml data.cohort=cohorts/p12",
        actions.phrases,
        CONFIG,
    ),
    Verb(
        "export-pt",
        "write embedded events as one .pt a patient: embeddings, token_ids, label",
        "ehr-ray export-pt configs/event_decoder.yaml data.cohort=cohorts/p12 --output pt",
        actions.export_pt,
        (
            *CONFIG,
            option("--output", "new folder", type=path, required=True),
            option("--task", "label file of the cohort, such as mortality"),
            option("--skip-unlabelled", "leave out patients without a label", action="store_true"),
            option("--float16", "embeddings in half the space", action="store_true"),
        ),
    ),
    Verb(
        "prepare",
        "materialise a family's model-ready dataset, the same rows training streams",
        "ehr-ray prepare configs/set_vae.yaml data.cohort=cohorts/p12",
        actions.prepare,
        (
            *CONFIG,
            option(
                "--export",
                "file to write all patients to in the family's own format (hourly_tensors.h5)",
                type=location,
            ),
        ),
    ),
    Verb(
        "train",
        "train by Ray Train, one run or a pipeline of them; the same command again resumes",
        "ehr-ray train configs/set_vae.yaml data.cohort=cohorts/p12 cluster.num_workers=2",
        actions.train,
        (
            *CONFIG,
            option(
                "--smoke",
                "try three steps and a validation, in a folder that is removed again",
                action="store_true",
            ),
        ),
        resumes=True,
    ),
    Verb(
        "tune",
        "search a config's space by Ray Tune; the same command again resumes",
        "ehr-ray tune configs/set_vae.yaml data.cohort=cohorts/p12 tune.trials=16 name=sweep",
        actions.tune,
        CONFIG,
        resumes=True,
        more="What varies is `search` of the config, else the family's own space; how is `tune`:\n"
        "tune.trials=16, tune.method=random|grid|optuna, tune.scheduler=asha|median|pbt|none,\n"
        "tune.rank=metric|probe, tune.concurrent=2 (trials at a time).",
    ),
    Verb(
        "crossval",
        "train and evaluate on repeated stratified folds, as parallel Ray jobs, beside ablations",
        "ehr-ray crossval configs/hcat.yaml data.cohort=cohorts/hancock --folds 5 --repeats 2",
        actions.crossval,
        (
            *CONFIG,
            option("--folds", "parts of the cohort, in place of crossval.folds", type=int),
            option("--repeats", "divisions anew, in place of crossval.repeats", type=int),
            option("--members", "seeds averaged in each fold", type=int),
            option("--variants", "ablations to run, of crossval.variants: no_gate,no_linear"),
            option("--variant-repeats", "repeats the ablations are run on", type=int),
            option("--task", "label files of the cohort, such as mortality,readmission"),
            option("--cpus", "CPUs of the Ray started here", type=positive),
        ),
        resumes=True,
    ),
    Verb(
        "evaluate",
        "measure a run beside simple baselines: metrics, figures and report.html",
        "ehr-ray evaluate runs/set_vae --task mortality",
        actions.evaluate,
        (
            RUN,
            option("--cohort", "another cohort; nothing is refitted on it", type=location),
            option("--split", "split reported on (default held_out)", default="held_out"),
            option(
                "--task",
                "label file of the cohort, such as mortality; none: no labels, whole stays",
            ),
            option("--output", "folder of the results", type=location),
            option(
                "--recalibrate",
                "share of another cohort's subjects on which intercept and slope are refitted; "
                "calibration is measured on the others before and after",
                type=number,
                metavar="SHARE",
            ),
            option(
                "--explain",
                "patients at highest risk of whom the report shows what the risk was read from, by "
                "variable and hour (default 0)",
                type=int,
                default=0,
                metavar="N",
            ),
            option(
                "--label-shares",
                "shares of train's labelled patients, as 0.01,0.1: the task is learned from each "
                "anew, by a probe of the model and by the baselines, ten times",
                metavar="A,B",
                default="",
            ),
            add_zero_shot,
            MIN_KNOWN_EVENTS,
            CODE_MAP,
            GPUS,
            ADDRESS,
        ),
    ),
    Verb(
        "embed",
        "embed a cohort by batch inference on Ray Data: one row a patient",
        "ehr-ray embed runs/set_vae --cohort cohorts/p12 --output p12.parquet",
        actions.embed,
        (
            RUN,
            option("--cohort", "cohort to embed", type=location, required=True),
            option(
                "--output",
                "NAME.parquet: one file; any other name: a folder with a file a shard, which the "
                "same command completes",
                type=location,
                required=True,
            ),
            MIN_KNOWN_EVENTS,
            CODE_MAP,
            GPUS,
            ADDRESS,
        ),
    ),
    Verb(
        "export",
        "write a run's model to a folder to hand on: weights, codes, a model card, predict.py",
        "ehr-ray export runs/set_vae models/set_vae",
        actions.export,
        (
            RUN,
            option("output", "new folder", metavar="DIR", type=path),
            option(
                "--torch-export",
                "also write model.pt2, a program that torch runs without this package; not of "
                "models of sets",
                action="store_true",
            ),
        ),
    ),
    Verb(
        "benchmark",
        "measure speed as ratios within one run: LVCF, loading, training bare and on Ray, a model",
        "ehr-ray benchmark --output benchmark.json\n"
        "  ehr-ray benchmark --config configs/benchmark/set_vae.yaml data.cohort=cohorts/p12",
        actions.benchmark,
        (
            option("--output", "JSON file", type=path, default="benchmark.json"),
            option("--cohort", "cohort to measure on; default is synthetic", type=path),
            option(
                "--only",
                "parts to run: a,b,c (default lvcf, loading, steps, workers, memory and vitals; "
                "with --config model); cpu, ddp, faults, gpu, ingest, peers, scaling, search and "
                "size only by name",
            ),
            option("--device", "of the part gpu: cuda, or cpu for a small run without one"),
            option(
                "--config", "experiment whose training speed is measured (part model)", type=Path
            ),
            OVERRIDES,
        ),
    ),
    Verb(
        "doctor",
        "tell what of this machine a run would use, and what would be in its way",
        "ehr-ray doctor\n"
        "  ehr-ray doctor configs/set_vae.yaml data.cohort=cohorts/p12 cluster.num_workers=4",
        actions.doctor,
        (
            option("config", "YAML of an experiment to be run here", nargs="?", type=Path),
            OVERRIDES,
            option("--ray", "start Ray too, and run a task on it", action="store_true"),
        ),
    ),
    Verb(
        "new-family",
        "write the files of a new model family, its line in the registry and its tests",
        "ehr-ray new-family my_family",
        actions.new_family,
        (option("name", "of the family: small letters, digits and _", metavar="NAME"),),
    ),
)
