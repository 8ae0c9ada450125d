import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.table import check_files, phrase_table, phrase_texts


def config(**changes):
    return EventTransformerConfig(**changes)


def test_the_table_of_a_folder_is_centred_and_scaled(vocabulary, tmp_path):
    texts = phrase_texts(config(), vocabulary)
    rng = np.random.default_rng(0)
    raw = (3 + rng.normal(size=(len(texts), 8))).astype(np.float32)
    save_file({"table": raw}, tmp_path / "table.safetensors")
    mine = config(phrases=str(tmp_path))
    check_files(mine)
    table = phrase_table(mine, vocabulary)
    torch.testing.assert_close(table.norm(dim=1), torch.full((len(texts),), 8**0.5))
    direction = raw - raw.mean(0)
    cosine = (table.numpy() * direction).sum(1) / np.linalg.norm(direction, axis=1) / 8**0.5
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    with pytest.raises(ConfigError, match="embedding_dim=9"):
        phrase_table(config(phrases=str(tmp_path), embedding_dim=9), vocabulary)
    with pytest.raises(InputError, match="run `ehr-ray phrases` again"):
        phrase_table(config(phrases=str(tmp_path), gaps="none"), vocabulary)


def test_a_checkpoints_model_has_the_shape_without_the_folder(vocabulary, tmp_path):
    gone = config(phrases=str(tmp_path / "gone"), embedding_dim=12)
    assert phrase_table(gone, vocabulary).shape == (len(phrase_texts(gone, vocabulary)), 12)
    with pytest.raises(InputError, match=r"gone: no table.safetensors there"):
        check_files(gone)


def test_a_fresh_run_without_phrases_or_with_a_bad_lookup_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.phrases: not given"):
        check_files(config())
    check_files(config(text_model="hashing"))
    with pytest.raises(InputError, match=r"model\.medical_lookup"):
        check_files(config(text_model="hashing", medical_lookup=str(tmp_path / "none.csv")))


def test_a_users_lookup_names_codes(vocabulary, tmp_path):
    (tmp_path / "medical.csv").write_text("code,term\nrash,Exanthema\n")
    texts = phrase_texts(config(medical_lookup=str(tmp_path / "medical.csv")), vocabulary)
    assert "Exanthema" in texts
    assert "Lactate very high" in texts
