import numpy as np
import torch

from ehr_ray.family import Term
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.meters import Sums


def test_means_are_over_items_not_over_batches():
    sums = Sums(LocalBackend())
    for total, count in ((10.0, 1.0), (2.0, 3.0)):
        sums.add({"a": Term(torch.tensor(total), torch.tensor(count), coef=2.0)})
    assert sums.means("train") == {"train/a": 3.0, "train/objective": 6.0}
    assert sums.means("train") == {}


def test_a_term_of_nothing_is_no_number_and_no_part_of_the_objective():
    one, nothing = torch.tensor(3.0), torch.tensor(0.0)
    sums = Sums(LocalBackend())
    sums.add({"a": Term(one, torch.tensor(1.0)), "b": Term(nothing, nothing)})
    found = sums.means("val")
    assert (found["val/a"], found["val/objective"]) == (3.0, 3.0)
    assert np.isnan(found["val/b"])
    sums = Sums(LocalBackend())
    sums.add({"b": Term(nothing, nothing), "log": Term(one, torch.tensor(1.0), coef=0.0)})
    assert np.isnan(sums.means("val")["val/objective"])
