"""The report's figures: curves of the runs, maps of features, spectra; their colors are the page's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mec.report.record import Record
from mec.report.schema import Learned

COLORS = {
    "light": (
        "#0067ad", "#c84f00", "#00795a", "#a8487f", "#8a6300", "#5b6470", "#0f8ea8", "#b3261e", "#6a4fbf", "#56750a",
    ),
    "dark": (
        "#5ab4f0", "#f28c4e", "#35c79d", "#e59cc6", "#e3b93f", "#b4bcc8", "#8ae0ee", "#ff8a80", "#b7a3f7", "#bcd65c",
    ),
}  # fmt: skip
"""Of runs, and of groups on a map; dashes and shapes tell them apart for the color-blind."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
OTHERS = 5
"""The gray among them, of labels that are too many for a color each."""
GROUPS = 30
"""Labels that have a color and shape of their own on a map; there are not many more."""
POINTS = 2_000
"""Of a curve, where the page has room."""


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        id: in the page.
        title: what is drawn.
        reading: how to read it, a sentence or two.
        summary: what it shows, for those who do not see it.
        figure: plotly's data and layout.
    """

    id: str
    title: str
    reading: str
    summary: str
    figure: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A column of metrics.csv or probes.csv as a chart."""

    column: str
    title: str
    reading: str
    kind: str = ""
    """log: axis; share: axis in percent."""
    line: tuple[float, str] | None = None
    """A value and what it is called."""


CURVES = (
    Curve("loss", "Loss", "It falls, fast at first. Values of runs of different form or distortion do not compare."),
    Curve(
        "coding_length",
        "Coding length, nats",
        "The length of the code that describes a batch. An untrained network's noise is long too: it falls at "
        "first, then grows while the codes spread. Compare runs of one distortion and batch only.",
    ),
    Curve(
        "spectral_norm",
        "Spectral norm ‖C‖₂",
        "The cross form with a Taylor series (objective.order) is sound below the line only; beyond it the series "
        "diverges and its loss means nothing. The pooled form and the exact one need no series: there it only tells "
        "how much the codes share one direction.",
        kind="log",
        line=(1.0, "radius of convergence 1"),
    ),
    Curve(
        "effective_rank",
        "Effective rank",
        "Directions that the codes use. It falls at first, as an untrained network's noise goes, then rises and stays; "
        "near 1 all images have the same code (collapse).",
    ),
    Curve("lr", "Learning rate", "Up during the warm-up, then down along half a cosine to zero."),
    Curve(
        "data_wait_fraction",
        "Waiting for data, share of the time",
        "Above the line the device is idle for want of images: raise workers, keep smaller files, or a faster disk.",
        kind="share",
        line=(0.2, "20 %"),
    ),
    Curve("images_per_second", "Images per second", "Speed of training; level after the first steps."),
)  # fmt: skip
PROBED = "Accuracy on held-out labeled images of the data, while training; labels are used for this figure only."


def curves(records: Sequence[Record], points: int = POINTS) -> list[Chart]:
    """One chart for each column that some run has, the runs overlaid; at most ``points`` of each curve."""
    probes = dict.fromkeys(name for r in records for name in r.probes if name not in ("epoch", "step", "seconds"))
    charts = [_curve(curve, records, points, "metrics") for curve in CURVES]
    for name in probes:
        charts.append(_curve(Curve(name, f"Online probe, {name}", PROBED, kind="share"), records, points, "probes"))
    return [chart for chart in charts if chart is not None]


def _curve(curve: Curve, records: Sequence[Record], points: int, table: str) -> Chart | None:
    figure, said = go.Figure(), []
    for number, record in enumerate(records):
        columns = getattr(record, table)
        x, y = thinned(columns.get("step", np.empty(0)), columns.get(curve.column, np.empty(0)), points)
        if not len(x):
            continue
        trace = go.Scatter(
            x=x.astype(np.int64).tolist(),
            y=[float(f"{value:.5g}") for value in y],
            name=shown(record.name),
            mode="lines+markers" if table == "probes" or len(x) < 3 else "lines",
            line={"width": 2, "dash": DASHES[look(number)[1]]},
            marker={"symbol": SYMBOLS[look(number)[1]], "size": 7},
            meta={"color": look(number)[0], "run": number, "per_epoch": record.steps_per_epoch},
        )
        figure.add_trace(trace)
        said.append(f"{record.name}: {_tell(curve, y[0])} at step {x[0]:,.0f}, {_tell(curve, y[-1])} at {x[-1]:,.0f}")
    if not said:
        return None
    figure.update_layout(hovermode="x unified", showlegend=False)
    figure.update_xaxes(title_text="step")
    if curve.kind == "log":
        figure.update_yaxes(type="log", dtick=1)
    elif curve.kind == "share":
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    if curve.line is not None:
        figure.add_hline(curve.line[0], line={"width": 1})
        figure.add_annotation(
            text=curve.line[1], x=1, xref="paper", xanchor="right", yanchor="bottom", showarrow=False,
            y=float(np.log10(curve.line[0])) if curve.kind == "log" else curve.line[0],
        )  # fmt: skip
    return Chart(f"chart-{curve.column}", curve.title, curve.reading, "; ".join(said) + ".", plain(figure))


def look(number: int) -> tuple[int, int]:
    """Of a run or group: which color, and which dash or symbol; no two of the first 50 are alike."""
    colors = len(COLORS["light"])
    return number % colors, (number + number // colors) % len(DASHES)


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Finite values; of many, the first, the last, and the lowest and highest of each of ``points`` / 2 stretches."""
    if len(x) != len(y):
        return np.empty(0), np.empty(0)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= points:
        return x, y
    kept = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), max(1, points // 2 - 1)):
        kept |= {int(stretch[np.argmin(y[stretch])]), int(stretch[np.argmax(y[stretch])])}
    order = sorted(kept)
    return x[order], y[order]


def spectrum(found: Sequence[tuple[int, str, Learned]]) -> Chart:
    """Singular values of the runs' features; (number, name, what was learned) of each."""
    figure, said = go.Figure(), []
    for number, name, learned in found:
        values = learned.singular_values[learned.singular_values > 0]
        x, y = thinned(np.arange(1, len(values) + 1, dtype=np.float64), values.astype(np.float64), 600)
        figure.add_trace(
            go.Scatter(
                x=x.astype(np.int64).tolist(),
                y=[float(f"{value:.4g}") for value in y],
                name=shown(name),
                mode="lines",
                line={"width": 2, "dash": DASHES[look(number)[1]]},
                meta={"color": look(number)[0], "run": number},
            )
        )
        said.append(f"{name}: effective rank {learned.effective_rank:.1f} of {len(learned.singular_values)}")
    figure.update_layout(hovermode="x unified", showlegend=len(found) > 1)
    figure.update_xaxes(type="log", title_text="number of the singular value")
    figure.update_yaxes(type="log", title_text="share of the sum", exponentformat="power")
    return Chart(
        "chart-spectrum",
        "Singular values of the features",
        "A slow fall uses many directions; a cliff means that the features live in few. The effective rank counts "
        "them.",
        "; ".join(said) + ".",
        plain(figure),
    )


def embedding(learned: Learned, number: int, by: str) -> dict[str, Any]:
    """Map of a run's images, a trace for each group; ``by`` label or cluster. customdata: which image."""
    groups = (
        learned.labels if by == "label" and learned.labels is not None else [f"cluster {c}" for c in learned.clusters]
    )
    counts = Counter(groups)
    own = sorted((name for name, _ in counts.most_common(GROUPS)), key=_natural)
    figure = go.Figure()
    for i, name in enumerate([*own, None]):
        members = [n for n, group in enumerate(groups) if (group == name if name is not None else group not in own)]
        if not members:
            continue
        figure.add_trace(
            go.Scatter(
                x=[round(float(v), 2) for v in learned.points[members, 0]],
                y=[round(float(v), 2) for v in learned.points[members, 1]],
                customdata=members,
                name=shown(name) if name is not None else f"{len(counts) - len(own)} others",
                mode="markers",
                marker={"size": 7, "symbol": SYMBOLS[look(i)[1]] if name is not None else "circle-open"},
                hoverinfo="none",
                meta={"color": look(i)[0] if name is not None else OTHERS},
            )
        )
    figure.update_layout(hovermode="closest", showlegend=True, meta={"map": number})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return plain(figure)


def plain(figure: go.Figure) -> dict[str, Any]:
    """Without plotly's own colors, which the page sets."""
    whole: dict[str, Any] = json.loads(figure.to_json())
    whole["layout"].pop("template", None)
    return whole


def shown(text: str, most: int = 60) -> str:
    """Text that plotly shows as it is: it reads tags and entities."""
    clipped = text if len(text) <= most else text[: most - 1] + "…"
    return clipped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _tell(curve: Curve, value: float) -> str:
    return f"{value:.0%}" if curve.kind == "share" else f"{value:.4g}"


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(c for c in name if c.isdecimal())
    return (int(digits[:15]) if digits else -1, name)
