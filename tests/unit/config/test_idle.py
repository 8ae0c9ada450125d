"""Options that a config makes meaningless are refused by name, with what makes them so."""

from pathlib import Path

import pytest

from ehr_ray.config.idle import idle_paths, is_idle
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import load, parse
from ehr_ray.registry import get_schema

CONFIGS = Path(__file__).parents[3] / "configs"


def read(name, *overrides):
    return load(CONFIGS / f"{name}.yaml", ["data.cohort=cohort", *overrides])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("set_vae", ["task.name=mortality"], r"schedules\.beta: does nothing with a task; drop it"),
        ("visit_jepa_finetune", ["schedules.momentum.end=0.9"], r"schedules\.momentum: .* a task"),
        (
            "event_encoder",
            ["task.hidden_dropout=0.3"],
            r"^task\.hidden_dropout=0\.3: does nothing with task\.hidden=0; drop it, or change",
        ),
        ("event_encoder", ["task.focal_gamma=3"], r"task\.focal_gamma=3\.0: .*task\.loss=bce"),
        ("event_encoder", ["model.next_value_weight=1"], "next_value_weight=1.0: .* a task"),
        (
            "hcat",
            ["model.missing=mask", "model.mask_ratio=0.3"],
            r"model\.mask_ratio=0\.3: does nothing with model\.missing=mask",
        ),
        (
            "visit_jepa",
            ["cluster.num_workers=1", "cluster.strategy=fsdp"],
            r"^cluster\.strategy=fsdp: does nothing with cluster\.num_workers=1; drop it",
        ),
        ("hcat", ["model.contrastive_temp=0.1"], r"model\.alpha_con=0"),
        ("vitals_lstm", ["model.evidence=0.5"], r"model\.objective=published"),
        ("vitals_vq", ["schedules.free_bits=0.2"], r"model\.arch=vq"),
        ("visit_jepa", ["model.mask=future", "model.blocks=2"], r"model\.mask=future"),
        ("seqset_finetune", ["model.named_weight=1"], "model.named_weight=1.0: .* a task"),
        ("set_vae", ["train.restart_epochs=3"], r"train\.lr_schedule=cosine"),
        ("set_vae", ["train.patience_cycles=2"], "schedules none of which is a cycle"),
        ("set_vae", ["data.value_stats=stats.csv"], r"data\.value_stats=.*: .* no data\.expanded"),
        ("set_vae", ["tune.grid_points=4"], r"tune\.method=random"),
        ("set_vae", ["train.seeds=3"], r"^train\.seeds=3: does nothing with no task; drop it"),
        (
            "mortality",
            ["evaluation.stack={network: 1, gbm_rich: 1, logistic_rich: 0}"],
            r"evaluation\.stack=.* evaluation\.ensemble=false",
        ),
        ("set_vae", ["evaluation.ensemble=true"], r"evaluation\.ensemble=True: .* no task"),
        (
            "mortality_ensemble",
            ["task.kind=regression", "task.loss=null", "task.class_weight=none"],
            r"ensemble=True: .*task\.kind=regression",
        ),
        ("mortality_ensemble", ["evaluation.baselines=false"], r"ensemble=True: .*baselines=false"),
        ("set_vae", ["evaluation.hours=[]", "evaluation.hour_patients=9"], r"evaluation\.hours="),
    ],
)
def test_what_a_config_makes_meaningless_is_refused_by_name(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        read(name, *overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vitals_lstm", ["model.hide=0"]),  # nothing is hidden, which is true
        ("set_vae", ["task.name=mortality", "schedules.beta=null", "schedules.free_bits=null"]),
        ("visit_jepa", ["cluster.num_workers=[1,4]", "cluster.strategy=fsdp"]),
        ("vitals_vae", ["model.codebook=64"]),  # its fallback has one
        ("tiny/hcat", ["model.missing=mask", "schedules.beta=null"]),  # sizes of the imputer stay
    ],
)
def test_what_is_off_or_a_default_or_another_architecture_s_size_stays(name, overrides):
    read(name, *overrides)


def test_a_run_whose_options_were_idle_can_still_be_read():
    raw = {"family": "set_vae", "name": "x", "data": {"cohort": "c"}}
    one = parse({**raw, "task": {"name": "t", "focal_gamma": 3.0}, "schedules": {"beta": 0.1}})
    assert one.task.focal_gamma == 3.0


def test_a_path_is_idle_with_the_one_above_it():
    one = parse({"family": "set_vae", "name": "x", "data": {"cohort": "c"}, "task": {"name": "t"}})
    idle = idle_paths(one, get_schema("set_vae"))
    assert is_idle("schedules.beta.end", idle)
    assert not is_idle("schedules.betas", idle)
    assert not is_idle("train.lr", idle)
