from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from ehr_ray.evaluation.metrics.collapse import embedding_diagnostics, latent_diagnostics
from ehr_ray.evaluation.report import figures
from ehr_ray.evaluation.report.content import Rejected, ReportContext, SplitSize
from ehr_ray.evaluation.table import Interval, Table

VOID = {"meta", "br", "img", "line", "circle", "link"}


class Parsed(HTMLParser):
    """Fails on a tag that is closed wrongly; collects text, addresses, and every tag."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)


@pytest.fixture
def parse():
    """HTML to (what was parsed, its text in one line)."""

    def parsed(html):
        page = Parsed()
        page.feed(html)
        assert page.open == []
        return page, " ".join(" ".join(page.text).split())

    return parsed


def metrics(difference=(-0.031, -0.052, -0.010)):
    out = {}
    for prefix, auroc in (("", 0.84), ("baseline/gbm/", 0.871)):
        for name, value in (("auroc", auroc), ("auprc", 0.5), ("brier", 0.09)):
            key = f"{prefix}held_out/{name}"
            out |= {key: value, f"{key}/low": value - 0.03, f"{key}/high": value + 0.03}
    key = "baseline/gbm/held_out/auroc_difference"
    out |= {key: difference[0], f"{key}/low": difference[1], f"{key}/high": difference[2]}
    return out | {"held_out/n": 800.0, "held_out/prevalence": 0.14, "held_out/ece": float("nan")}


@pytest.fixture
def context():
    """Every part of a report of a task, but hours and subgroups."""
    rng = np.random.default_rng(0)
    kl = latent_diagnostics(rng.normal(size=(50, 8)), np.full((50, 8), -2.0))
    return ReportContext(
        title="set_vae on <cohort>",
        run={"Family": "set_vae"},
        task="mortality",
        metrics=metrics(),
        verdicts=("loses to gradient-boosted trees by 0.031 [0.010, 0.052] AUROC",),
        notes=("Tuning has one class only",),
        latents={"z2": kl},
        embeddings={"pooled": embedding_diagnostics(rng.normal(size=(20, 4)))},
        reconstruction=Table(
            ("", "Error"), (("Train mean", 1.0), ("Model", 0.4)), "Lower is best."
        ),
        figures={"kl_per_dimension": figures.kl_per_dimension(kl.kl_per_dimension, kl.active)},
        cohort={"Source": "physionet2012"},
        splits=(SplitSize("train", 6400, 6400, 900), SplitSize("held_out", 800)),
        rejected=Rejected(12, 4000, {"no value": 12}, ("values such as >100: 3, number kept",)),
        config="family: set_vae\nname: <b>",
        versions={"torch": "2.9"},
    )


@pytest.fixture
def task_context(context):
    """The same with hours, subgroups and the average with the trees."""
    groups = Table(
        ("Group", "AUROC, this model", "Verdict"),
        (("sex: female", Interval(0.8, 0.7, 0.9), "loses"), ("sex: <male>", "too few", "")),
        "By group.",
    )
    hours = Table(("Hour", "AUROC"), (("6 h", Interval(0.7, 0.6, 0.8)),))
    sections = {"By subgroup: who is ranked well": groups, "By hour": hours}
    gain = "baseline/trees_and_model/held_out"
    found = metrics() | {f"{gain}/auroc": 0.88, f"{gain}/n": 800.0}
    for end, value in (("", 0.01), ("/low", -0.001), ("/high", 0.02)):
        found[f"{gain}/auroc_gain{end}"] = value
    found |= {"baseline/gbm/held_out/n": 800.0}
    return replace(context, sections=sections, metrics=found)
