import re

import pytest

from ehr_ray.evaluation.report.comparison import comparison
from ehr_ray.evaluation.report.evaluation_page import evaluation_page
from ehr_ray.evaluation.report.page import (
    Card,
    Collapsible,
    Facts,
    Image,
    Listing,
    Page,
    Paragraph,
    Picture,
    Preformatted,
    number,
    picture_card,
    render,
    table_card,
)
from ehr_ray.evaluation.table import Interval, Table

BAD = "<script>|\"'&"


def of_cards(*cards, **kept):
    page = {"title": "t", "facts": {}, "tone": "good", "verdict": ["v"], **kept}
    return Page(**page, cards=cards)


def test_every_text_of_every_block_is_escaped(parse):
    blocks = [
        Table((BAD, BAD), ((BAD, BAD),), BAD),
        Facts({BAD: BAD}),
        Listing([BAD]),
        Paragraph(BAD),
        Paragraph(BAD, small=True),
        Picture(Image("AAAA", 10), BAD, BAD),
        Preformatted(BAD),
        Collapsible(BAD, Preformatted(BAD)),
    ]
    html = render(of_cards(Card(BAD, blocks), title=BAD, facts={BAD: BAD}, verdict=[BAD, BAD]))
    assert "<script" not in html
    page, text = parse(html)
    # Title twice, its facts, the verdict twice, a heading, and the texts of eight blocks.
    assert text.count(BAD) == 2 + 2 + 2 + 1 + 5 + 2 + 1 + 1 + 1 + 1 + 1 + 2
    images = [attributes for tag, attributes, _ in page.tags if tag == "img"]
    assert images == [{"alt": BAD, "width": "10", "src": "data:image/png;base64,AAAA"}]


@pytest.fixture
def tags(task_context, parse):
    images = {name: Image("AAAA", 900) for name in ("roc_pr", "alarms")}
    return parse(render(evaluation_page(task_context, images)))[0].tags


def test_headings_come_in_order_under_one_title(tags):
    levels = [int(tag[1]) for tag, _, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert ("html", {"lang": "en"}, ()) in tags
    sections = sum(tag == "section" for tag, _, _ in tags)
    assert sections == len(levels) - 1


def test_every_table_has_a_caption_and_every_heading_cell_a_scope(tags):
    tables = sum(tag == "table" for tag, _, _ in tags)
    assert tables > 5
    assert sum(tag == "caption" for tag, _, _ in tags) == tables
    scopes = [
        (attributes.get("scope"), "thead" in inside)
        for tag, attributes, inside in tags
        if tag == "th"
    ]
    assert scopes
    assert all(scope == ("col" if in_head else "row") for scope, in_head in scopes)


def test_what_scrolls_can_be_reached_by_key_and_has_a_name(tags):
    scrolled = [a for tag, a, _ in tags if a.get("class") == "scroll" or tag == "pre"]
    assert scrolled
    assert all(attributes["tabindex"] == "0" for attributes in scrolled)
    assert all(a["aria-label"] and a["role"] == "region" for a in scrolled if "class" in a)


def test_every_figure_says_in_words_what_it_shows(tags):
    words = [attributes["alt"] for tag, attributes, _ in tags if tag == "img"]
    assert words[0].startswith("ROC and precision-recall curves of every model")
    assert words[1] == "Chart: Alarms."
    assert all(a["aria-label"] for tag, a, _ in tags if tag == "svg")


def luminance(colour):
    colour = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(scheme):
    """Contrast of at least 4.5 to 1, as WCAG 2.2 asks of text (1.4.3)."""
    roots = re.findall(r":root\{(.*?)\}", render(of_cards()), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]+)", roots[scheme]))
    pairs = [(text, ground) for text in ("ink", "soft") for ground in ("card", "page")]
    for tone in ("good", "mixed", "bad", "neutral"):
        pairs += [("ink", f"{tone}-bg"), ("card", tone), (tone, "card")]
    for text, ground in pairs:
        light, dark = sorted((luminance(colours[n]) for n in (text, ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_the_comparison_fits_a_page_by_wrapping_not_by_scrolling(task_context):
    html = render(of_cards(*comparison(task_context)))
    rules = re.findall(r"([^{}]*)\{([^{}]*)\}", html.split("</style>")[0])
    for selector, body in rules:
        if ".compare" in selector or "small" in selector:
            assert "nowrap" not in body, selector


def test_numbers_have_three_decimals_or_one_where_they_are_large():
    written = [number(v) for v in (0.12345, -0.0, 1234.56, float("nan"), "as it is")]
    assert written == ["0.123", "0.000", "1,234.6", "–", "as it is"]


def test_an_estimate_without_an_interval_has_no_bounds(parse):
    nan = float("nan")
    rows = (("a", Interval(0.5, nan, nan)), ("b", Interval(0.5, 0.4, 0.6)), ("c", nan))
    page, text = parse(render(of_cards(*table_card("T", Table(("", "x"), rows)))))
    assert text.endswith("x a 0.500 b 0.500 0.400–0.600 c –")
    assert sum(tag == "small" for tag, _, _ in page.tags) == 1
    assert table_card("T", None) == table_card("T", Table(("x",), ())) == []


def test_words_stand_at_the_left_and_bounds_below_zero_are_told_apart(parse):
    rows = (
        ("a", "64 (9)", "LightGBM", Interval(-0.05, -0.08, -0.02), "loses"),
        ("b", "7", "Logistic regression", Interval(0.5, 0.4, 0.6), ""),
    )
    table = Table(("Share", "Rows", "Model", "Less it", "This model"), rows)
    html = render(of_cards(*table_card("T", table)))
    page, text = parse(html)
    left = [a for tag, a, _ in page.tags if tag in ("th", "td") and a.get("class") == "text"]
    assert len(left) == 3  # a heading and its two cells
    assert "-0.080 to -0.020" in text
    assert "0.400–0.600" in text


def test_narrow_figures_stand_two_in_a_row():
    cards = [picture_card("a_b", Image("", width), {}, {}) for width in (300, 900)]
    assert [card.half for card in cards] == [True, False]
    assert cards[0].title == "A b"
