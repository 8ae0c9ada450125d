import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ehr_ray.errors import InputError
from ehr_ray.families.hcat.text import check_files, phrase_table, phrase_texts


def test_the_semantic_codes_are_what_is_embedded(make_config, vocabulary):
    assert len(phrase_texts(make_config(), vocabulary)) == 3
    assert phrase_table(make_config(), vocabulary) is None
    table = phrase_table(make_config(text_model="hashing", embedding_dim=32), vocabulary)
    torch.testing.assert_close(table.norm(dim=1), torch.ones(3))


def test_phrases_change_the_semantic_token_and_predictions_work(make_model, batch):
    model = make_model(text_model="hashing", embedding_dim=32).eval()
    plain, spoken = make_model().tokens(batch), model.tokens(batch)
    assert (plain.value[:3, 3] - spoken.value[:3, 3]).abs().max() > 0.01
    assert torch.equal(plain.value[:, 0], spoken.value[:, 0])
    assert not spoken.value[3, 3].any()  # without codes nothing is said
    assert torch.isfinite(model.predict(spoken)[0].logit).all()


def test_a_folder_must_be_of_these_codes(make_config, vocabulary, tmp_path):
    save_file({"table": np.eye(4, dtype=np.float32)}, tmp_path / "table.safetensors")
    config = make_config(text_model="a model", phrases=str(tmp_path))
    check_files(config)
    with pytest.raises(InputError, match="4 phrases, but this cohort has 3 semantic codes"):
        phrase_table(config, vocabulary)
    with pytest.raises(InputError, match="no table there"):
        check_files(make_config(text_model="a model"))
    check_files(make_config())
