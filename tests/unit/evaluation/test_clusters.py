import numpy as np
import pytest
import torch

from ehr_ray.evaluation import clusters
from ehr_ray.evaluation.clusters import (
    NOISE,
    Clustering,
    cluster,
    most_stable,
    rates,
    reduced,
    standardised,
    warped,
)


def blobs(number=60, distance=8.0, width=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = distance * np.eye(3, width)
    return np.concatenate([c + rng.normal(size=(number, width)) for c in centres])


def test_groups_that_are_there_are_found_and_stable():
    found = cluster(blobs(), umap=False, resamples=5)
    assert found.number == 3
    assert found.silhouette > 0.5
    assert found.dbcv > 0
    assert found.stability > 0.8
    assert 0 <= found.noise < 0.3
    assert set(found.metrics()) == {
        "clusters",
        "noise_share",
        "silhouette",
        "dbcv",
        "bootstrap_ari",
        "bootstrap_ari/low",
        "bootstrap_ari/high",
    }
    assert found.interval[0] <= found.stability <= found.interval[1] <= 1


def test_patients_are_drawn_with_replacement_and_compared_where_drawn(monkeypatch):
    x, sizes = blobs(40), []
    density = clusters.density_labels

    def seen(rows, share):
        sizes.append((len(rows), len(np.unique(rows, axis=0))))
        return density(rows, share)

    compared = []
    monkeypatch.setattr(clusters, "density_labels", seen)
    monkeypatch.setattr(
        clusters, "adjusted_rand_score", lambda a, b: compared.append((len(a), len(b))) or 0.25
    )
    found = cluster(x, umap=False, resamples=4)
    assert found.stability == found.interval[0] == 0.25
    assert sizes[0] == (120, 120)
    for (drawn, distinct), lengths in zip(sizes[1:], compared, strict=True):
        assert drawn == 120
        assert 60 < distinct < 95
        assert lengths == (distinct, distinct)


def test_all_rows_of_a_patient_are_drawn_together(monkeypatch):
    x, samples = np.arange(60.0)[:, None] + np.zeros((1, 2)), []
    labels = np.repeat([0, 1], 30)

    def seen(rows, share):
        samples.append(rows[:, 0])
        return labels[: len(rows)] if len(samples) == 1 else np.zeros(len(rows), int)

    monkeypatch.setattr(clusters, "density_labels", seen)
    cluster(x, umap=False, subject=np.repeat(np.arange(20), 3), resamples=3)
    for rows in samples[1:]:
        patients, counts = np.unique(rows // 3, return_counts=True)
        assert len(rows) == 60
        assert len(patients) < 20
        for patient, count in zip(patients, counts, strict=True):
            assert set(rows[rows // 3 == patient]) == {3 * patient + i for i in range(3)}
            assert count % 3 == 0


def test_the_clustering_shown_is_the_most_stable_one_that_has_groups():
    def of(number, stability, noise=0.0):
        labels = np.arange(100) % number if number else np.full(100, NOISE)
        labels[: int(100 * noise)] = NOISE
        return Clustering(labels, 0.1, 0.1, stability, (stability, stability))

    many, few, one = of(9, 0.2), of(3, 0.7), of(1, 1.0)
    assert most_stable({"many": many, "few": few, "one": one}) == "few"
    assert most_stable({"few": few, "noisy": of(3, 0.7, 0.3)}) == "few"
    assert most_stable({"none": of(0, np.nan), "one": one}) == "one"
    assert most_stable({"few": of(2, np.nan), "none": of(0, np.nan)}) == "few"


def test_without_samples_there_is_no_index():
    found = cluster(blobs(10), umap=False, resamples=0)
    assert np.isnan([found.stability, *found.interval]).all()


def test_without_a_cluster_there_is_nothing_to_be_stable(monkeypatch):
    monkeypatch.setattr(clusters, "density_labels", lambda x, _: np.full(len(x), NOISE))
    found = cluster(blobs(10), umap=False, resamples=3)
    assert np.isnan([found.stability, *found.interval]).all()


def test_noise_is_not_a_group():
    rng = np.random.default_rng(1)
    found = cluster(rng.uniform(size=(120, 6)), umap=False, resamples=2)
    assert found.number < 2 or found.stability < 0.5
    if found.number < 2:
        assert np.isnan(found.silhouette)
        assert np.isnan(found.dbcv)


def test_groups_after_a_map_are_judged_in_the_original_space():
    x = blobs(30)
    found = cluster(x, umap=True, resamples=1)
    assert found.number >= 2
    inside = found.labels != NOISE
    from sklearn.metrics import silhouette_score

    assert found.silhouette == pytest.approx(silhouette_score(x[inside], found.labels[inside]))


@pytest.mark.parametrize("change", [lambda: reduced(blobs(20), 3), lambda: warped(blobs(20))])
def test_numba_leaves_torch_its_number_of_threads(change):
    before = torch.get_num_threads()
    change()
    assert torch.get_num_threads() == before


def test_a_map_repeats():
    x = blobs(20)
    assert reduced(x, 3).shape == (60, 10)
    np.testing.assert_array_equal(reduced(x, 3), reduced(x, 3))


def test_blocks_weigh_the_same_whatever_their_width_and_scale():
    rng = np.random.default_rng(0)
    wide, narrow = 100 * rng.normal(size=(500, 40)), 0.01 * rng.normal(size=(500, 4))
    x = standardised(wide, narrow)
    assert x.shape == (500, 44)
    assert x[:, :40].var(0).sum() == pytest.approx(x[:, 40:].var(0).sum())


def test_few_patients_are_no_group():
    found = cluster(np.random.default_rng(0).normal(size=(4, 3)), umap=False, resamples=1)
    assert found.number == 0
    assert found.noise == 1


def test_warping_finds_waves_that_differ_in_shape():
    rng = np.random.default_rng(0)
    time = np.linspace(0, 6, 24)
    curves = np.concatenate(
        [
            5 * np.sin(time) + rng.normal(size=(12, 1)) * 0.1,
            np.zeros((12, 24)) + rng.normal(size=(12, 1)) * 0.1,
        ]
    )
    assert warped(curves)["silhouette"] > 0.2
    assert np.isnan(warped(curves[:3])["silhouette"])


def test_rates_are_those_of_each_cluster():
    found = rates(np.array([0, 0, -1, 1]), np.array([True, False, True, False]))
    assert found == {-1: (1, 1.0), 0: (2, 0.5), 1: (1, 0.0)}
