import pytest
from made_up.omop import COLUMNS, OF_5_3

from ehr_ray.sources.omop.tables import BY_NAME, CONCEPTS


@pytest.mark.parametrize("table", [*BY_NAME.values(), CONCEPTS], ids=lambda table: table.name)
def test_columns_are_those_of_the_model(table):
    there = {*COLUMNS[table.name].split(), *OF_5_3.values()}
    assert {table.key, *table.columns} <= there
    assert table.optional <= set(table.columns)
    assert not [name for name in table.optional if table.columns[name][-1] != "?"]
