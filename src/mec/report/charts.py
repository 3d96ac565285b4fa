"""Charts of the report: curves of the runs, feature maps, spectra. The page sets their colors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mec.pretraining.advice import has_series
from mec.pretraining.health import MAX_DATA_WAIT
from mec.report.analysis import FeatureAnalysis
from mec.report.record import PROBE_NAMES, Columns, Record

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
MAX_GROUPS = 30  # labels with a color and symbol of their own on a map; more are hard to distinguish
OTHER_COLOR = 5  # index of gray, the color of all other labels
MAX_POINTS, MAX_SPECTRUM_POINTS = 2_000, 600  # of a curve
MAX_NAME = 60  # characters of a name in a chart


class Chart(NamedTuple):
    """A chart of the page."""

    id: str  # of its HTML element
    title: str  # quantity and unit
    caption: str  # how to read it, in a sentence or two
    summary: str  # text alternative, for screen readers and for pages without scripts
    figure: dict[str, Any]  # plotly's data and layout, without colors: the page sets them


class Curve(NamedTuple):
    """A column of metrics.csv or probes.csv, and how to plot it."""

    column: str
    title: str
    caption: str
    scale: Literal["linear", "log", "percent"] = "linear"
    threshold: tuple[float, str] | None = None  # value and label of a horizontal line
    needs_series: bool = False  # only for runs whose objective is a Taylor series


CURVES = (
    Curve("loss", "Loss", "Should fall. With the default form, -1 is the loss of codes that use all directions evenly "
          "and whose views agree. Losses of other objectives and forms are not comparable."),
    Curve("disagreement", "Disagreement of the views", "1 minus the mean cosine of the codes of two views of an image. "
          "Should fall."),
    Curve("rate_reduction", "Rate reduction (nats)", "What a code says about its image, at a distortion of 1/32: the "
          "coding rate of all codes minus that of the differences between views. Should rise."),
    Curve("distortion", "Distortion", "As scheduled: the variance below which a direction of the codes counts as "
          "empty. A sweep starts with fine codes and ends with coarse ones.", "log"),
    Curve("coding_length", "Coding length (nats)", "Length of the code of a batch at a distortion of 1/32. It is large "
          "at initialization too, because the codes are noise. It follows the effective rank. Only comparable between "
          "runs with the same batch size."),
    Curve("spectral_norm", "Spectral norm ‖C‖₂", "The Taylor series of the objective (objective.order) converges only "
          "below the line; above it the loss is meaningless.", "log", (1.0, "radius of convergence 1"), True),
    Curve("effective_rank", "Effective rank of the codes", "Number of directions that the codes of a batch use: exp of "
          "the entropy of the covariance eigenvalues of the L2-normalized codes. It falls at first, and while the "
          "distortion rises; with a constant distortion it rises again. Near 1, all images have the same code "
          "(collapse)."),
    Curve("lr", "Learning rate", "Rises during the warm-up, then follows a cosine to zero."),
    Curve("data_wait_fraction", "Waiting for data (% of time)", "Above the line the device waits for images too often: "
          "raise workers, or use smaller images or a faster disk.", "percent", (MAX_DATA_WAIT, f"{MAX_DATA_WAIT:.0%}")),
    Curve("images_per_second", "Images per second", "Training speed. Should be constant after the first steps."),
)  # fmt: skip
NOT_PLOTTED = ("step", "epoch", "seconds", "rankme", "alpha_req", "skipped_steps")
OWN_CAPTION = "Measured by the objective that was passed to mec.pretrain, every log_every steps."
PROBE_CAPTION = "Accuracy on held-out images during training. Labels are used for this metric only."


def curve_charts(records: Sequence[Record], max_points: int = MAX_POINTS) -> list[Chart]:
    """Return a chart for each column that any run has, with a curve of at most ``max_points`` for each run."""
    metrics, probes = [record.metrics for record in records], [record.probes for record in records]
    names = dict.fromkeys(name for columns in probes for name in columns if name not in ("epoch", "step", "seconds"))
    charts = [_curve_chart(curve, records, metrics, max_points) for curve in [*CURVES, *_own_curves(metrics)]]
    for name in names:
        curve = Curve(name, f"Online probe: {PROBE_NAMES.get(name, name)}", PROBE_CAPTION, "percent")
        charts.append(_curve_chart(curve, records, probes, max_points, markers=True))
    return [chart for chart in charts if chart is not None]


def _own_curves(tables: Sequence[Columns]) -> list[Curve]:
    """Return curves of the columns that the health of a user's objective adds to metrics.csv."""
    known = {*NOT_PLOTTED, *(curve.column for curve in CURVES)}
    names = dict.fromkeys(name for columns in tables for name in columns if name not in known)
    return [Curve(name, name, OWN_CAPTION) for name in names]


def _curve_chart(
    curve: Curve, records: Sequence[Record], tables: Sequence[Columns], max_points: int, markers: bool = False
) -> Chart | None:
    traces, summaries = [], []
    for index, (record, columns) in enumerate(zip(records, tables, strict=True)):
        if curve.needs_series and not has_series(record.recipe.get):
            continue
        x, y = downsample(columns.get("step", np.empty(0)), columns.get(curve.column, np.empty(0)), max_points)
        if not len(x):
            continue
        trace = _line(index, record.name, x, y, digits=5)
        trace["mode"] = "lines+markers" if markers or len(x) < 3 else "lines"
        trace["marker"] = {"symbol": SYMBOLS[color_and_style(index)[1]], "size": 7}
        trace["meta"]["steps_per_epoch"] = record.steps_per_epoch
        traces.append(trace)
        unit = ".0%" if curve.scale == "percent" else ".4g"
        summaries.append(f"{record.name}: {y[0]:{unit}} at step {x[0]:,.0f}, {y[-1]:{unit}} at step {x[-1]:,.0f}")
    if not traces:
        return None
    layout: dict[str, Any] = {"hovermode": "x unified", "showlegend": False, "xaxis": {"title": {"text": "step"}}}
    if curve.scale == "linear":
        layout["yaxis"] = {"exponentformat": "e"}
    elif curve.scale == "log":
        layout["yaxis"] = {"type": "log", "dtick": 1}
    elif curve.scale == "percent":
        layout["yaxis"] = {"tickformat": ".1~%", "rangemode": "normal" if markers else "tozero"}
    if curve.threshold is not None:
        value, label = curve.threshold
        line = {"x0": 0, "x1": 1, "xref": "x domain", "y0": value, "y1": value, "yref": "y", "line": {"width": 1}}
        layout["shapes"] = [{"type": "line", **line}]
        height = float(np.log10(value)) if curve.scale == "log" else value
        place = {"x": 1, "xref": "paper", "xanchor": "right", "yanchor": "bottom", "showarrow": False}
        layout["annotations"] = [{"text": label, **place, "y": height}]
    figure = {"data": traces, "layout": layout}
    element = "chart-" + re.sub("[^a-z0-9_]", lambda character: f"-{ord(character[0])}-", curve.column)
    return Chart(element, curve.title, curve.caption, "; ".join(summaries) + ".", figure)


def _line(index: int, name: str, x: NDArray[np.float64], y: NDArray[np.float64], digits: int) -> dict[str, Any]:
    """Return plotly's trace of a curve of run ``index``, with y rounded to a number of significant digits."""
    color, style = color_and_style(index)
    return {
        "type": "scatter",
        "x": x.astype(np.int64).tolist(),
        "y": [float(f"{value:.{digits}g}") for value in y],
        "name": escape(name),
        "mode": "lines",
        "line": {"width": 2, "dash": LINE_STYLES[style]},
        "meta": {"color": color, "run": index},
    }


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
    traces, summaries = [], []
    for index, name, analysis in analyses:
        values = analysis.singular_values[analysis.singular_values > 0]
        x, y = downsample(np.arange(1.0, len(values) + 1), values, MAX_SPECTRUM_POINTS)
        traces.append(_line(index, name, x, y, digits=4))
        summaries.append(f"{name}: feature rank {analysis.feature_rank:.1f} of {len(analysis.singular_values)}")
    layout = {
        "hovermode": "x unified",
        "showlegend": len(analyses) > 1,
        "xaxis": {"type": "log", "dtick": "D2", "title": {"text": "index of the singular value"}},
        "yaxis": {"type": "log", "dtick": "D2", "title": {"text": "fraction of the sum"}, "exponentformat": "power"},
    }
    return Chart(
        "chart-spectrum",
        "Singular values of the features",
        "A slow decay means that the features use many directions, a sharp drop that they use few. The curve ends at "
        "the number of features, or at one less than the number of images, or where only rounding error is left. The "
        "feature rank counts the directions: exp of the entropy of the squared singular values of the centered "
        "features, normalized to sum 1. It differs from the effective rank of the codes, which are uncentered and "
        "L2-normalized.",
        "; ".join(summaries) + ".",
        {"data": traces, "layout": layout},
    )


def map_figure(analysis: FeatureAnalysis, by_label: bool) -> dict[str, Any]:
    """Plot the feature map, a trace per label or cluster. ``customdata`` is the index of the image."""
    groups = analysis.labels if by_label else None
    if groups is None:
        groups = [f"cluster {cluster}" for cluster in analysis.clusters]
    counts = Counter(groups)
    largest = sorted((name for name, _ in counts.most_common(MAX_GROUPS)), key=_natural_order)
    traces = []
    for index, name in enumerate(largest):
        color, style = color_and_style(index)
        members = [n for n, group in enumerate(groups) if group == name]
        traces.append(_points(analysis, members, escape(name), color, SYMBOLS[style]))
    others = [n for n, group in enumerate(groups) if group not in largest]
    if others:
        traces.append(_points(analysis, others, f"{len(counts) - len(largest)} others", OTHER_COLOR, "circle-open"))
    layout = {"hovermode": "closest", "showlegend": True}
    axes = {"xaxis": {"visible": False}, "yaxis": {"visible": False, "scaleanchor": "x"}}
    return {"data": traces, "layout": layout | axes}


def _points(analysis: FeatureAnalysis, members: list[int], name: str, color: int, symbol: str) -> dict[str, Any]:
    x, y = ([round(float(value), 2) for value in analysis.points[members, axis]] for axis in (0, 1))
    marker = {"size": 7, "symbol": symbol}
    return {
        "type": "scatter", "x": x, "y": y, "customdata": members, "name": name, "mode": "markers", "marker": marker,
        "hoverinfo": "none", "meta": {"color": color},
    }  # fmt: skip


def escape(text: str) -> str:
    """Shorten text, and escape what plotly would interpret as tags and entities."""
    clipped = text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"
    return clipped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _natural_order(name: str) -> tuple[int, str]:
    """Sort "class 2" before "class 10"."""
    digits = "".join(c for c in name if c.isdecimal())
    return (int(digits[:15]) if digits else -1, name)
