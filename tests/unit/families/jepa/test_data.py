import numpy as np
import pytest
import torch

from ehr_ray.errors import ConfigError
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.families.jepa.data import collate, features_of, predictable, remedy, transform
from ehr_ray.families.jepa.dense_rows import dense


def test_a_batch_holds_the_last_word_on_each_cell(make_patient, make_config, vocabulary):
    config = make_config()
    patient = make_patient(3, 5)
    row = transform(patient, config, vocabulary)
    sheet = dense(collate([row, transform(make_patient(4, 9), config, vocabulary)], config))
    assert sheet.mask.sum(1).tolist() == [5, 9]
    assert sheet.minute[0].tolist() == [0, 60, 120, 180, 240, 0, 0, 0, 0]
    names = features_of(config, vocabulary).names
    for hour in range(5):
        for feature, name in enumerate(names):
            mine = (row["row"] == hour) & (row["feature"] == feature)
            assert bool(sheet.observed[0, hour, feature]) == mine.any()
            expected = row["value"][mine][-1] if mine.any() else np.zeros(3)
            np.testing.assert_array_equal(sheet.value[0, hour, feature].numpy(), expected, name)
    assert not sheet.observed[0, 5:].any()
    assert sheet.static_seen.tolist() == [[True] + [False] * 5] * 2
    np.testing.assert_allclose(sheet.static[0, 0], np.arcsinh(patient.value[0]), rtol=1e-3)


def test_followed_codes_are_told_with_their_minutes_and_only_for_the_head(
    make_patient, make_config, vocabulary
):
    patients = [make_patient(3, 5), make_patient(4, 2)]
    plain = transform(patients[0], make_config(), vocabulary)
    assert not {"followed_minute", "end"} & {*plain, *collate([plain], make_config())}
    config = make_config(time_to_event_weight=1.0, time_to_event_codes=("C4", "C2"))
    batch = collate([transform(patient, config, vocabulary) for patient in patients], config)
    assert batch["end"].tolist() == [240.0, 60.0]
    for row, patient in enumerate(patients):
        for slot, code in enumerate((4, 2)):
            there = torch.isfinite(batch["followed_minute"][row]) & (
                batch["followed_code"][row] == slot
            )
            expected = patient.minute[(patient.code == code) & ~patient.static]
            np.testing.assert_array_equal(batch["followed_minute"][row][there], expected)


def test_values_of_asked_codes_are_told_as_rows_scale_them_and_only_for_the_head(
    make_patient, make_config, vocabulary
):
    patients = [make_patient(3, 5), make_patient(4, 2)]
    plain = transform(patients[0], make_config(), vocabulary)
    assert not [name for name in collate([plain], make_config()) if name.startswith("measured")]
    config = make_config(future_value_weight=1.0, future_value_codes=("C4", "C2"))
    patients[1].value[-1] = np.nan
    batch = collate([transform(patient, config, vocabulary) for patient in patients], config)
    assert "end" not in batch
    for row, patient in enumerate(patients):
        for slot, code in enumerate((4, 2)):
            there = torch.isfinite(batch["measured_minute"][row]) & (
                batch["measured_code"][row] == slot
            )
            told = (patient.code == code) & ~patient.static & np.isfinite(patient.value)
            np.testing.assert_array_equal(
                batch["measured_minute"][row][there], patient.minute[told]
            )
            scaled = (patient.value[told] - vocabulary.location[code]) / vocabulary.scale[code]
            np.testing.assert_allclose(
                batch["measured_value"][row][there], np.arcsinh(scaled), rtol=1e-3, atol=1e-4
            )


def test_the_latest_rows_are_kept(make_patient, make_config, vocabulary):
    rows = [transform(make_patient(i, n), make_config(), vocabulary) for i, n in ((1, 9), (2, 3))]
    everything = dense(collate(rows, make_config()))
    latest = dense(collate(rows, make_config(max_rows=4)))
    assert latest.minute.tolist() == [[300, 360, 420, 480], [0, 60, 120, 0]]
    assert torch.equal(latest.value[0], everything.value[0, 5:])
    assert torch.equal(latest.observed[1], everything.observed[1, :4])


def test_a_patient_without_rows_has_an_empty_one(make_patient, make_config, vocabulary):
    sheet = dense(
        collate([transform(make_patient(1, 0), make_config(), vocabulary)], make_config())
    )
    assert sheet.mask.tolist() == [[True]]
    assert not sheet.observed.any()


def test_visits_have_more_statistics_and_two_features_of_their_own(
    make_patient, make_config, vocabulary
):
    config = make_config(rows="visits")
    batch = collate([transform(make_patient(1, 4), config, vocabulary)], config)
    assert batch["mask"].shape == (1, 1)
    assert batch["static"].shape == (1, 8)
    assert batch["value"].shape[1] == 5


@pytest.mark.parametrize("rows", ["hours", "visits"])
def test_a_model_without_a_single_feature_is_refused(make_patient, make_config, vocabulary, rows):
    config = make_config(rows=rows, outcomes=("*",))
    with pytest.raises(ConfigError, match=r"^model\.outcomes: \['\*'\] .* none of 6 codes"):
        transform(make_patient(1, 4), config, vocabulary)
    with pytest.raises(ConfigError, match="none of 6 codes"):
        features_of(make_config(max_values=1, max_flags=0, outcomes=("C[0-4]",)), vocabulary)


def test_two_rows_make_a_patient_predictable(make_patient, make_config, vocabulary, tmp_path):
    rows = [transform(make_patient(1, n), make_config(), vocabulary) for n in (0, 1, 2, 9)]
    write_block(tmp_path / "0.arrow", rows)
    found = predictable(BlockStore([tmp_path / "0.arrow"]))
    assert found.tolist() == [False, False, True, True]
    assert "HOSPITAL_ADMISSION" in remedy(make_config(rows="visits"))
    assert "longer stays" in remedy(make_config())
