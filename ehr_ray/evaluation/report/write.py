"""What an evaluation leaves on disk: metrics.json, predictions, figures and one report.html."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.markdown import bullets, markdown, paragraph
from ehr_ray.evaluation.metrics.binary import undefined
from ehr_ray.evaluation.report.content import ReportContext
from ehr_ray.evaluation.report.evaluation_page import evaluation_page
from ehr_ray.evaluation.report.page import Image, render
from ehr_ray.evaluation.report.tables import (
    SEEN,
    results_table,
    tidy_csv,
    where_the_trees_win,
)
from ehr_ray.storage import files

PREDICTIONS: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("boolean_value", pa.bool_()),
        pa.field("predicted_boolean_value", pa.bool_()),
        pa.field("predicted_boolean_probability", pa.float64()),
    ]
)
"""The MEDS evaluation schema of binary predictions."""

_DPI: Final = 200
_CSS_PIXELS_PER_INCH: Final = 96


def write_report(directory: Path, context: ReportContext) -> Path:
    """Write `report.html` (one file, opens offline) and `figures/<name>.png`; return its path."""
    images = images_of(directory, context.figures)
    path = directory / "report.html"
    files.write_bytes(path, render(evaluation_page(context, images)).encode())
    return path


def images_of(directory: Path, figures: Mapping[str, Figure]) -> dict[str, Image]:
    """Write `figures/<name>.png` and return them as a page embeds them."""
    images = {}
    for name, figure in figures.items():
        png = _png(figure)
        files.write_bytes(directory / "figures" / f"{name}.png", png)
        width = round(figure.get_figwidth() * _CSS_PIXELS_PER_INCH)
        images[name] = Image(base64.b64encode(png).decode("ascii"), width)
    return images


def write_results(directory: Path, context: ReportContext) -> None:
    """Write `results.md`, to read, and `results.csv`, every task metric as one row, to load."""
    verdicts = [f"Verdict on {context.split}: this model {v}." for v in context.verdicts[:1]]
    verdicts += [f"This model {verdict}." for verdict in context.verdicts[1:]]
    told = where_the_trees_win(context.metrics, context.split)
    tables = {
        "Beside the baselines": results_table(context.metrics, context.split),
        **context.sections,
        "Reconstruction beside constants": context.reconstruction,
    }
    text = markdown(
        context.title,
        [
            *(paragraph(text) for text in (_rows(context), SEEN.get(context.split, ""), told)),
            bullets([*verdicts, *(f"Note: {note}" for note in context.notes)]),
        ],
        {heading: table for heading, table in tables.items() if table is not None},
    )
    files.write_bytes(directory / "results.md", text.encode())
    files.write_bytes(directory / "results.csv", tidy_csv(context.metrics).encode())


def write_metrics(path: Path, metrics: Mapping[str, float]) -> list[str]:
    """Write flat, sorted metrics without NaN; return the names of those left out.

    A metric that is undefined (AUROC of one class) is not written; in its place stands
    `<name>/undefined` with 1, so that a reader can tell it from one that was never computed.
    """
    missing = undefined(metrics)
    kept = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
    kept |= {f"{name}/undefined": 1.0 for name in missing}
    files.write_bytes(path, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
    return missing


def write_predictions(
    path: Path,
    subject_id: NDArray[np.int64],
    prediction_time: NDArray[np.datetime64],
    label: NDArray[np.bool_],
    probability: NDArray[np.floating],
    positive: str = "",
    threshold: float | None = None,
) -> None:
    """Write one row a prediction as Parquet in the MEDS evaluation schema.

    What the positive class is goes into the file's metadata, as `positive`. A prediction is true
    from `threshold` on; without one `predicted_boolean_value` is null.
    """
    predicted = [None] * len(label) if threshold is None else np.asarray(probability) >= threshold
    columns: list[Any] = [
        np.asarray(subject_id, dtype=np.int64),
        np.asarray(prediction_time, dtype="datetime64[us]"),
        np.asarray(label, dtype=bool),
        predicted,
        np.asarray(probability, dtype=np.float64),
    ]
    table = pa.table(dict(zip(PREDICTIONS.names, columns, strict=True)), schema=PREDICTIONS)
    if positive:
        table = table.replace_schema_metadata({"positive": positive})
    files.write_parquet(table, path)


def _rows(context: ReportContext) -> str:
    if not context.task:
        return "The cohort has no labels: nothing was compared."
    n, share = (context.metrics.get(f"{context.split}/{k}") for k in ("n", "prevalence"))
    if n is not None and share is None:
        return f"{context.task} on {context.split}: {n:,.0f} rows."
    if n is None or share is None:
        return f"{context.task} on {context.split}"
    return f"{context.task} on {context.split}: {n:,.0f} rows, {share:.1%} positive."


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the name of the software the same run gives the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": ""})
    return buffer.getvalue()
