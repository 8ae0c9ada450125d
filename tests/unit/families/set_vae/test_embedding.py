import numpy as np
import pandas as pd
import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.families.set_vae.embedding import check_files, embedding_table, reduced
from ehr_ray.families.set_vae.model import SetVAE
from ehr_ray.registry import get_family
from ehr_ray.train.checkpoint import load, save_checkpoint


@pytest.fixture
def table(tmp_path, make_config, vocabulary):
    """The embeddings of a CSV of these lines: table(lines)."""

    def read(lines):
        path = tmp_path / "table.csv"
        path.write_text("\n".join(lines) + "\n")
        return embedding_table(make_config(embedding_csv=str(path)), vocabulary)

    return read


def lines(vocabulary, head="code,a,b"):
    return [head] + [f"{code},{i},{1 - i}" for i, code in enumerate(vocabulary.codes)]


@pytest.mark.parametrize("head", ["code,a,b", "Variable,a,b", "my_name,a,b"])
def test_rows_are_matched_by_code_in_any_order(table, vocabulary, head):
    content = lines(vocabulary, head)
    expected = torch.tensor([[i, 1 - i] for i in range(len(vocabulary))], dtype=torch.float32)
    assert torch.equal(table(content), expected)
    shuffled = [content[0], *reversed(content[1:]), "unused,5,5"]
    assert torch.equal(table(shuffled), expected)


def test_an_index_column_is_no_dimension(table, vocabulary):
    content = [f"{'' if i == 0 else i},{line}" for i, line in enumerate(lines(vocabulary))]
    assert table(content).shape == (len(vocabulary), 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows[:-2], "no row for 2 codes, such as 'C10'"),
        (lambda rows: [*rows, rows[-1]], "'C11' appears twice"),
        (lambda rows: [*rows[:-1], "C11,1,"], "without blanks"),
        (lambda rows: [*rows[:-1], "C11,1,x"], "'b' is partly text"),
        (lambda rows: [*rows[:-1], "C11,0,0"], "the row of 'C11' is all zeros"),
        (lambda rows: [row.split(",")[0] for row in rows], "numeric columns"),
    ],
)
def test_a_bad_table_is_refused(table, vocabulary, change, text):
    with pytest.raises(InputError, match=text):
        table(change(lines(vocabulary)))


def test_a_column_of_text_is_no_dimension(table, vocabulary):
    content = [
        f"{line},{'note' if i == 0 else 'in words'}" for i, line in enumerate(lines(vocabulary))
    ]
    assert torch.equal(table(content), table(lines(vocabulary)))


@pytest.mark.parametrize("width", [1, 2, 8, 16, 40])
def test_a_table_of_any_width_gives_unit_directions_and_a_model_that_runs(
    make_model, make_config, batch, tmp_path, vocabulary, width
):
    torch.manual_seed(0)
    rows = torch.randn(len(vocabulary), width)
    frame = pd.DataFrame(rows.numpy(), index=pd.Index(vocabulary.codes, name="code"))
    frame.to_csv(tmp_path / "table.csv")
    model = make_model(embedding_csv=str(tmp_path / "table.csv"))
    torch.testing.assert_close(model.directions, reduced(rows, make_config()))
    assert model.directions.shape == (len(vocabulary), 8)
    torch.testing.assert_close(model.directions.norm(dim=-1), torch.ones(len(vocabulary)))
    assert torch.isfinite(model(batch, 1)["recon"]).all()


def test_a_narrow_table_keeps_its_angles_and_a_wide_one_nearly(make_config):
    torch.manual_seed(0)
    narrow, wide = torch.randn(12, 5), torch.randn(12, 768)
    found = reduced(narrow, make_config(reduced=8))
    unit = torch.nn.functional.normalize(narrow, dim=-1)
    torch.testing.assert_close(found @ found.T, unit @ unit.T)
    wide[1] = wide[0] + 0.3 * wide[1]
    found = reduced(wide, make_config(reduced=256))
    unit = torch.nn.functional.normalize(wide, dim=-1)
    assert (found @ found.T - unit @ unit.T).abs().max() < 0.25
    assert float(found[0] @ found[1]) > 0.9
    assert torch.equal(reduced(wide, make_config(reduced=256)), found)


def test_random_embeddings_repeat_and_are_nearly_orthogonal(make_config, vocabulary):
    config = make_config(embedding_width=768)
    torch.manual_seed(1)
    first = embedding_table(config, vocabulary)
    torch.manual_seed(2)
    assert torch.equal(embedding_table(config, vocabulary), first)
    gram = first @ first.T
    assert (gram.diagonal() - 1).abs().max() < 0.2
    assert (gram - gram.diagonal().diag()).abs().max() < 0.2


def test_a_missing_table_is_an_error_before_training_but_not_for_a_checkpoint(
    make_config, vocabulary
):
    config = make_config(embedding_csv="nowhere/table.csv")
    with pytest.raises(InputError, match=r"nowhere/table\.csv: nothing there"):
        get_family("set_vae").files.check(config)
    assert check_files(make_config()) is None
    assert SetVAE(config, vocabulary).directions.shape == (len(vocabulary), 8)


def test_a_checkpoint_loads_without_its_table(
    tiny_experiment, synthetic_vocabulary, synthetic_patients, tmp_path
):
    csv, codes = tmp_path / "table.csv", synthetic_vocabulary.codes
    rng = np.random.default_rng(0)
    pd.DataFrame(rng.normal(size=(len(codes), 50)), index=pd.Index(codes, name="code")).to_csv(csv)
    experiment = tiny_experiment("set_vae", {"model.embedding_csv": str(csv)})
    model = SetVAE(experiment.model, synthetic_vocabulary).eval()
    save_checkpoint(tmp_path / "run", model, experiment, synthetic_vocabulary)
    csv.unlink()
    loaded = load(tmp_path / "run")
    assert torch.equal(loaded.model.directions, model.directions)
    without = SetVAE(experiment.model, synthetic_vocabulary)
    assert not torch.equal(without.directions, model.directions)
    family = loaded.family
    patients = synthetic_patients["tuning"][:3]
    rows = [family.transform(p, experiment.model, loaded.vocabulary) for p in patients]
    batch = family.collate(rows, experiment.model)
    with torch.no_grad():
        ours, theirs = (family.evaluation.reconstruct(m, batch) for m in (loaded.model, model))
    assert torch.equal(ours["estimate"], theirs["estimate"])
