import pytest

from ehr_ray.evaluation.markdown import bullets, escaped, markdown, paragraph
from ehr_ray.evaluation.table import Interval, Table


def test_markdown_holds_titles_facts_and_every_kind_of_cell():
    table = Table(
        ("", "a|b"), (("x|y", Interval(0.5, 0.4, 0.6)), ("z", float("nan"))), "How to read."
    )
    bare = Table(("", "v"), (("w", Interval(0.5, float("nan"), float("nan"))), ("u", 2.0)))
    text = markdown("Run", ["A fact."], {"One": table, "Two": bare})
    assert text.startswith("# Run\n\nA fact.\n\n## One\n\n|")
    assert "| x\\|y | 0.500 [0.400, 0.600] |" in text
    assert "| z | – |" in text
    assert "| w | 0.500 |" in text
    assert "| u | 2.000 |" in text
    assert text.endswith("\n")
    assert "How to read." in text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("two\nlines", "two lines"),
        ("[a](http://b)", r"[a]\(http://b)"),
        ("![a][b]", r"![a]\[b]"),
        ("*a* `b` ~~c~~", r"\*a\* \`b\` \~\~c\~\~"),
        ("_a_ held_out", r"\_a\_ held_out"),
        ("a &lt; b", "a &amp;lt; b"),
        ("-0.031 [-0.052, -0.010]", "-0.031 [-0.052, -0.010]"),
    ],
)
def test_a_text_reads_as_it_is_and_is_no_markup(text, written):
    assert escaped(text) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [("# a", r"\# a"), ("1. a", r"1\. a"), ("- a", r"\- a"), ("-0.1", "-0.1"), ("> a", "&gt; a")],
)
def test_a_paragraph_begins_with_text(text, written):
    assert paragraph(text) == written
    assert bullets([text]) == f"- {written}"


def test_what_a_cohort_says_is_no_markup_anywhere_on_the_page():
    bad = "<script>|"
    text = markdown(bad, [paragraph(bad)], {bad: Table((bad,), ((bad,),), bad)})
    assert text.count(r"&lt;script&gt;\|") == text.count("script") == 6
    assert "<" not in text
