import numpy as np
import pytest

from ehr_ray.evaluation.report import embedding_map as maps
from ehr_ray.evaluation.report.embedding_map import by_umap, embedding_map, evenly, principal


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def points(figure):
    """How many points each panel has."""
    figure.canvas.draw()
    return [sum(len(c.get_offsets()) for c in axis.collections) for axis in figure.axes]


def test_places_are_on_the_directions_of_largest_variance(rng):
    rows = rng.normal(size=(300, 3)) * [1.0, 9.0, 3.0] + 5
    places, share = principal(rows)
    assert abs(np.corrcoef(places[:, 0], rows[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(places[:, 1], rows[:, 2])[0, 1]) > 0.99
    np.testing.assert_allclose(share, [81 / 91, 9 / 91], atol=0.03)
    places, share = principal(rows[:, :1])
    assert places.shape == (300, 2)
    assert (share[0], share[1]) == (pytest.approx(1), 0)


@pytest.mark.parametrize("shape", [(200, 8), (3, 8), (50, 1)])
def test_the_map_draws_wide_narrow_and_tiny_embeddings(rng, shape):
    label = np.arange(shape[0]) % 3 == 0
    assert points(embedding_map(rng.normal(size=shape), label, "mortality")) == [shape[0]]
    assert points(embedding_map(rng.normal(size=shape))) == [shape[0]]


def test_rows_are_chosen_evenly_and_no_more_than_asked(rng):
    assert evenly(9, 3).tolist() == [0, 4, 8]
    assert evenly(2, 5).tolist() == [0, 1]
    assert points(embedding_map(rng.normal(size=(500, 4)), max_points=50)) == [50]


def test_a_second_panel_is_a_umap_of_a_sample_with_the_labels_of_its_rows(rng, monkeypatch):
    seen = []
    monkeypatch.setattr(maps, "by_umap", lambda x, _seed: seen.append(x) or x[:, :2])
    rows, label = rng.normal(size=(300, 4)), np.arange(300) < 30
    figure = embedding_map(rows, label, "death", umap=100)
    assert points(figure) == [300, 100]
    assert len(seen[0]) == 100
    assert "UMAP of 100 patients" in figure.axes[1].get_xlabel()
    kept = label[evenly(300, 100)]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == [
        f"no death ({(~kept).sum()})",
        f"death ({kept.sum()})",
    ]
    assert points(embedding_map(rows[:9], label[:9], umap=100)) == [9]  # too few for one


@pytest.mark.slow
def test_umap_keeps_groups_apart(rng):
    """That `umap` is asked for what a map shows; its first call compiles for a minute."""
    group = np.arange(90) % 3
    rows = rng.normal(size=(90, 5)) + 8 * np.eye(5)[group]
    places = by_umap(rows, 0)
    centres = np.stack([places[group == g].mean(0) for g in range(3)])
    within = max(places[group == g].std(0).max() for g in range(3))
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[np.triu_indices(3, 1)].min()
    assert places.shape == (90, 2)
    assert apart > 3 * within
