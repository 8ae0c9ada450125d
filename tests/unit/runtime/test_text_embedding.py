import numpy as np
import pytest
import ray
import torch

from ehr_ray.errors import ConfigError
from ehr_ray.runtime import text_embedding
from ehr_ray.runtime.text_embedding import embed_texts, make_phrases, precision


@pytest.fixture
def asked(monkeypatch):
    """What the runner of jobs is asked for; nothing is embedded."""
    found = {}

    def run(function, jobs, **how):
        found.update(how, **vars(function), jobs=len(jobs))

    monkeypatch.setattr(text_embedding, "run_jobs", run)
    monkeypatch.setattr(text_embedding, "find_model", lambda name: name)
    have = {"CPU": 8, "GPU": 2}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": have}])
    return found


def test_with_gpus_each_process_reserves_one_and_has_its_precision(asked, tmp_path):
    texts = [f"text {i}" for i in range(5000)]
    embed_texts(texts, "model", tmp_path, on_ray=True, gpu=True)
    assert (asked["num_gpus"], asked["actors"]) == (1, (2, 5))
    assert (asked["_device"], asked["_dtype"]) == ("cuda", "bfloat16")
    embed_texts(texts, "model", tmp_path, on_ray=True)
    assert (asked["num_gpus"], asked["actors"]) == (0, (5, 5))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_that_is_merely_there_changes_nothing_of_a_cpu(
    native, gpu, asked, tmp_path, monkeypatch
):
    here = {"cuda": torch.bfloat16 if native else torch.float32, "cpu": torch.float32}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(text_embedding, "half_type", here.__getitem__)
    embed_texts(["a"], "model", tmp_path, on_ray=True, gpu=gpu)
    kind = "cuda" if gpu else "cpu"
    assert (asked["_device"], f"torch.{asked['_dtype']}") == (kind, str(here[kind]))


def test_gpus_that_are_not_there_are_named(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8}}])
    with pytest.raises(ConfigError, match=r"^cluster\.gpus_per_worker: .* the cluster has none"):
        embed_texts(["a"], "model", tmp_path, on_ray=True, gpu=True)


def test_the_cache_knows_the_precision(asked, tiny_config, tmp_path, monkeypatch):
    keys = []
    key = lambda name, dtype: keys.append((name, dtype)) or f"{dtype}"  # noqa: E731
    monkeypatch.setattr(text_embedding, "model_key", key)
    monkeypatch.setattr(
        text_embedding, "embed_texts", lambda *_, **how: {"a": np.ones(4) * how["gpu"]}
    )
    for gpus in (0, 1):
        changes = {"model.text_model": "m/x", "model.embedding_dim": 4, "output": tmp_path}
        one = tiny_config("event_decoder", **changes, **{"cluster.gpus_per_worker": gpus})
        make_phrases(one, ["a"], on_ray=True)
    assert keys == [("m/x", precision(False)), ("m/x", torch.bfloat16)]


def test_a_width_that_the_folder_of_a_model_does_not_make_is_refused_before_any_work(
    asked, tiny_config, tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 384}')
    changes = {"model.text_model": str(folder), "model.embedding_dim": 768, "output": tmp_path}
    monkeypatch.setattr(text_embedding, "find_model", lambda _: str(folder))
    with pytest.raises(ConfigError, match=r"^model\.embedding_dim=768: .* makes 384; write 384"):
        make_phrases(tiny_config("event_decoder", **changes), ["a"], on_ray=False)
    assert asked == {}
