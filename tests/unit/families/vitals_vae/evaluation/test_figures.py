import numpy as np

from ehr_ray.events.options import VITALS
from ehr_ray.families.vitals_vae.evaluation import figures
from ehr_ray.families.vitals_vae.evaluation.curves import Grids
from ehr_ray.families.vitals_vae.evaluation.figures import (
    CAPTIONS,
    cluster_map,
    cluster_means,
    examples,
)

CENTRE, SPREAD = np.full(7, 80.0), np.full(7, 10.0)


def grids(number=12, hours=30):
    rng = np.random.default_rng(0)
    value = rng.normal(size=(number, hours, 7)).astype(np.float32)
    observed = rng.random(value.shape) < 0.5
    return Grids(np.arange(number), value, observed, observed & (value > 1), value, value)


def test_examples_draw_the_curve_seen_points_and_hidden_ones():
    figure = examples(grids(), VITALS, CENTRE, SPREAD, -24)
    axis = figure.axes[0]
    curve, seen, hidden = axis.lines
    assert curve.get_xdata()[0] == -24
    assert len(curve.get_xdata()) == 30
    assert len(seen.get_xdata()) > 0
    shown = curve.get_ydata()[np.isin(curve.get_xdata(), hidden.get_xdata())]
    np.testing.assert_allclose(shown, hidden.get_ydata(), rtol=1e-5)


def test_a_line_a_cluster_in_every_panel():
    labels = np.array([0, 1, -1] * 4)
    figure = cluster_means(grids(), labels, VITALS, CENTRE, SPREAD, 0)
    assert all(len(axis.lines) == 3 for axis in figure.axes[:7])
    assert "noise (4)" in figure.axes[0].get_legend_handles_labels()[1]
    assert all(50 < y < 110 for y in figure.axes[0].lines[0].get_ydata())


def test_the_map_shows_every_patient():
    figure = cluster_map(np.random.default_rng(0).normal(size=(9, 4)), np.array([0, 1, -1] * 3))
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 9
    assert len(figure.axes) == 1


def test_the_map_by_umap_shows_a_sample_with_its_clusters(monkeypatch):
    monkeypatch.setattr(figures, "by_umap", lambda rows, _seed: rows[:, :2])
    latent = np.random.default_rng(0).normal(size=(30, 4))
    figure = cluster_map(latent, np.array([0, 1, -1] * 10), umap=12)
    shown = [sum(len(line.get_xdata()) for line in axis.lines) for axis in figure.axes]
    assert shown == [30, 12]


def test_figures_have_captions():
    assert set(CAPTIONS) == {"vitals_examples", "vitals_clusters", "vitals_map"}
