import numpy as np
import pytest

from ehr_ray.events.modalities import WIDTH, layout_of, projection
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.vocabulary import Vocabulary

CODES = (
    "BLOOD//Hb",
    "CLINICAL//age",
    "CLINICAL//sex//0",
    "ICD//C01",
    "MEDS_DEATH",
    "RECURRENCE",
    "SPATIAL//QUALITY",
    "SPATIAL//SPREAD",
    "TMA//HE//000",
)
VALUED = np.array([1, 1, 0, 0, 0, 0, 1, 1, 1], bool)


@pytest.fixture
def vocabulary():
    quantiles = np.where(VALUED[:, None], np.zeros((9, 7)), np.nan)
    return Vocabulary(CODES, np.ones(9, np.int64), np.zeros(9), np.ones(9), quantiles)


def test_every_code_has_its_modality_and_outcomes_have_none(vocabulary):
    layout = layout_of(vocabulary)
    names = [MODALITIES[m] if m >= 0 else None for m in layout.modality]
    spatial = ["spatial"] * 3
    assert names == ["temporal", "clinical", "clinical", "semantic", None, None, *spatial]
    assert layout.quality.tolist() == [-1, -1, -1, -1, 6]
    assert layout.spread.tolist() == [-1, -1, -1, -1, 7]
    assert layout.columns[4].tolist() == [8]
    assert layout.marked[0].tolist() == [1]


def test_a_token_keeps_every_distance_and_has_a_variance_of_one(vocabulary):
    layout = layout_of(vocabulary)
    matrix = projection(layout, 0, vocabulary)
    assert matrix.shape == (3, WIDTH)  # age, sex, and whether age is missing
    rows = np.random.default_rng(0).normal(size=(50, 3))
    tokens = rows @ matrix
    scale = np.sqrt(WIDTH / 3)
    ours = np.linalg.norm(tokens[:, None] - tokens[None], axis=-1)
    theirs = np.linalg.norm(rows[:, None] - rows[None], axis=-1) * scale
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    np.testing.assert_array_equal(matrix, projection(layout, 0, vocabulary))


def test_more_columns_than_numbers_are_kept_on_average():
    codes = tuple(f"TMA//HE//{i:04d}" for i in range(1500))
    quantiles = np.zeros((1500, 7))
    wide = Vocabulary(codes, np.ones(1500, np.int64), np.zeros(1500), np.ones(1500), quantiles)
    matrix = projection(layout_of(wide), MODALITIES.index("spatial"), wide)
    assert matrix.shape == (1500, WIDTH)
    rows = np.random.default_rng(0).normal(size=(20, 1500))
    assert np.square(rows @ matrix).mean() == pytest.approx(1, abs=0.1)


def test_an_embedding_is_a_token_as_it_stands():
    codes = ("TEMPORAL//EMBEDDING//003", "TEMPORAL//EMBEDDING//511", "TEMPORAL//QUALITY")
    made = Vocabulary(codes, np.ones(3, np.int64), np.zeros(3), np.ones(3), np.zeros((3, 7)))
    matrix = projection(layout_of(made), MODALITIES.index("temporal"), made)
    assert np.argwhere(matrix).tolist() == [[0, 3], [1, 511]]
