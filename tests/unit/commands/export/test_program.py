import pyarrow as pa
import pytest
import torch

import ehr_ray
from ehr_ray.commands.export.command import export
from ehr_ray.commands.export.program import PROGRAM, write_program
from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import dump, parse, portable
from ehr_ray.registry import FAMILIES
from ehr_ray.train.checkpoint import save_checkpoint
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.task import family_of

OF_SETS = ("set_vae", "seqset_poe")
TASK = {"name": "outcome", "statistics": {}, "members": 2, "hidden": 8}


@pytest.fixture
def untrained(tiny_experiment, synthetic_vocabulary, tmp_path):
    """The model of a new run: untrained(family, sections of its experiment)."""

    def of(family, **sections):
        experiment = parse({**dump(tiny_experiment(family)), **sections})
        torch.manual_seed(0)
        network = family_of(experiment).build(experiment.model, synthetic_vocabulary).eval()
        save_checkpoint(tmp_path, network, portable(experiment), synthetic_vocabulary)
        return ehr_ray.load(tmp_path)

    return of


def check(model, patients, folder):
    """The program says the same of patients it was not traced on, one alone or many."""
    inputs = write_program(model, folder / PROGRAM)
    content = (folder / PROGRAM).read_bytes()
    assert str(folder).encode() not in content
    assert b"site-packages" not in content
    program = torch.export.load(folder / PROGRAM).module()
    predictor = Predictor.of(model)
    for some in (patients, patients[:1]):
        batch = predictor.batch(predictor.rows(some))
        assert inputs.keys() <= batch.keys()
        found = program({name: batch[name] for name in inputs})
        wanted = predictor.outputs(batch)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in OF_SETS])
def test_a_program_says_what_the_model_says(family, untrained, synthetic_patients, tmp_path):
    check(untrained(family), synthetic_patients["tuning"], tmp_path)


def test_rows_of_admissions_are_a_program_too(untrained, synthetic_patients, tmp_path):
    model = dump(untrained("jepa").experiment)["model"]
    check(
        untrained("jepa", model=model | {"rows": "visits"}), synthetic_patients["tuning"], tmp_path
    )


def test_a_model_that_reads_few_of_many_codes_is_traced_on_these(
    tiny_experiment, synthetic_vocabulary, tmp_path
):
    """As on a hospital's thousands of codes, most of which no model of values reads."""
    table = synthetic_vocabulary.to_table().to_pydict()
    for name, values in table.items():
        extra = [f"RARE//{i}" for i in range(5000)] if name == "code" else [values[0]] * 5000
        table[name] = values + ([0] * 5000 if name in ("count", "num_subjects") else extra)
    vocabulary = Vocabulary.from_table(
        pa.table(table, schema=synthetic_vocabulary.to_table().schema)
    )
    experiment = tiny_experiment("jepa")
    network = family_of(experiment).build(experiment.model, vocabulary).eval()
    save_checkpoint(tmp_path, network, portable(experiment), vocabulary)
    assert write_program(ehr_ray.load(tmp_path), tmp_path / PROGRAM)


def test_one_place_along_an_axis_is_refused(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr("ehr_ray.commands.export.program.TRACED", (1, 24))
    with pytest.raises(InputError, match="give this model one place along an axis of "):
        write_program(untrained("vitals_vae"), tmp_path / PROGRAM)


def test_a_task_with_statistics_and_several_models_is_a_program(
    untrained, synthetic_patients, tmp_path
):
    model = untrained("jepa", task=TASK, train={"seeds": 2})
    check(model, synthetic_patients["tuning"], tmp_path)


@pytest.mark.parametrize("family", OF_SETS)
def test_what_depends_on_the_data_is_refused(family, untrained, tmp_path):
    with pytest.raises(InputError, match=f"a model of {family} is no program") as caught:
        write_program(untrained(family), tmp_path / PROGRAM)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / PROGRAM).exists()


def test_the_card_says_how_to_run_it(untrained, tmp_path):
    model = untrained("vitals_vae")
    names = export(model.folder, tmp_path / "model", torch_export=True)
    assert PROGRAM in map(str, names)
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'torch.export.load("model.pt2").module()' in card
    assert PROGRAM in (tmp_path / "model" / "SHA256SUMS").read_text()
    export(model.folder, tmp_path / "plain")
    assert "model.pt2" not in (tmp_path / "plain" / "README.md").read_text()


def test_a_program_that_says_something_else_is_not_kept(untrained, monkeypatch, tmp_path):
    model = untrained("vitals_vae")
    monkeypatch.setattr(torch, "allclose", lambda *_, **__: False)
    with pytest.raises(InputError, match="is not the model's on patients of another number"):
        write_program(model, tmp_path / PROGRAM)
    assert not (tmp_path / PROGRAM).exists()
