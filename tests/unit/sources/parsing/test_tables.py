from ehr_ray.sources.parsing.tables import Table


def test_kinds_say_what_may_be_blank():
    table = Table("things", {"unit": "text?", "item": "whole"})
    assert table.kind("unit") == ("text", True)
    assert table.kind("item") == ("whole", False)
