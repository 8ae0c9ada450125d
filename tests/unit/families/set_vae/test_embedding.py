import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.families.set_vae.embedding import check_files, embedding_table
from ehr_ray.families.set_vae.model import SetVAE
from ehr_ray.registry import get_family


@pytest.fixture
def table(tmp_path, make_config, vocabulary):
    """The embeddings of a CSV of these lines: table(lines, embedding_width=2)."""

    def read(lines, **changes):
        path = tmp_path / "table.csv"
        path.write_text("\n".join(lines) + "\n")
        return embedding_table(make_config(embedding_csv=str(path), **changes), vocabulary)

    return read


def lines(vocabulary, head="code,a,b"):
    return [head] + [f"{code},{i},{-i}" for i, code in enumerate(vocabulary.codes)]


@pytest.mark.parametrize("head", ["code,a,b", "Variable,a,b", "my_name,a,b"])
def test_rows_are_matched_by_code_in_any_order(table, vocabulary, head):
    content = lines(vocabulary, head)
    expected = torch.tensor([[i, -i] for i in range(len(vocabulary))], dtype=torch.float32)
    assert torch.equal(table(content, embedding_width=2), expected)
    shuffled = [content[0], *reversed(content[1:]), "unused,5,5"]
    assert torch.equal(table(shuffled, embedding_width=2), expected)


def test_an_index_column_is_no_dimension(table, vocabulary):
    content = [f"{'' if i == 0 else i},{line}" for i, line in enumerate(lines(vocabulary))]
    assert table(content, embedding_width=2).shape == (len(vocabulary), 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows[:-2], "no row for 2 codes, such as 'C10'"),
        (lambda rows: [*rows, rows[-1]], "'C11' appears twice"),
        (lambda rows: [*rows[:-1], "C11,1,"], "without blanks"),
        (lambda rows: [row.split(",")[0] for row in rows], "numeric columns"),
    ],
)
def test_a_bad_table_is_refused(table, vocabulary, change, text):
    with pytest.raises(InputError, match=text):
        table(change(lines(vocabulary)), embedding_width=2)


def test_a_table_of_another_width_is_refused_with_the_remedy(table, vocabulary):
    with pytest.raises(InputError, match=r"set model\.embedding_width=2"):
        table(lines(vocabulary), embedding_width=16)


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
    with pytest.raises(InputError, match=r"nowhere/table\.csv: no such file"):
        get_family("set_vae").check(config)
    assert check_files(make_config()) is None
    assert SetVAE(config, vocabulary).table.shape == (len(vocabulary), 16)
