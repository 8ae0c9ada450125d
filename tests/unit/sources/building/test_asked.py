from pathlib import Path

import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.sources.building.asked import Asked, treatment
from ehr_ray.sources.source import get_source, make_options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": "csv"},
            "--source csv: not available; choose from physionet2012, mimic-iv",
        ),
        ({"source": "mimic4"}, "--source mimic4: not available; did you mean mimic-iv?"),
        ({"source": "hospital"}, "--source hospital: not available"),
        ({"source": "mimic-iv"}, "--source mimic-iv reads files: say where by --input PATH"),
        ({"source": "meds"}, "--source meds reads files: say where by --input PATH"),
        ({"source": "meds", "input": Path("no/where")}, "--input no/where: no such file or folder"),
        ({"source": "synthetic", "splits": "1,2"}, "--splits 1,2"),
        ({"source": "synthetic", "max_rejected": 3}, "--max-rejected 3"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(tmp_path, arguments, message):
    with pytest.raises(InputError) as error:
        ingest(**{"input": None, "output": tmp_path / "out/c", "options": {}, **arguments})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_asked_for_adds_nothing_to_what_an_ingest_is_known_by():
    """So that cohorts which were made before there was an option are still known."""
    synthetic = get_source("synthetic")

    def known_by(**given):
        usual = {"splits": None, "seed": 0, "origin": None, "ranges": None, "units": None}
        usual |= {"repeats": "keep", "code_map": None, "split_by": None, "unlisted": "refuse"}
        plan = Asked(**usual | given, max_rejected=0.01).plan(
            synthetic, make_options(synthetic, {})
        )
        return treatment(plan)[1:]

    assert known_by() == ("keep",)
    assert known_by(repeats="drop", split_by="SITE") == ("drop", "split_by=SITE")
