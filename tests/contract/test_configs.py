from pathlib import Path

import pytest

from ehr_ray.commands.train.pipeline import is_pipeline, load_pipeline
from ehr_ray.config.search import Choice, parse_domain
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.experiment import dump, parse
from ehr_ray.registry import FAMILIES, get_family

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name != "kubernetes" and not is_pipeline(path)
)
KEYS = (
    "name",
    "output",
    "seed",
    "init_from",
    "data.cohort",
    "data.batch_size",
    "train.max_epochs",
    "train.max_steps",
    "cluster.num_workers",
    "cluster.cpus_per_worker",
    "cluster.gpus_per_worker",
    "search",
    "tracking.experiment",
)


def has(raw, path):
    for key in path.split("."):
        if not isinstance(raw, dict) or key not in raw:
            return False
        raw = raw[key]
    return True


def ends(domain):
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_parses_and_states_the_keys_of_the_contract(path):
    raw = read_yaml(path)
    experiment = parse(raw)
    assert [key for key in KEYS if not has(raw, key)] == []
    assert experiment.name.endswith(path.stem)
    assert parse(dump(experiment)) == experiment


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_both_ends_of_every_search_domain_are_valid(path):
    raw = read_yaml(path)
    family = get_family(raw["family"])
    domains = dict(family.search_space)
    domains |= {key: parse_domain(value, key) for key, value in (raw["search"] or {}).items()}
    for key, domain in domains.items():
        for value in ends(domain):
            parse(override(raw, {key: value}))
        low, high = ends(domain)[0], ends(domain)[-1]
        assert dump(parse(override(raw, {key: low}))) != dump(parse(override(raw, {key: high})))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_configs_and_a_search_space_for_a_bare_experiment(name):
    stated = {path.parent.name for path in FILES if read_yaml(path)["family"] == name}
    assert stated - {"benchmark"} == {"configs", "tiny"}
    bare = {"family": name, "name": "x", "data": {"cohort": "c"}}
    for key, domain in get_family(name).search_space.items():
        for value in ends(domain):
            parse(override(bare, {key: value}))


def test_every_config_has_its_tiny_twin():
    names = {path.name for path in CONFIGS.glob("*.yaml")}
    assert names == {path.name for path in (CONFIGS / "tiny").glob("*.yaml")}


@pytest.mark.parametrize("folder", [CONFIGS, CONFIGS / "tiny"], ids=["configs", "tiny"])
def test_every_stage_of_a_pipeline_is_a_config_and_starts_from_the_one_before(folder):
    stages = load_pipeline(folder / "event_pipeline.yaml").stages
    assert [stage.verb for stage in stages] == ["phrases", "train", "train", "evaluate"]
    assert stages[2].experiment.init_from == str(stages[1].experiment.directory)
    assert stages[3].experiment.directory == stages[2].experiment.directory


@pytest.mark.parametrize("folder", [".", "tiny"])
def test_the_ensemble_of_mortality_has_the_network_of_mortality(folder):
    one, other = (read_yaml(CONFIGS / folder / f"mortality{n}.yaml") for n in ("", "_ensemble"))
    assert other.pop("evaluation")["ensemble"]
    for apart in ("evaluation", "crossval"):
        one.pop(apart, None)
    assert other.pop("name") == f"{one.pop('name')}_ensemble"
    assert one == other
