"""The suites on what a small trained-for-nothing model gives: tables, criteria, files, figures."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.families.vitals_vae.evaluation import curves, suites
from ehr_ray.families.vitals_vae.evaluation import files as vitals_files
from ehr_ray.families.vitals_vae.evaluation.criteria import grids_of, judge
from ehr_ray.families.vitals_vae.evaluation.suites import clusters, files, reconstruction
from ehr_ray.families.vitals_vae.family import FAMILY
from ehr_ray.train.prediction_tables import entries_table, list_column

NAMES = ("DBP", "HR", "MAP", "RR", "SBP", "SPO2", "TEMP")
WORDS = Vocabulary(NAMES, np.ones(7, np.int64), np.full(7, 80.0), np.full(7, 10.0))
TINY = {"first_hour": -24, "last_hour": 79, "width": 8, "stem": 4, "latent": 6}
CODES = {"codebook": 16, "code_groups": 2, "code_width": 4}


def part(model, first, number, labelled=True, apart=0.0):
    rng = np.random.default_rng(first)
    hours = model.config.num_hours
    observed = torch.tensor(rng.random((number, hours, 7)) < 0.3)
    level = torch.tensor(rng.normal(size=(number, 1, 7)), dtype=torch.float32)
    level = level + apart * (torch.arange(number) % 2 * 2 - 1)[:, None, None]
    value = (level + 0.3 * torch.randn(number, hours, 7)) * observed
    ids = torch.arange(first, first + number)
    batch = {"subject_id": ids, "value": value, "observed": observed}
    with torch.no_grad():
        samples = {name: list_column(v) for name, v in FAMILY.predict(model, batch).items()}
        outputs = {**FAMILY.evaluation.outputs, "latents": FAMILY.evaluation.latents}
        found = {name: function(model, batch) for name, function in outputs.items()}
    tables = {
        name: entries_table(columns, torch.arange(number))
        for name, columns in found.items()
        if columns
    }
    label = level[:, 0, 1].numpy() > 0 if labelled else None
    return SplitPredictions(
        pa.table({"subject_id": pa.array(ids.numpy()), **samples}), tables, label
    )


def make(tmp_path, arch="conv", labelled=True, train=120, apart=0.0):
    torch.manual_seed(0)
    model = FAMILY.build(VitalsVAEConfig(arch=arch, **TINY, **CODES), WORDS).eval()
    return SuiteInput(
        split="held_out",
        judged=part(model, 10_000, 40, labelled),
        fit={
            "train": part(model, 1, train, labelled, apart),
            "tuning": part(model, 5000, 30, labelled),
        },
        model=model.config,
        vocabulary=WORDS,
        target=tmp_path,
        num_bootstrap=50,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def measured(given):
    return reconstruction(given)


def row(table, start):
    return next(r for r in table.rows if str(r[0]).startswith(start))


def test_an_untrained_model_fails_where_it_must(measured):
    criteria = measured.sections["Criteria"]
    assert row(criteria, "error of seen cells less that of the patient mean")[3] == "fail"
    assert row(criteria, "divergence")[3] == "fail"
    assert {r[3] for r in criteria.rows} <= {"pass", "fail"}
    assert measured.metrics["held_out/criteria/number"] == len(criteria.rows) == 8
    assert row(criteria, "mean log-variance")[1] == "above -5"
    assert measured.lines[0].startswith("criteria: ")


@pytest.fixture(scope="module")
def errors(given):
    return curves.measure(grids_of(given, given.judged), suites.references_of(given))


@pytest.mark.parametrize(
    ("spread", "logvar", "verdicts"),
    [
        (0.8, -1.0, ["pass", "pass", "pass"]),  # 0.5 nats a dimension
        (0.2, -1.0, ["pass", "fail", "pass"]),
        (0.8, -7.0, ["fail", "pass", "fail"]),  # a point: 3.3 nats
        (0.0, 0.0, ["fail", "fail", "pass"]),  # collapsed
    ],
)
def test_criteria_of_the_latent_are_met_by_what_they_ask_for(
    given, errors, spread, logvar, verdicts
):
    normal = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32)
    mu = spread * (normal - normal.mean(0)) / normal.std(0)
    sizes = {"mu": mu, "logvar": np.full_like(mu, logvar)}
    lists = {name: list_column(torch.from_numpy(found)) for name, found in sizes.items()}
    tables = {**given.judged.tables, "latents": pa.table(lists)}
    judged = replace(given, judged=replace(given.judged, tables=tables), num_bootstrap=2)
    criteria, _, _ = judge(judged, errors)
    names = ("divergence", "standard deviation across patients", "mean log-variance")
    assert [row(criteria, name)[3] for name in names] == verdicts


def test_the_rows_are_in_the_metrics_and_the_table(measured):
    table = measured.sections["Reconstructed curves"]
    assert len(table.rows) == 8
    assert row(table, "last value")[1] == "-"
    mean = measured.metrics["held_out/curves/cohort_mean/hidden/mse"]
    own = measured.metrics["held_out/curves/patient_mean/hidden/mse"]
    assert row(table, "patient mean")[4] == pytest.approx(1 - own / mean)
    assert own < 0.5 * mean


def test_errors_are_given_in_units_of_each_vital(measured):
    z = measured.metrics["held_out/curves/model/hidden/HR/mse"]
    assert measured.metrics["held_out/curves/model/hidden/HR/rmse_unit"] == pytest.approx(
        10 * z**0.5
    )
    assert len(measured.sections["Reconstruction by vital sign"].rows) == 7


def test_windows_beyond_the_grid_are_left_out(measured):
    names = [r[0] for r in measured.sections["Reconstruction by window"].rows]
    assert names == ["before admission", "0 to 24 h", "24 to 72 h", "72 to 168 h"]


def test_the_landmark_is_judged_beside_simple_features(measured):
    found = row(measured.sections["Criteria"], "AUROC at the landmark")
    assert "embedding 0." in found[2]
    assert "features" in found[2]
    for name in ("embedding", "features"):
        assert f"{measured.metrics[f'held_out/landmark/{name}/auroc']:.3f}" in found[2]


def test_without_labels_there_is_no_landmark(tmp_path):
    criteria = reconstruction(make(tmp_path, labelled=False)).sections["Criteria"]
    assert not [r for r in criteria.rows if str(r[0]).startswith("AUROC")]


def test_codes_are_judged_by_their_perplexity(tmp_path):
    result = reconstruction(make(tmp_path, arch="vq"))
    criteria, used = result.sections["Criteria"], result.metrics["held_out/codes/used"]
    found = row(criteria, "perplexity")
    assert f"{used:.0f} of 16 entries used" in found[2]
    assert 1 <= result.metrics["held_out/codes/perplexity"] <= used <= 16
    assert not [r for r in criteria.rows if str(r[0]).startswith("active")]


def test_phenotypes_are_sought_in_each_block_with_and_without_a_map(tmp_path, monkeypatch):
    given = make(tmp_path, apart=6.0)
    monkeypatch.setattr(suites, "CLUSTERED", 60)
    monkeypatch.setattr(suites, "RESAMPLES", 2)
    monkeypatch.setattr(suites, "MAPPED_RESAMPLES", 1)
    found = clusters(given)
    assert len(found.sections["Phenotypes"].rows) == 6
    value, low, high = (
        found.metrics[f"train/phenotypes/both/bootstrap_ari{end}"] for end in ("", "/low", "/high")
    )
    assert low <= value <= high
    shown = row(found.sections["Phenotypes"], "FPCA scores and latent")[5]
    assert shown == f"{value:.2f} [{low:.2f}, {high:.2f}]"
    assert len(found.sections["Phenotypes by time warping"].rows) == 4
    sizes = [r[1] for r in found.sections["Outcome by phenotype"].rows]
    assert sum(sizes) == 60
    assert set(found.figures) == {"vitals_map", "vitals_clusters"}
    assert found.artifacts == ("fpca_scores.parquet", "fpca_components.h5", "phenotypes.parquet")
    labels = pq.read_table(given.target / "phenotypes.parquet")
    assert labels["subject_id"].to_pylist() == list(range(1, 61))
    assert set(labels["split"].to_pylist()) == {"train"}
    blocks = {f"{block}{end}" for block in ("fpca", "latent", "both") for end in ("", "_umap")}
    assert set(labels.column_names) == {"subject_id", "split", *blocks}
    noise = np.mean(labels["both"].to_numpy() == -1)
    assert noise == found.metrics["train/phenotypes/both/noise_share"]


def test_scores_and_components_give_the_imputed_curves_back(given):
    """In the vital sign's unit, from the two files alone, nearer than their mean."""
    references = suites.references_of(given)
    splits = {**given.fit, given.split: given.judged}
    vitals_files.write_fpca(given.target, splits, references, given)
    table = pq.read_table(given.target / "fpca_scores.parquet")
    assert table.num_rows == 190
    assert len(table.column_names) == 2 + 7 * 10 + 7
    assert table["split"].to_pylist().count("held_out") == 40
    held_out = table.filter(pa.compute.equal(table["split"], "held_out"))
    assert held_out["subject_id"].to_pylist() == list(range(10_000, 10_040))
    judged = suites.grids_of(given, given.judged)
    np.testing.assert_allclose(
        held_out["HR_obs_pct"].to_numpy(), 100 * judged.observed[:, :, 0].mean(1), rtol=1e-5
    )
    with h5py.File(given.target / "fpca_components.h5") as file:
        at = [name.decode() for name in file["vital_index"][:]].index("HR")
        own = np.stack([held_out[f"HR_fpc{n + 1}"].to_numpy() for n in range(10)], 1)
        curve = file["mean"][at] + own @ file["components"][at]
        curve = curve * file["spread"][at] + file["centre"][at]
        assert 0 < file["explained_variance_ratio"][at].sum() <= 1
        assert file["hour_index"][[0, -1]].tolist() == [-24, 79]
    filled = references.fill(judged.value, judged.observed)
    expected = references.functional.project(filled)[:, :, at] * 10 + 80
    np.testing.assert_allclose(curve, expected, atol=0.02)
    truth = filled[:, :, at] * 10 + 80
    assert np.square(curve - truth).mean() < 0.5 * truth.var()


def test_files_hold_every_patient(given):
    found = files(given)
    assert found.artifacts == (
        "vae_latents.h5",
        "vae_multiscale_components.h5",
        "vae_metadata.json",
    )
    with h5py.File(given.target / "vae_latents.h5") as file:
        assert file["mu"].shape == file["logvar"].shape == (190, 6)
        for name in ("recon_error", "n_obs", "kl", "patient_ids", "patient_index", "split"):
            assert file[name].shape == (190,)
        assert set(file["split"][:]) == {b"train", b"tuning", b"held_out"}
        assert file["patient_ids"][-1] == file["patient_index"][-1] == b"10039"
        kl = 0.5 * (np.exp(file["logvar"][:]) + file["mu"][:] ** 2 - 1 - file["logvar"][:])
        np.testing.assert_allclose(file["kl"][:], kl.sum(1), rtol=1e-4)
    with h5py.File(given.target / "vae_multiscale_components.h5") as file:
        for name in ("local", "hourly", "daily", "multiday", "merged"):
            assert file[name].shape == (40, 104, 7)
        assert file["hour_index"][0] == -24
        assert 60 < file["merged"][:].mean() < 100
    record = json.loads((given.target / "vae_metadata.json").read_text())
    assert record["vitals"]["HR"] == {"unit": "bpm", "centre": 80.0, "spread": 10.0}
    assert record["patients"] == {"train": 120, "tuning": 30, "held_out": 40}
    assert record["model"]["latent"] == 6


def test_codes_are_written_in_place_of_a_posterior(tmp_path):
    given = make(tmp_path, arch="vq", train=30)
    files(given)
    with h5py.File(tmp_path / "vae_latents.h5") as file:
        assert "logvar" not in file
        assert file["codes"].shape == (100, 2)
        assert file["codes"][:].max() < 16


def test_the_baseline_has_no_components(tmp_path):
    assert files(make(tmp_path, arch="lstm", train=30)).artifacts == (
        "vae_latents.h5",
        "vae_metadata.json",
    )


def test_a_shrunk_model_is_told_with_its_weights_and_beside_the_patient_mean(given, measured):
    at = "held_out/curves/shrunk"
    weights = [v for k, v in measured.metrics.items() if k.startswith(f"{at}/seen/weight/")]
    assert len(weights) == len(NAMES)
    assert all(0 <= weight <= 1 for weight in weights)
    errors = (measured.metrics[f"held_out/curves/{n}/seen/mse"] for n in ("shrunk", "patient_mean"))
    less = np.subtract(*errors)
    assert measured.metrics[f"{at}/seen/less_patient_mean"] == pytest.approx(less, abs=1e-6)
    assert measured.metrics[f"{at}/seen/less_patient_mean/low"] <= less
    without = reconstruction(replace(given, fit={"train": given.fit["train"]}))
    assert f"{at}/seen/mse" not in without.metrics
