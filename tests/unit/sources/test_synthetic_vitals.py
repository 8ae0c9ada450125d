import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.synthetic_vitals import (
    COURSES,
    SOURCE,
    VITAL_SIGNS,
    SyntheticVitalsOptions,
    make_patient,
    read,
    units,
)


@pytest.fixture(scope="module")
def patients():
    return [make_patient(number, SyntheticVitalsOptions()) for number in range(1, 201)]


def test_a_tenth_of_the_cells_is_seen_most_of_them_early(patients):
    seen = np.stack([p.seen for p in patients])
    assert seen.shape == (200, 745, len(VITAL_SIGNS))
    assert 0.09 < seen.mean() < 0.11
    assert seen[:, 24:96].mean() > 3 * seen[:, 96:].mean()


def test_courses_differ_where_they_should(patients):
    rate = np.stack([p.clean[:, 0] for p in patients])
    course = np.array([p.course for p in patients])
    late = rate[:, -72:].mean(1) - rate[:, 24:48].mean(1)
    recovering, deteriorating = (late[course == k].mean() for k in (1, 2))
    assert recovering < -5
    assert deteriorating > 5
    assert abs(late[course == 0].mean()) < 1
    assert set(course) == set(range(len(COURSES)))


def test_the_deteriorating_die_more_often(patients):
    died = np.array([p.died for p in patients])
    course = np.array([p.course for p in patients])
    assert died[course == 2].mean() > 2 * died[course == 0].mean()


def test_noise_is_smaller_than_what_there_is_to_know(patients):
    spread = np.array([v.spread for v in VITAL_SIGNS])
    noise = np.mean([np.var((p.values - p.clean) / spread) for p in patients])
    signal = np.var(np.stack([p.clean for p in patients]) / spread, axis=(0, 1)).mean()
    assert noise < 0.4 * signal


def test_a_patient_depends_on_the_seed_and_its_number_alone():
    options = SyntheticVitalsOptions()
    one, same = make_patient(5, options), make_patient(5, options)
    np.testing.assert_array_equal(one.values, same.values)
    other = make_patient(5, SyntheticVitalsOptions(data_seed=1))
    assert not np.array_equal(one.values, other.values)


def test_units_cover_every_patient_and_events_are_what_was_seen():
    options = SyntheticVitalsOptions(patients=502)
    found = units(None, options)
    assert [(u.start, u.stop) for u in found] == [(1, 501), (501, 503)]
    (chunk,) = read(found[1], options)
    made = [make_patient(number, options) for number in (501, 502)]
    assert chunk.events.num_rows == sum(p.seen.sum() for p in made)
    assert chunk.labels["mortality"]["boolean_value"].to_pylist() == [p.died for p in made]
    assert chunk.labels["course"]["integer_value"].to_pylist() == [p.course for p in made]
    assert set(SOURCE.descriptions) == set(chunk.events["code"].to_pylist())


@pytest.mark.parametrize("given", [{"patients": 0}, {"observed": 0.0}, {"data_seed": -1}])
def test_what_cannot_be_made_is_refused(given):
    with pytest.raises(InputError, match="--"):
        SyntheticVitalsOptions(**given)
