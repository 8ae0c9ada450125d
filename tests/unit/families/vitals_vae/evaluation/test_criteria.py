"""The parts; test_vitals.py has the criteria as a suite gives them."""

import numpy as np
import pyarrow as pa

from ehr_ray.families.vitals_vae.evaluation.criteria import matrix, summaries
from ehr_ray.families.vitals_vae.evaluation.curves import Grids


def test_a_list_column_is_a_matrix():
    column = pa.chunked_array([[[1.0, 2.0]], [[3.0, 4.0]]], pa.list_(pa.float32()))
    np.testing.assert_array_equal(matrix(pa.table({"x": column}), "x"), [[1, 2], [3, 4]])


def test_summaries_are_of_observed_cells():
    value = np.array([[[1.0, 9], [3, 9]]], np.float32)
    observed = np.array([[[True, False], [True, False]]])
    one = Grids(np.arange(1), value, observed, observed, value, value)
    found = summaries(one)[0]
    np.testing.assert_array_equal(found[[0, 2, 4, 6]], [2, 1, 3, 2])
    assert np.isnan(found[[1, 3, 5]]).all()
