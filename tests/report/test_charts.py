"""The report's figures: what is drawn, where it is thinned, and colors that can be told apart."""

import re
from pathlib import Path

import numpy as np
import pytest

from mec.report import charts
from mec.report.record import read_records
from tests.report.folders import NASTY, learned, metric, write_metrics, write_run

CSS = Path(charts.__file__).parent / "template" / "report.css"


def test_every_measure_has_a_chart_with_the_runs_overlaid(tmp_path: Path) -> None:
    records = read_records([write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=20)])
    drawn = {chart.title: chart for chart in charts.curves(records)}
    expected = ["Loss", "Coding length", "Spectral norm", "Effective rank", "Learning rate", "Waiting", "Images per"]
    for words in [*expected, "Online probe, kNN", "Online probe, linear"]:
        (chart,) = [c for title, c in drawn.items() if title.startswith(words)]
        a, b = chart.figure["data"]
        assert (a["name"], b["name"]) == ("a", "b")
        assert (a["meta"]["color"], a["line"]["dash"]) != (b["meta"]["color"], b["line"]["dash"])
    loss = drawn["Loss"].figure["data"][0]
    assert loss["x"] == list(range(40))
    assert loss["y"] == pytest.approx([1 / (1 + step) for step in range(40)], rel=1e-4)
    assert "template" not in drawn["Loss"].figure["layout"]
    assert len(drawn) == 9


def test_the_radius_is_named_where_it_is(tmp_path: Path) -> None:
    drawn = charts.curves(read_records([write_run(tmp_path / "a")]))
    (norm,) = [c for c in drawn if c.title.startswith("Spectral")]
    layout = norm.figure["layout"]
    assert layout["yaxis"]["type"] == "log"
    assert (layout["shapes"][0]["y0"], layout["shapes"][0]["y1"]) == (1.0, 1.0)
    assert layout["annotations"][0]["y"] == 0.0  # the place of 1 on a logarithmic axis
    assert "radius of convergence" in layout["annotations"][0]["text"]


def test_summary_tells_the_first_and_last_value(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    write_metrics(folder, [metric(step, data_wait=0.5 if step else 0.25) for step in range(8)])
    drawn = {chart.id: chart for chart in charts.curves(read_records([folder]))}
    assert drawn["chart-data_wait"].summary == "a: 25% at step 0, 50% at 7."


def test_long_curves_keep_their_extremes() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=50_000)
    y[[12_345, 33_333]] = 40, -50
    y[777] = np.nan
    thin_x, thin_y = charts.thinned(np.arange(50_000.0), y, 2_000)
    assert len(thin_x) <= 2_000
    assert {0, 12_345, 33_333, 49_999} <= set(thin_x)
    assert (np.diff(thin_x) > 0).all()
    assert np.array_equal(thin_y, y[thin_x.astype(int)])
    for stretch in np.array_split(np.arange(50_000), 500):  # wider than those of the code: each has its extremes
        inside = thin_y[(thin_x >= stretch[0]) & (thin_x <= stretch[-1])]
        assert inside.max() == pytest.approx(np.nanmax(y[stretch]), abs=1.5)


def test_few_points_are_kept_as_they_are() -> None:
    x, y = charts.thinned(np.array([0.0, 1, 2, 3]), np.array([1.0, np.nan, np.inf, 2]), 10)
    assert (x.tolist(), y.tolist()) == ([0, 3], [1, 2])
    assert not len(charts.thinned(np.zeros(3), np.zeros(2), 10)[0])


def test_a_map_has_every_image_once_by_label_and_by_cluster() -> None:
    found = learned([f"{n}.jpg" for n in range(10)], ["cat"] * 4 + ["dog"] * 6)
    for by, sizes in (("label", [4, 6]), ("cluster", [5, 5])):
        data = charts.embedding(found, 0, by)["data"]
        assert [len(trace["x"]) for trace in data] == sizes
        assert sorted(n for trace in data for n in trace["customdata"]) == list(range(10))
        for trace in data:
            assert trace["x"] == pytest.approx(found.points[trace["customdata"], 0].tolist(), abs=0.006)


def test_labels_beyond_the_colors_are_others() -> None:
    names = [f"class {n % 100}" for n in range(300)]
    data = charts.embedding(learned(names, names), 0, "label")["data"]
    assert len(data) == charts.GROUPS + 1
    assert data[-1]["name"] == f"{100 - charts.GROUPS} others"
    looks = {(t["meta"]["color"], t["marker"]["symbol"]) for t in data}
    assert len(looks) == len(data)


def test_tags_in_names_are_text_to_plotly() -> None:
    for name in NASTY:
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", charts.shown(name))
    assert charts.shown("<b>&amp;") == "&lt;b&gt;&amp;amp;"


def test_spectrum_tells_the_effective_rank() -> None:
    chart = charts.spectrum([(0, "a", learned(["x", "y"])), (1, "b", learned(["x", "y"]))])
    assert [trace["y"] for trace in chart.figure["data"]] == [[0.5, 0.3, 0.2]] * 2
    assert chart.figure["layout"]["xaxis"]["type"] == chart.figure["layout"]["yaxis"]["type"] == "log"
    assert chart.summary.startswith("a: effective rank 2.5 of 3;")


def test_the_first_fifty_runs_look_different() -> None:
    assert len({charts.look(n) for n in range(50)}) == 50


def luminance(color: str) -> float:
    """WCAG 2's, of #rrggbb."""
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    return {
        name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for name, block in (("light", light), ("dark", dark))
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(theme: str) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    colors = themes()[theme]
    for ground in ("ground", "raised", "note-ground", "good-ground", "warn-ground"):
        for ink in ("ink", "soft", "accent"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
    assert contrast(colors["good"], colors["good-ground"]) >= 4.5
    assert contrast(colors["warn"], colors["warn-ground"]) >= 4.5
    assert contrast(colors["warn"], colors["raised"]) >= 4.5  # what the line in a chart is called
    for color in charts.COLORS[theme]:  # of lines and marks: 3 to 1
        assert contrast(color, colors["raised"]) >= 3, color


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_first_runs_are_told_apart_without_red_or_green(theme: str) -> None:
    # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: protanopia, deuteranopia
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    for matrix in (np.eye(3), np.array(protan), np.array(deutan)):
        seen = [lab(color, matrix) for color in charts.COLORS[theme][:4]]
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(gaps) > 12  # 2.3 is what can just be seen


def lab(color: str, matrix: np.ndarray) -> np.ndarray:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(matrix @ linear, 0, 1) / [0.9505, 1.0, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
