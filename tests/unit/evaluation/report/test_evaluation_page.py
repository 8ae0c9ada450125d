from dataclasses import replace

import numpy as np
import pytest

from ehr_ray.evaluation.metrics.collapse import latent_diagnostics
from ehr_ray.evaluation.report.content import ReportContext
from ehr_ray.evaluation.report.evaluation_page import evaluation_page
from ehr_ray.evaluation.report.page import Image, render


def html(context):
    return render(evaluation_page(context, {}))


def test_a_report_without_anything_but_a_title_is_still_a_page(parse):
    page, text = parse(html(ReportContext(title="bare")))
    assert "nothing was judged" in text
    assert "Beside the baselines" not in text
    assert page.addresses == []


@pytest.mark.parametrize(
    "missing",
    [
        {"metrics": {}, "verdicts": (), "task": ""},
        {"latents": {}},
        {"latents": {}, "embeddings": {}},
        {"figures": {}},
        {"splits": (), "rejected": None, "cohort": {}},
        {"reconstruction": None, "notes": ()},
    ],
)
def test_a_missing_part_is_left_out(missing, context, parse):
    parse(html(replace(context, **missing)))


def test_the_verdict_comes_first_and_admits_the_loss(context, parse):
    source = html(context)
    _, text = parse(source)
    loss = "held-out patients: loses to gradient-boosted trees by 0.031 [0.010, 0.052] AUROC."
    assert loss in text
    assert text.index(loss) < text.index("Beside the baselines")
    assert 'class="verdict bad"' in source


def test_a_collapsed_latent_is_bad_news_even_for_a_model_that_wins(context, parse):
    dead = latent_diagnostics(np.zeros((20, 4)), np.zeros((20, 4)))
    winner = ("beats gradient-boosted trees by 0.020 [0.010, 0.030] AUROC",)
    context = replace(context, verdicts=winner, latents={"z": dead})
    source = html(context)
    _, text = parse(source)
    assert "The latent z is collapsed: KL is 0.000 nats a row" in text
    assert 'class="verdict bad"' in source


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [("beats PCA by 0.1", "good"), ("cannot be told apart from PCA", "mixed"), ("loses", "bad")],
)
def test_the_tone_follows_the_verdict(verdict, tone, context):
    assert f'class="verdict {tone}"' in html(replace(context, verdicts=(verdict,)))


def test_hours_and_subgroups_follow_the_comparison(task_context, parse):
    source = html(task_context)
    _, text = parse(source)
    order = ["Beside the baselines", "By hour", "By subgroup: who", "Did it collapse?"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "0.800 0.700–0.900" in text
    assert "sex: &lt;male&gt;" in source
    assert '<td class="word bad">loses</td>' in source


def test_a_figure_stands_once_beside_its_table(context, parse):
    names = ("calibration", "kl_per_dimension", "loss_curves", "of_the_family")
    images = {name: Image("AAAA", 900 + i) for i, name in enumerate(names)}
    page, _ = parse(render(evaluation_page(context, images)))
    widths = [int(tag["width"]) for name, tag, _ in page.tags if name == "img"]
    assert widths == [900, 901, 903, 902]
