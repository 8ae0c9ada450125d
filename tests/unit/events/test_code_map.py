import csv

import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.code_map import SHIPPED, load_code_map
from ehr_ray.events.schema import EVENTS


@pytest.fixture
def code_map(tmp_path):
    def write(*rows, head="code,to,scale,offset"):
        path = tmp_path / "map.csv"
        path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8-sig")
        return load_code_map(str(path))

    return write


def apply(codes, *rows):
    columns = [[1] * len(rows), [None] * len(rows), *map(list, zip(*rows, strict=True))]
    events, counts = codes.apply(pa.table(columns, schema=EVENTS))
    assert events.schema == EVENTS
    found = list(zip(events["code"].to_pylist(), events["numeric_value"].to_pylist(), strict=True))
    return found, {row["values"]: row["counts"] for row in counts.to_pylist()}


def test_codes_are_renamed_and_values_scaled_and_others_left_as_they_are(code_map):
    codes = code_map("T//°F,Temp,0.5555555556,-17.7777777778", "LAB//k,K,,", "SEX//M,Gender,0,1")
    found, counts = apply(
        codes,
        *(("T//°F", 98.6), ("T//°C", 37.0), ("LAB//k//mmol/L", 4.0), ("LAB//k", None)),
        *(("SEX//M", None), ("SEX//F", None)),
    )
    assert found == [
        *(("Temp", pytest.approx(37)), ("T//°C", 37.0), ("K", 4.0), ("K", None)),
        *(("Gender", 1.0), ("SEX//F", None)),
    ]
    assert counts == {"T//°F": 1, "LAB//k//mmol/L": 1, "LAB//k": 1, "SEX//M": 1}


def test_codes_that_no_event_has_are_told_and_all_of_them_are_an_error(code_map):
    codes = code_map("a,A,1,0", "b,B,1,0", "c,C,1,0")
    assert codes.check(["a", "b//mg", "c", "x"]) is None
    assert codes.check(["a", "x"]).endswith(r"map.csv: 2 of its 3 codes are in no event: b, c")
    with pytest.raises(InputError, match=r"map\.csv: no event has any of its 3 codes, such as a"):
        codes.check(["x", "A"])
    assert load_code_map("eicu").check(["AGE"]) is None
    with pytest.raises(InputError, match="--code-map eicu: no event has any"):
        load_code_map("eicu").check(["LAB//220045//bpm"])


def test_targets_that_the_model_does_not_know_are_told_and_all_of_them_are_an_error(code_map):
    codes = code_map("a,A,1,0", "b,B,1,0", "c,B,1,0")
    assert codes.check_targets(["A", "B", "X"]) is None
    assert "does not know 1 of the 2 codes it maps to: B" in codes.check_targets(["A"])
    with pytest.raises(InputError, match="the model knows none of the 2 codes it maps to"):
        codes.check_targets(["X"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,A,x,0"], "line 2: column scale: 'x' is no number"),
        (["b,B,1,0", "a,A,1,much"], "line 3: column offset: 'much' is no number"),
        (["a,A,1,0", "a,B,1,0"], "line 3 is about a again; keep one"),
        ([",A,1,0"], "line 2 has no code"),
        (["a,,1,0"], "line 2 has no to"),
        (["a,A,inf,0"], "line 2: scale and offset must be finite"),
        (["a,A,0,055,0"], "line 2 has more cells than the header; .* write 0.5, not 0,5"),
        (["b,B,1,0", "a,A,18"], "line 3 has not all of code, to, scale, offset"),
        ([], "no row under its columns code, to, scale, offset"),
    ],
)
def test_a_bad_map_is_refused_with_its_line(code_map, rows, message):
    with pytest.raises(InputError, match=rf"--code-map .*map\.csv: {message}"):
        code_map(*rows)


def test_a_map_without_a_column_or_that_is_not_there_is_refused(code_map):
    with pytest.raises(InputError, match=r"no column offset; it needs the columns code, to"):
        code_map("a,A,1", head="code,to,scale")
    with pytest.raises(InputError, match=r"two columns are called scale; rename or remove one"):
        code_map("a,A,1,2,0", head="code,to,scale,scale,offset")
    assert code_map("a,A,1,0", "b,B,1,0,word", head="code,to,scale,offset,note").entries["a"]
    with pytest.raises(InputError, match=r"--code-map nowhere: .* nor one of eicu, mimic-iv$"):
        load_code_map("nowhere")


@pytest.mark.parametrize("name", ["eicu", "mimic-iv"])
def test_a_shipped_map_leads_to_variables_of_physionet_2012(name):
    path = SHIPPED.parent / "lookups" / "physionet2012.csv"
    variables = {row["code"] for row in csv.DictReader(path.read_text().splitlines())}
    targets = {entry.to for entry in load_code_map(name).entries.values()}
    assert targets <= variables
    assert len(targets) >= 35
