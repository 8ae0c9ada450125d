import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS
from ehr_ray.sources.building.limits import (
    CONVERTED,
    OTHER_UNIT,
    OUTSIDE,
    Limits,
    load_limits,
)
from ehr_ray.sources.source import SOURCES, get_source


def apply(limits, *rows):
    table = pa.table(
        [[1] * len(rows), [None] * len(rows), [c for c, _ in rows], [v for _, v in rows]],
        schema=EVENTS,
    )
    events, changes = limits.apply(table)
    assert events.schema == EVENTS
    found = list(zip(events["code"].to_pylist(), events["numeric_value"].to_pylist(), strict=True))
    counts = {(r["code"], r["change"]): r["count"] for r in changes.to_pylist()}
    return found, counts


@pytest.fixture
def tables(tmp_path):
    def write(ranges="", units=""):
        names = []
        for name, head, body in (
            ("ranges", "code,low,high,unit", ranges),
            ("units", "code,unit,to,factor,offset", units),
        ):
            (tmp_path / f"{name}.csv").write_text(f"{head}\n{body}\n")
            names.append(str(tmp_path / f"{name}.csv") if body else "none")
        return load_limits(*names)

    return write


def test_values_out_of_range_are_left_out_and_counted_by_code(tables):
    limits = tables("HR,0,350,bpm\nFiO2,0.2,1,\nLow,5,,\n")
    found, counts = apply(
        limits,
        ("HR", 0),
        ("HR", 351),
        ("HR", -1),
        ("HR", None),
        ("FiO2", 0.2),
        ("Low", 4),
        ("X", 9e9),
    )
    kept = [("HR", 0), ("HR", None), ("FiO2", pytest.approx(0.2)), ("X", pytest.approx(9e9))]
    assert found == kept
    assert counts == {("HR", OUTSIDE): 2, ("Low", OUTSIDE): 1}


def test_a_range_is_of_its_unit_and_a_conversion_changes_the_code_too(tables):
    limits = tables("LAB//1,13,46,°C\n", "LAB//1,°F,°C,0.555555555556,-17.7777777778\n")
    found, counts = apply(
        limits,
        ("LAB//1//°F", 98.6),
        ("LAB//1//°f", 999),
        ("LAB//1//°C", 37),
        ("LAB//1//° C", 98.6),
        ("LAB//1//UNK", 98.6),
        ("LAB//1//K", 310),
        ("LAB//2//°F", 98.6),
    )
    assert found == [
        ("LAB//1//°C", pytest.approx(37)),
        ("LAB//1//°C", 37),
        ("LAB//1//K", 310),
        ("LAB//2//°F", pytest.approx(98.6)),
    ]
    assert counts == {
        ("LAB//1//°C", CONVERTED): 2,
        ("LAB//1//°C", OUTSIDE): 1,
        ("LAB//1//° C", OUTSIDE): 1,
        ("LAB//1//UNK", OUTSIDE): 1,
        ("LAB//1//K", OTHER_UNIT): 1,
    }


def test_nothing_asked_is_nothing_done():
    rows = [("HR", 9999.0), ("LAB//220045//bpm", -5.0)]
    assert apply(load_limits("none", "none"), *rows) == (rows, {})
    assert apply(Limits(), *rows) == (rows, {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("HR,x,1,", "line 2: column low: 'x' is no number"),
        ("HR,9,1,", "line 2: low 9 is not below high 1"),
        ("HR,1", "line 2 has not all of code, low, high, unit"),
        ("HR,0,5,200,", "line 2 has more cells than the header; .* write 0.5, not 0,5"),
        ("HR,1,2,\nHR,1,3,", "line 3 is about HR again; keep one"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tables, body, message):
    with pytest.raises(InputError, match=rf"--ranges .*ranges\.csv:? {message}"):
        tables(body)


def test_a_table_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        InputError, match=r"--ranges nowhere: .* none, eicu, mimic-iv, physionet2012"
    ):
        load_limits("nowhere", "none")
    with pytest.raises(InputError, match=r"--units eicu: .* none, mimic-iv$"):
        load_limits("none", "eicu")
    with pytest.raises(InputError, match="no row"):
        load_limits("/dev/null", "none")


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_names_tables_that_are_shipped(source):
    load_limits(*get_source(source).limits)


DYING = {
    "HR": 20, "SysABP": 40, "NISysABP": 40, "pH": 6.6, "Lactate": 30, "Temp": 25, "MAP": 20,
    "SaO2": 30, "K": 9.5, "Glucose": 10, "Na": 100, "WBC": 400, "Creatinine": 25, "AST": 20000,
    "RespRate": 0, "GCS": 3, "PaO2": 20, "PaCO2": 150, "Platelets": 2, "HCT": 9, "Bilirubin": 60,
}  # fmt: skip


@pytest.mark.parametrize(("code", "value"), DYING.items())
def test_what_dying_patients_have_is_plausible(code, value):
    limits = load_limits("physionet2012", "none")
    assert apply(limits, (code, value)) == ([(code, pytest.approx(value))], {})


@pytest.mark.parametrize(
    ("ranges", "code", "value"),
    [
        ("mimic-iv", "LAB//220045//bpm", 20),
        ("mimic-iv", "LAB//220179//mmHg", 40),
        ("mimic-iv", "LAB//50820//units", 6.6),
        ("mimic-iv", "LAB//223761//°F", 77),
        ("mimic-iv", "LAB//50813//mmol/L", 30),
        ("eicu", "sbp", 40),
        ("eicu", "ph", 6.6),
        ("eicu", "temperature", 25),
        ("eicu", "lactate", 30),
    ],
)
def test_the_other_tables_are_as_wide(ranges, code, value):
    assert apply(load_limits(ranges, "none"), (code, value)) == ([(code, pytest.approx(value))], {})


@pytest.mark.parametrize(
    ("code", "value", "converted", "expected"),
    [
        ("LAB//223762//°F", 98.6, "LAB//223762//°C", 37),
        ("LAB//50931//mmol/L", 5.55, "LAB//50931//mg/dL", 99.99),
        ("LAB//50912//µmol/L", 88.4, "LAB//50912//mg/dL", 1.0),
        ("LAB//50818//kPa", 5.33, "LAB//50818//mm Hg", 39.98),
        ("LAB//51249//%", 33.1, "LAB//51249//g/dL", 33.1),
        ("LAB//223761//°F", 98.6, "LAB//223761//°F", 98.6),
    ],
)
def test_units_of_mimic_become_the_usual_one(code, value, converted, expected):
    found, _ = apply(load_limits("none", "mimic-iv"), (code, value))
    assert found == [(converted, pytest.approx(expected, rel=1e-3))]


def test_conversions_end_in_the_unit_of_the_range():
    limits = load_limits("mimic-iv", "mimic-iv")
    for (code, unit), conversion in limits.conversions.items():
        plan = limits.treatment(f"{code}//{unit}")
        assert plan.code == f"{code}//{conversion.to}"
        assert not plan.other_unit, code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code,unit,to,factor,offset\nGlu,mmol/L,mg/dL,18,02,0\n", "line 2 has more cells than"),
        ("code,unit,to,factor,factor,offset\nGlu,a,b,1,2,0\n", "two columns are called factor;"),
        ("code,unit,to,factor\nGlu,a,b,1\n", "no column offset; it needs the columns code, unit"),
    ],
)
def test_a_table_in_which_it_is_not_clear_what_is_what_is_refused(tmp_path, text, message):
    (tmp_path / "units.csv").write_text(text)
    with pytest.raises(InputError, match=rf"--units .*units\.csv: {message}"):
        load_limits("none", str(tmp_path / "units.csv"))
