import torch

from ehr_ray.train.seeds import noise_seed, scheduled_at, seed_step
from ehr_ray.train.validate import NOISE_SEED


def test_noise_seeds_differ_by_step_and_seed_and_never_are_that_of_evaluation():
    seeds = [noise_seed(seed, step) for seed in range(20) for step in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) > 1 > NOISE_SEED
    assert max(seeds) < 2**48
    assert noise_seed(2**63 - 1, 10**9) < 2**48


def test_ranks_and_steps_draw_other_numbers_and_the_same_ones_again():
    draws = {}
    for key in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 0)):
        seed_step(*key)
        draw = float(torch.rand(()))
        assert draws.setdefault(key, draw) == draw
    assert len(set(draws.values())) == 4


def test_the_scheduled_values_are_those_of_the_step_and_of_nothing_else(tiny_experiment):
    ramp = {"kind": "ramp", "end": 0.4, "steps": 4}
    experiment = tiny_experiment(changes={"schedules.beta": ramp, "schedules.free_bits": 0.1})
    values = [scheduled_at(experiment, step, 10)["beta"] for step in (0, 2, 4, 9)]
    assert values == [0, 0.2, 0.4, 0.4]
    assert scheduled_at(experiment, 3, 10).keys() == {"beta", "free_bits"}


def test_seeds_stay_those_that_golden_losses_were_made_with():
    assert [noise_seed(0, 0), noise_seed(3, 7)] == [173961102589771, 98936977480967]
    seed_step(3, 7, 1)
    assert torch.initial_seed() == 6497470765166459925


def test_a_longer_run_moves_the_end_of_a_ramp_without_a_length(tiny_experiment):
    changes = {"schedules.momentum": {"kind": "ramp", "start": 0.0, "end": 1.0}}
    at = []
    for epochs, steps in ((2, None), (4, None), (4, 10)):
        plan = {"train.max_epochs": epochs, "train.max_steps": steps}
        experiment = tiny_experiment("jepa", {**changes, **plan})
        at.append(scheduled_at(experiment, 5, 10)["momentum"])
    assert at == [0.25, 0.125, 0.5]
