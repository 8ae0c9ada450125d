import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.events.patients import Patient
from ehr_ray.registry import FAMILIES, get_family
from ehr_ray.train.occlusion import MAP_CODES, MAX_SPANS, occlude
from ehr_ray.train.predictor import Predictor

HOUR = 3_600_000_000
REPRESENTING = [name for name in FAMILIES if get_family(name).represent is not None]


class Additive:
    """A predictor whose log odds are the sum of the values of what it is given."""

    def over_patients(self, patients):
        for patient in patients:
            yield {"sum": torch.tensor([float(np.nansum(patient.value))])}


def sums(outputs):
    return outputs["sum"].numpy()


def patient_of(rows):
    """A patient of (hour, code, value); hour None is static. It was admitted at 0."""
    static = np.iinfo(np.int64).min
    time = np.array([static if hour is None else round(hour * HOUR) for hour, _, _ in rows])
    code, value = (np.array([row[i] for row in rows]) for i in (1, 2))
    return Patient(7, 0, time, code.astype(np.int32), value.astype(np.float32), seen_until=10**15)


def test_an_additive_risk_is_told_exactly_by_variable_by_hour_and_by_both():
    rows = [(None, 0, 10.0), (-3.0, 1, 1.0), (0.5, 1, 2.0), (2.0, 1, -8.0), (2.9, 2, 3.0)]
    found = occlude(Additive(), patient_of(rows), sums)
    assert found.log_odds == 8.0
    assert found.codes.tolist() == [0, 1, 2]
    assert found.by_code.tolist() == [10.0, -5.0, 3.0]
    assert (found.hours.tolist(), found.width) == ([0, 2], 1)  # what came before is in hour 0
    assert found.by_hour.tolist() == [3.0, -5.0]
    nan = np.nan  # the static one has no hour
    np.testing.assert_array_equal(found.cells, [[nan, nan], [3.0, -8.0], [nan, 3.0]])


def test_a_long_record_of_many_variables_has_few_spans_and_a_map_of_the_largest():
    rows = [(float(hour), hour % 40, float(hour % 40)) for hour in range(1000)]
    found = occlude(Additive(), patient_of(rows), sums)
    assert found.width == 21
    assert len(found.hours) <= MAX_SPANS
    assert found.hours.tolist() == list(range(0, 1000, 21))
    assert found.cells.shape == (MAP_CODES, len(found.hours))
    assert found.codes[:3].tolist() == [39, 38, 37]
    assert found.by_hour.sum() == pytest.approx(found.log_odds)


def test_a_patient_of_whom_nothing_is_known_has_a_risk_and_no_effects():
    found = occlude(Additive(), patient_of([]), sums)
    assert found.log_odds == 0.0
    assert [len(a) for a in (found.codes, found.by_code, found.hours, found.by_hour)] == [0] * 4
    assert found.cells.size == 0


@pytest.mark.parametrize("name", REPRESENTING)
def test_a_planted_event_is_found_whatever_the_family(
    name, tiny_experiment, synthetic_patients, synthetic_vocabulary
):
    """The risk is what an extreme pulse at one hour changes in the embedding, and nothing else."""
    experiment, family = tiny_experiment(name), get_family(name)
    torch.manual_seed(0)
    model = family.build(experiment.model, synthetic_vocabulary).eval()
    predictor = Predictor(family, experiment.model, synthetic_vocabulary, model)
    pulse = synthetic_vocabulary.codes.index("HR")
    patient = synthetic_patients["train"][0].until(10**18)
    times = np.unique(patient.time[~patient.static])
    late = times[-2]  # some families read the last events alone
    kept = patient.code != pulse
    without = dataclasses.replace(
        patient, **{n: getattr(patient, n)[kept] for n in ("time", "code", "value")}
    )
    at = int(np.searchsorted(without.time, late))
    planted = dataclasses.replace(
        without,
        time=np.insert(without.time, at, late),
        code=np.insert(without.code, at, pulse),
        value=np.insert(without.value, at, 400.0),
    )
    (outputs,) = predictor.over_patients([planted, without])
    direction = outputs["embedding"][0] - outputs["embedding"][1]
    assert direction.norm() > 0

    found = occlude(predictor, planted, lambda given: (given["embedding"] @ direction).numpy())
    effect = float(direction @ direction)
    assert found.codes[0] == pulse
    assert found.by_code[0] == pytest.approx(effect, rel=1e-3)
    hour = (late - patient.origin) // HOUR
    (cell,) = np.flatnonzero(~np.isnan(found.cells[0]))
    assert found.hours[cell] <= hour < found.hours[cell] + found.width
    assert found.cells[0, cell] == pytest.approx(effect, rel=1e-3)
