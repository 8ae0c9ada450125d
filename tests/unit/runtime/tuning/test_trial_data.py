import pytest

from ehr_ray.config.search import Choice, Uniform
from ehr_ray.errors import ConfigError
from ehr_ray.runtime.tuning.trial_data import data_paths, datasets


def test_only_what_changes_rows_is_data(tiny_config, synthetic_cohort):
    given = tiny_config(**{"data.cohort": synthetic_cohort})
    space = {
        "train.lr": Uniform(0.1, 1.0),
        "model.latent": Choice((8, 16)),
        "data.batch_size": Choice((8, 16)),
        "model.carry_minutes": Choice((60, 600)),
        "data.min_code_count": Choice((1, 5)),
        "data.scale": Choice(("robust", "standard")),
    }
    wanted = ["model.carry_minutes", "data.min_code_count", "data.scale"]
    assert data_paths(given, space) == wanted


def test_each_choice_of_data_gets_its_dataset_and_a_range_is_refused(
    tiny_config, synthetic_cohort, tmp_path
):
    given = tiny_config(**{"data.cohort": synthetic_cohort, "output": tmp_path})
    space = {"model.carry_minutes": Choice((60, 600)), "train.lr": Uniform(0.1, 1.0)}
    with datasets(given, space, "outcome", on_ray=False) as found:
        samples = [{"model.carry_minutes": m, "train.lr": 0.2} for m in (60, 600)]
        parts = [found.of(sample).here() for sample in samples]
        assert [p.base["model"]["carry_minutes"] for p in parts] == [60, 600]
        rows = [p.own.store("train") for p in parts]
        assert rows[0].lengths.sum() < rows[1].lengths.sum()
        assert set(parts[0].probe.store("tuning").column("label").tolist()) <= {0.0, 1.0}
    space["model.carry_minutes"] = Uniform(60, 600)
    with (
        pytest.raises(ConfigError, match=r"search\.model\.carry_minutes: changes the model-ready"),
        datasets(given, space, None, on_ray=False),
    ):
        pass


def test_trials_share_rows_so_none_are_streamed(tiny_config, synthetic_cohort):
    given = tiny_config(**{"data.cohort": synthetic_cohort, "data.mode": "stream"})
    with (
        pytest.raises(ConfigError, match=r"data\.mode=stream: trials of a search share rows"),
        datasets(given, {}, None, on_ray=False),
    ):
        pass
