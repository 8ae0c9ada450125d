from types import SimpleNamespace

import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.family import Learnable, Select, Training
from ehr_ray.train.data_checks import check_learnable, check_measured

USABLE = Learnable(lambda store: store.sizes("x") >= 2, "2 values", lambda config: f"set {config}")


@pytest.fixture
def loader(tmp_path):
    """Splits of patients with so many values each: loader(train=[2, 3], tuning=[1])."""

    def make(**splits):
        stores = {}
        for split in ("train", "tuning"):
            path = tmp_path / f"{split}.arrow"
            write_block(path, [{"x": np.zeros(n)} for n in splits.get(split, [])])
            stores[split] = BlockStore([path])
        return SimpleNamespace(**stores)

    return make


@pytest.mark.parametrize("split", ["train", "tuning"])
def test_a_split_nobody_can_be_learned_from_is_refused(loader, split):
    splits = {"train": [2, 2], "tuning": [2], split: [1, 0, 1]}
    with pytest.raises(InputError) as caught:
        check_learnable(
            SimpleNamespace(training=Training(learnable=USABLE)), "rows=hours", loader(**splits)
        )
    assert str(caught.value) == f"{split} split: none of 3 patients has 2 values; set rows=hours"


def test_few_usable_patients_are_told_with_their_share(loader):
    family = SimpleNamespace(training=Training(learnable=USABLE))
    lines = check_learnable(family, None, loader(train=[1, 1, 1, 5], tuning=[2, 1]))
    assert lines == [
        "train: only 1 of 4 patients (25%) have 2 values; nothing is learned from the others"
    ]
    assert check_learnable(family, None, loader(train=[2, 2])) == []
    assert (
        check_learnable(SimpleNamespace(training=Training(learnable=None)), None, loader(train=[0]))
        == []
    )


def test_a_metric_of_nothing_chooses_no_checkpoint(loader):
    family = SimpleNamespace(select=Select("val/a", "min", "give more"))
    some, none = loader(train=[1], tuning=[1, 1]), float("nan")
    with pytest.raises(InputError, match=r"val/a: is no number on 2 tuning rows.*; give more"):
        check_measured(family, {"val/a": none}, some, None)
    check_measured(family, {"val/a": none}, some, 3.0)  # an earlier one is kept
    check_measured(family, {"val/a": 0.0}, some, None)
    check_measured(family, {"val/b": none}, some, None)
    check_measured(family, {"val/a": none}, loader(train=[1]), None)
