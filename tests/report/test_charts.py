"""Charts of the report: data, downsampling, and accessible colors."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.report import charts
from mec.report.record import read_records
from tests.report.runs import HOSTILE_NAMES, make_analysis, metrics_row, write_metrics, write_run

SERIES = {"objective": {"form": "cross", "order": 4}}
CSS = Path(charts.__file__).parent / "template" / "report.css"


def test_every_metric_has_a_chart_with_a_curve_per_run(tmp_path: Path) -> None:
    records = read_records([write_run(tmp_path / "a", **SERIES), write_run(tmp_path / "b", num_steps=20, **SERIES)])
    by_title = {chart.title: chart for chart in charts.curve_charts(records)}
    expected = ["Loss", "Disagreement", "Rate reduction", "Distortion", "Coding length", "Spectral norm"]
    expected += ["Effective rank", "Learning rate", "Waiting", "Images per"]
    for title in [*expected, "Online probe: kNN", "Online probe: linear"]:
        (chart,) = [chart for full_title, chart in by_title.items() if full_title.startswith(title)]
        a, b = chart.figure["data"]
        assert (a["name"], b["name"]) == ("a", "b")
        assert (a["meta"]["color"], a["line"]["dash"]) != (b["meta"]["color"], b["line"]["dash"])
    loss = by_title["Loss"].figure["data"][0]
    assert loss["x"] == list(range(40))
    assert loss["y"] == pytest.approx([1 / (1 + step) for step in range(40)], rel=1e-4)
    assert len(by_title) == 12


def test_summary_contains_first_and_last_value_and_the_radius_of_convergence_is_a_labeled_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", **SERIES)
    write_metrics(folder, [metrics_row(step, data_wait_fraction=0.5 if step else 0.25) for step in range(8)])
    by_id = {chart.id: chart for chart in charts.curve_charts(read_records([folder]))}
    assert by_id["chart-data_wait_fraction"].summary == "a: 25% at step 0, 50% at step 7."
    layout = by_id["chart-spectral_norm"].figure["layout"]
    assert layout["yaxis"]["type"] == "log"
    assert (layout["shapes"][0]["y0"], layout["shapes"][0]["y1"]) == (1.0, 1.0)
    assert layout["annotations"][0]["y"] == 0.0  # plotly expects log10 of the value on a log axis
    assert "radius of convergence" in layout["annotations"][0]["text"]


@pytest.mark.parametrize("objective", [{"form": "pooled"}, {"form": "cross", "order": None}, {}])
def test_the_radius_of_convergence_is_only_shown_for_taylor_series(tmp_path: Path, objective: dict[str, Any]) -> None:
    records = read_records([write_run(tmp_path / "a", **SERIES), write_run(tmp_path / "b", objective=objective)])
    (chart,) = [chart for chart in charts.curve_charts(records) if chart.id == "chart-spectral_norm"]
    assert [trace["name"] for trace in chart.figure["data"]] == ["a"]
    assert "chart-spectral_norm" not in [chart.id for chart in charts.curve_charts(records[1:])]


def test_downsampled_curves_keep_their_extremes() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=50_000)
    y[[12_345, 33_333]] = 40, -50
    y[777] = np.nan
    x, sampled_y = charts.downsample(np.arange(50_000.0), y, 2_000)
    assert len(x) <= 2_000
    assert {0, 12_345, 33_333, 49_999} <= set(x)
    assert (np.diff(x) > 0).all()
    assert np.array_equal(sampled_y, y[x.astype(int)])
    for indices in np.array_split(np.arange(50_000), 500):  # wider than the bins, so that each contains its extremes
        inside = sampled_y[(x >= indices[0]) & (x <= indices[-1])]
        assert inside.max() == pytest.approx(np.nanmax(y[indices]), abs=1.5)


def test_short_curves_only_lose_values_that_are_not_finite() -> None:
    x, y = charts.downsample(np.array([0.0, 1, 2, 3]), np.array([1.0, np.nan, np.inf, 2]), 10)
    assert (x.tolist(), y.tolist()) == ([0, 3], [1, 2])
    assert not len(charts.downsample(np.zeros(3), np.zeros(2), 10)[0])


def test_a_map_contains_every_image_once_by_label_and_by_cluster() -> None:
    analysis = make_analysis([f"{n}.jpg" for n in range(10)], ["cat"] * 4 + ["dog"] * 6)
    for by_label, expected in ((True, [4, 6]), (False, [5, 5])):
        data = charts.map_figure(analysis, by_label)["data"]
        assert [len(trace["x"]) for trace in data] == expected
        assert sorted(n for trace in data for n in trace["customdata"]) == list(range(10))
        for trace in data:
            assert trace["x"] == pytest.approx(analysis.points[trace["customdata"], 0].tolist(), abs=0.006)


def test_labels_beyond_the_largest_groups_are_others() -> None:
    names = [f"class {n % 100}" for n in range(300)]
    data = charts.map_figure(make_analysis(names, names), by_label=True)["data"]
    assert len(data) == charts.MAX_GROUPS + 1
    assert data[-1]["name"] == f"{100 - charts.MAX_GROUPS} others"
    assert len({(trace["meta"]["color"], trace["marker"]["symbol"]) for trace in data}) == len(data)
    assert len({charts.color_and_style(n) for n in range(50)}) == 50


def test_tags_in_names_are_escaped_for_plotly() -> None:
    for name in HOSTILE_NAMES:
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", charts.escape(name))
    assert charts.escape("<b>&amp;") == "&lt;b&gt;&amp;amp;"


def test_spectrum_summary_contains_the_feature_rank() -> None:
    chart = charts.spectrum_chart([(0, "a", make_analysis(["x", "y"])), (1, "b", make_analysis(["x", "y"]))])
    assert [trace["y"] for trace in chart.figure["data"]] == [[0.5, 0.3, 0.2]] * 2
    assert chart.figure["layout"]["xaxis"]["type"] == chart.figure["layout"]["yaxis"]["type"] == "log"
    assert chart.summary.startswith("a: feature rank 2.5 of 3;")


def linear_rgb(color: str) -> np.ndarray:
    """Linear RGB of a color #rrggbb."""
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """Contrast of WCAG 2."""
    dark, light = sorted(float(linear_rgb(color) @ [0.2126, 0.7152, 0.0722]) for color in (a, b))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("theme", "index"), [("light", 0), ("dark", 1)])
def test_contrast_meets_wcag_aa(theme: str, index: int) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    block = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)[index]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for background in ("background", "surface", "note-background", "ok-background", "warning-background"):
        for text in ("text", "muted", "accent"):
            assert contrast(colors[text], colors[background]) >= 4.5, (text, background)
    # labels of thresholds are on the surface
    for text, background in (("ok", "ok-background"), ("warning", "warning-background"), ("warning", "surface")):
        assert contrast(colors[text], colors[background]) >= 4.5
    for color in charts.COLORS[theme]:  # graphical objects need 3 to 1
        assert contrast(color, colors["surface"]) >= 3, color


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colors_of_the_first_runs_are_distinct_for_color_blind_readers(theme: str) -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: protanopia, deuteranopia
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    for matrix in (np.eye(3), np.array(protan), np.array(deutan)):
        perceived = [to_lab(np.clip(matrix @ linear_rgb(color), 0, 1)) for color in charts.COLORS[theme][:4]]
        distances = [np.linalg.norm(a - b) for i, a in enumerate(perceived) for b in perceived[:i]]
        assert min(distances) > 12  # 2.3 is a just noticeable difference


def to_lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
