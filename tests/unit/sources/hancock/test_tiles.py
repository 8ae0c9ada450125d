import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.hancock.tiles import TILES, read_tiles


def archive(folder, **arrays):
    path = folder / "tma_tile_dtr_2_CD3.npz"
    np.savez(path, **arrays)
    return path


def test_a_tile_of_a_known_patient_is_an_event_for_each_feature(tmp_path):
    path = archive(tmp_path, **{"001": [1.0, 2.0, 3.0, 4.0], "002": [5.0, 6.0], "009": [7.0, 8.0]})
    chunk = read_tiles(path, {1, 2})
    rows = chunk.events.to_pandas()
    assert rows["subject_id"].tolist() == [1, 1, 1, 1, 2, 2]
    assert rows["code"].tolist() == ["TMA//CD3//000", "TMA//CD3//001"] * 3
    assert rows["numeric_value"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert rows["time"].isna().all()
    assert chunk.rows_read == 3


def test_tiles_of_zeros_or_without_a_number_are_left_out(tmp_path):
    path = archive(tmp_path, **{"001": [0.0, 0.0, 1.0, 2.0, np.nan, 3.0]})
    assert read_tiles(path, {1}).events["numeric_value"].to_pylist() == [1.0, 2.0]


def test_an_array_of_another_length_is_rejected_and_named(tmp_path):
    chunk = read_tiles(archive(tmp_path, **{"001": [1.0, 2.0, 3.0], "002": [1.0, 2.0]}), {1, 2})
    assert len(chunk.events) == 2
    assert chunk.rejects["reason"].to_pylist() == ["not a multiple of 2 numbers"]


def test_what_is_no_archive_is_named(tmp_path):
    path = tmp_path / "tma_tile_dtr_2_CD3.npz"
    path.write_bytes(b"nothing of the kind")
    assert TILES.fullmatch(path.name)
    with pytest.raises(InputError, match="not a readable archive of arrays"):
        read_tiles(path, {1})
