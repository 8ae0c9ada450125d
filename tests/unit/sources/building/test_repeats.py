import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.events.schema import EVENTS
from ehr_ray.sources.building.repeats import repeats_of

ROWS = st.tuples(
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 2)),
    st.sampled_from("AB"),
    st.one_of(st.none(), st.sampled_from([0.0, 1.5])),
)


@given(st.lists(ROWS, max_size=40))
def test_a_row_repeats_if_the_same_stood_before(rows):
    rows.sort(key=lambda row: (row[0], row[1] is not None, row[1] or 0))
    table = pa.table(
        [list(column) for column in zip(*rows, strict=True)] or [[]] * 4, schema=EVENTS
    )
    seen = set()
    expected = []
    for row in rows:
        expected.append(row in seen)
        seen.add(row)
    assert repeats_of(table).tolist() == expected
