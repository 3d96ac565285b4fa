"""Charts of the report: curves of the runs, feature maps, spectra. The page sets their colors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mec.report.record import Columns, Record
from mec.report.schema import FeatureAnalysis

COLORS = {
    "light": (
        "#0067ad", "#c84f00", "#00795a", "#a8487f", "#8a6300", "#5b6470", "#0f8ea8", "#b3261e", "#6a4fbf", "#56750a",
    ),
    "dark": (
        "#5ab4f0", "#f28c4e", "#35c79d", "#e59cc6", "#e3b93f", "#b4bcc8", "#8ae0ee", "#ff8a80", "#b7a3f7", "#bcd65c",
    ),
}  # fmt: skip
"""Colors of runs, and of groups on a map. Line styles and symbols distinguish them for color-blind readers."""
LINE_STYLES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
OTHER_COLOR = 5
"""Index of gray, the color of all labels beyond the first MAX_GROUPS."""
MAX_GROUPS = 30
"""Labels with a color and symbol of their own on a map; more are hard to distinguish."""
MAX_POINTS = 2_000
"""Points of a curve."""
MAX_SPECTRUM_POINTS = 600
MAX_NAME = 60
"""Characters of a name in a chart."""


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        id: id of its HTML element.
        title: quantity and unit.
        caption: how to read it, in a sentence or two.
        summary: text alternative, for screen readers and for pages without scripts.
        figure: plotly's data and layout.
    """

    id: str
    title: str
    caption: str
    summary: str
    figure: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A column of metrics.csv or probes.csv, and how to plot it.

    Attributes:
        column: name of the column.
        title: see Chart.
        caption: see Chart.
        scale: scale of the y axis.
        threshold: value and label of a horizontal line.
    """

    column: str
    title: str
    caption: str
    scale: Literal["linear", "log", "percent"] = "linear"
    threshold: tuple[float, str] | None = None


CURVES = (
    Curve(
        "loss",
        "Loss",
        "Should fall, fast at first. Losses of runs with a different form or distortion are not comparable.",
    ),
    Curve(
        "coding_length",
        "Coding length (nats)",
        "Length of the code of a batch. It is large at initialization too, because the codes are noise: it falls at "
        "first, then grows while the codes spread. Only comparable between runs with the same distortion and batch "
        "size.",
    ),
    Curve(
        "spectral_norm",
        "Spectral norm ‖C‖₂",
        "The Taylor series of the cross form (objective.order) converges only below the line; above it the loss is "
        "meaningless. The pooled form and the exact log determinant need no series; there, a large norm means that "
        "the codes share one direction.",
        scale="log",
        threshold=(1.0, "radius of convergence 1"),
    ),
    Curve(
        "effective_rank",
        "Effective rank of the codes",
        "Number of directions that the codes of a batch use: exp of the entropy of the covariance eigenvalues of the "
        "L2-normalized codes. It may fall at first, then rises and stays high. Near 1, all images have the same code "
        "(collapse).",
    ),
    Curve("lr", "Learning rate", "Rises during the warm-up, then follows a cosine to zero."),
    Curve(
        "data_wait_fraction",
        "Waiting for data (% of time)",
        "Above the line the device waits for images too often: raise workers, or use smaller images or a faster disk.",
        scale="percent",
        threshold=(0.2, "20%"),
    ),
    Curve("images_per_second", "Images per second", "Training speed. Should be constant after the first steps."),
)  # fmt: skip
PROBE_CAPTION = "Accuracy on held-out images during training. Labels are used for this metric only."


def curve_charts(records: Sequence[Record], max_points: int = MAX_POINTS) -> list[Chart]:
    """Return a chart for each column that any run has, with a curve of at most ``max_points`` for each run."""
    probes = dict.fromkeys(name for r in records for name in r.probes if name not in ("epoch", "step", "seconds"))
    metric_tables = [record.metrics for record in records]
    probe_tables = [record.probes for record in records]
    charts = [_curve_chart(curve, records, metric_tables, max_points) for curve in CURVES]
    for name in probes:
        probe = Curve(name, f"Online probe: {name}", PROBE_CAPTION, scale="percent")
        charts.append(_curve_chart(probe, records, probe_tables, max_points, markers=True))
    return [chart for chart in charts if chart is not None]


def _curve_chart(
    curve: Curve, records: Sequence[Record], tables: Sequence[Columns], max_points: int, markers: bool = False
) -> Chart | None:
    figure, summaries = go.Figure(), []
    for index, (record, columns) in enumerate(zip(records, tables, strict=True)):
        x, y = downsample(columns.get("step", np.empty(0)), columns.get(curve.column, np.empty(0)), max_points)
        if not len(x):
            continue
        color, style = color_and_style(index)
        trace = go.Scatter(
            x=x.astype(np.int64).tolist(),
            y=[float(f"{value:.5g}") for value in y],
            name=escape(record.name),
            mode="lines+markers" if markers or len(x) < 3 else "lines",
            line={"width": 2, "dash": LINE_STYLES[style]},
            marker={"symbol": SYMBOLS[style], "size": 7},
            meta={"color": color, "run": index, "steps_per_epoch": record.steps_per_epoch},
        )
        figure.add_trace(trace)
        summaries.append(
            f"{record.name}: {_format(curve, y[0])} at step {x[0]:,.0f}, {_format(curve, y[-1])} at step {x[-1]:,.0f}"
        )
    if not summaries:
        return None
    figure.update_layout(hovermode="x unified", showlegend=False)
    figure.update_xaxes(title_text="step")
    if curve.scale == "log":
        figure.update_yaxes(type="log", dtick=1)
    elif curve.scale == "percent":
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    if curve.threshold is not None:
        value, label = curve.threshold
        figure.add_hline(value, line={"width": 1})
        figure.add_annotation(
            text=label, x=1, xref="paper", xanchor="right", yanchor="bottom", showarrow=False,
            y=float(np.log10(value)) if curve.scale == "log" else value,
        )  # fmt: skip
    return Chart(f"chart-{curve.column}", curve.title, curve.caption, "; ".join(summaries) + ".", to_dict(figure))


def color_and_style(index: int) -> tuple[int, int]:
    """Return the indices of color and of line style or symbol of a run or group. The first 50 pairs are distinct."""
    num_colors = len(COLORS["light"])
    return index % num_colors, (index + index // num_colors) % len(LINE_STYLES)


def downsample(
    x: NDArray[np.float64], y: NDArray[np.float64], max_points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Drop values that are not finite. Of more than ``max_points`` keep both ends and the extremes of equal bins."""
    if len(x) != len(y):
        return np.empty(0), np.empty(0)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= max_points:
        return x, y
    selected = {0, len(x) - 1}
    for indices in np.array_split(np.arange(len(x)), max(1, max_points // 2 - 1)):
        selected |= {int(indices[np.argmin(y[indices])]), int(indices[np.argmax(y[indices])])}
    order = sorted(selected)
    return x[order], y[order]


def spectrum_chart(analyses: Sequence[tuple[int, str, FeatureAnalysis]]) -> Chart:
    """Plot the singular values of the runs' features. ``analyses``: index, name and analysis of each run."""
    figure, summaries = go.Figure(), []
    for index, name, analysis in analyses:
        values = analysis.singular_values[analysis.singular_values > 0]
        ranks = np.arange(1, len(values) + 1, dtype=np.float64)
        x, y = downsample(ranks, values.astype(np.float64), MAX_SPECTRUM_POINTS)
        color, style = color_and_style(index)
        figure.add_trace(
            go.Scatter(
                x=x.astype(np.int64).tolist(),
                y=[float(f"{value:.4g}") for value in y],
                name=escape(name),
                mode="lines",
                line={"width": 2, "dash": LINE_STYLES[style]},
                meta={"color": color, "run": index},
            )
        )
        summaries.append(f"{name}: feature rank {analysis.feature_rank:.1f} of {len(analysis.singular_values)}")
    figure.update_layout(hovermode="x unified", showlegend=len(analyses) > 1)
    figure.update_xaxes(type="log", title_text="index of the singular value")
    figure.update_yaxes(type="log", title_text="fraction of the sum", exponentformat="power")
    return Chart(
        "chart-spectrum",
        "Singular values of the features",
        "A slow decay means that the features use many directions, a sharp drop that they use few. The feature rank "
        "counts these directions: exp of the entropy of the squared singular values of the centered features, "
        "normalized to sum 1. It differs from the effective rank of the codes, which are uncentered and L2-normalized.",
        "; ".join(summaries) + ".",
        to_dict(figure),
    )


def map_figure(analysis: FeatureAnalysis, color_by: Literal["label", "cluster"]) -> dict[str, Any]:
    """Plot the feature map, a trace per label or cluster. ``customdata`` is the index of the image."""
    groups = [f"cluster {cluster}" for cluster in analysis.clusters]
    if color_by == "label" and analysis.labels is not None:
        groups = analysis.labels
    counts = Counter(groups)
    largest = sorted((name for name, _ in counts.most_common(MAX_GROUPS)), key=_natural_order)
    traces: list[tuple[str, list[int], int, str]] = []
    for index, name in enumerate(largest):
        color, style = color_and_style(index)
        members = [n for n, group in enumerate(groups) if group == name]
        traces.append((escape(name), members, color, SYMBOLS[style]))
    others = [n for n, group in enumerate(groups) if group not in largest]
    if others:
        traces.append((f"{len(counts) - len(largest)} others", others, OTHER_COLOR, "circle-open"))
    figure = go.Figure()
    for name, members, color, symbol in traces:
        figure.add_trace(
            go.Scatter(
                x=[round(float(value), 2) for value in analysis.points[members, 0]],
                y=[round(float(value), 2) for value in analysis.points[members, 1]],
                customdata=members,
                name=name,
                mode="markers",
                marker={"size": 7, "symbol": symbol},
                hoverinfo="none",
                meta={"color": color},
            )
        )
    figure.update_layout(hovermode="closest", showlegend=True)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return to_dict(figure)


def to_dict(figure: go.Figure) -> dict[str, Any]:
    """Convert a figure to JSON values, without plotly's template: the page sets the colors."""
    values: dict[str, Any] = json.loads(figure.to_json())
    values["layout"].pop("template", None)
    return values


def escape(text: str) -> str:
    """Shorten text, and escape what plotly would interpret as tags and entities."""
    clipped = text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"
    return clipped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _format(curve: Curve, value: float) -> str:
    return f"{value:.0%}" if curve.scale == "percent" else f"{value:.4g}"


def _natural_order(name: str) -> tuple[int, str]:
    """Sort "class 2" before "class 10"."""
    digits = "".join(c for c in name if c.isdecimal())
    return (int(digits[:15]) if digits else -1, name)
