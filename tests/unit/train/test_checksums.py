import torch
from safetensors.torch import load_file, save_file

from ehr_ray.train.checksums import checksum, damage_of, document, save_tensors, starts_as_pickle

STATE = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    "c": torch.zeros(0),
    "d": torch.tensor([True, False]),
}


def test_tensors_come_back_and_their_checksum_is_of_every_bit(tmp_path):
    save_tensors(STATE, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert checksum(found) == checksum(STATE)
    for changed in (
        {**STATE, "b": -STATE["b"]},
        {**STATE, "a": STATE["a"].reshape(3, 2)},
        {**STATE, "c": torch.zeros(0, 1)},
        {("e" if name == "d" else name): value for name, value in STATE.items()},
    ):
        assert checksum(changed) != checksum(STATE)
    assert damage_of(tmp_path, ["x.safetensors"]) == ""


def test_any_flipped_bit_of_the_tensors_is_seen(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors({"a": STATE["a"]}, path)
    content = path.read_bytes()
    for place in range(len(content) - 24, len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert "its tensors are not those that were written" in damage_of(tmp_path, [path.name])
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        assert f"{path}: damaged (" in damage_of(tmp_path, [path.name])


def test_a_file_of_another_program_has_no_checksum_and_is_believed(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert damage_of(tmp_path, ["x.safetensors"]) == ""


def test_a_document_cut_short_is_seen_and_one_without_marks_believed(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(document("a: 1\nb: 2\n"))
    assert damage_of(tmp_path, ["x.yaml"]) == ""
    path.write_text("---\na: 1\n")
    assert "its end is missing" in damage_of(tmp_path, ["x.yaml"])
    path.write_text("a: 1\n")
    assert damage_of(tmp_path, ["x.yaml"]) == ""
    assert damage_of(tmp_path, ["y.yaml"]) == f"{tmp_path / 'y.yaml'}: missing"


def test_a_header_of_any_length_is_no_pickle(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in range(1, 90):
        save_file({"n" * length: torch.ones(1)}, path)
        assert not starts_as_pickle(path)
