"""Write one self-contained HTML page about one or several runs, smaller than 5 MB."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from torch import nn

from mec import __version__
from mec.data.dataset import DataLike
from mec.errors import InputError
from mec.files import atomic_write
from mec.pretraining.run_folder import Run
from mec.report import charts
from mec.report.analysis import FeatureAnalysis, analyze_features
from mec.report.images import EmbeddedImage, EmbeddedViews, SpriteSheet, embed_views, load_gallery
from mec.report.ranking import rank
from mec.report.record import Missing, Record, check_health, clip, read_records
from mec.report.tables import evaluation_tables, format_value, run_rows, settings_rows
from mec.report.verdict import headline

logger = logging.getLogger("mec")

MAX_BYTES, MAX_IMAGE_BYTES = 5_000_000, 2_200_000  # of the page, for email and phones; of the images of all runs
MAX_CURVE_POINTS = 12_000  # of a chart, divided among the runs
MAP_IMAGES, MIN_MAP_IMAGES = 1_000, 20  # default number of images on the maps of all runs, and smallest on one
OMITTED = "Omitted to keep the page below 5 MB. A report of fewer runs, or with a smaller --images, includes it."
DASH_ARRAYS = ("none", "8 4", "2 3", "8 3 2 3", "14 4")  # SVG dashes of charts.LINE_STYLES
NO_ENCODER = Missing("This folder contains evaluations only, no encoder.")
TRAINING = Missing("The run is training. Features are shown as soon as its encoder is written.")


@dataclass(frozen=True)
class RunContent:
    """Everything that the page shows of a run."""

    record: Record
    features: FeatureAnalysis | Missing
    views: list[EmbeddedViews] | Missing
    gallery: list[EmbeddedImage]
    notes: Sequence[str] = ()  # sentences about what is not shown


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    data: DataLike | None = None,
    images: int = MAP_IMAGES,
) -> Path:
    """Write one HTML page with the results, features, training curves and settings of one or several runs.

    Args:
        runs: run folders, or folders that contain only a results.jsonl. Those of encoders that are not from timm as
            the ``Run`` that ``mec.pretrain`` returns; from a folder alone their features cannot be drawn.
        out: the file to write; None: report.html in the first run folder.
        data: dataset to embed, any that ``mec.open_dataset`` accepts; None: the one that each run was trained on.
        images: number of images on the maps, divided among the runs.

    Returns:
        The path of the page.

    Raises:
        InputError: a folder contains no run, or the page cannot be written.
    """
    check_images(images)
    records = read_records(runs)
    path = records[0].folder / "report.html" if out is None else Path(out).expanduser()
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out: expected a file that ends with .html, got {path}")
    networks = {Path(run).expanduser().resolve(): run.network for run in runs if isinstance(run, Run)}
    contents = [
        collect_content(record, data, images // len(records), network=networks.get(record.folder)) for record in records
    ]
    for content in contents:
        for note in [*content.record.notes, *content.notes]:
            logger.warning(f"{content.record.name}: {note}")
    page = render_page(contents)
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(page)
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror or error})") from error
    return path


def check_images(images: int) -> None:
    if not 1 <= images <= 10_000:
        raise InputError(f"images: expected 1 to 10,000 images on the maps, got {images}")


def collect_content(
    record: Record,
    data: DataLike | None,
    max_images: int,
    only_finished: bool = False,
    network: nn.Module | None = None,
) -> RunContent:
    """Collect what the page shows, with ``only_finished`` no features of a run that is still training. Slow."""
    gallery, notes = load_gallery(record.folder)
    if not record.recipe:
        return RunContent(record, NO_ENCODER, NO_ENCODER, gallery, notes)
    features: FeatureAnalysis | Missing = TRAINING
    if record.finished or not only_finished:
        features = analyze_features(record.folder, data, max(MIN_MAP_IMAGES, max_images), network)
    return RunContent(record, features, embed_views(record.folder, data), gallery, notes)


def render_page(runs: Sequence[RunContent], revision: str | None = None) -> bytes:
    """Render the page, with as many images and points as fit; with a ``revision``, it reloads itself on changes."""
    for fraction in (1.0, 0.5, 0.25, 0.0):
        image_bytes = int(fraction * MAX_IMAGE_BYTES / len(runs))
        points = max(20, int(fraction * MAX_CURVE_POINTS / len(runs)))
        limited = [_limit_images(run, image_bytes) for run in runs]
        page = _render_html(limited, min(points, charts.MAX_POINTS), revision)
        if len(page) < MAX_BYTES:
            return page
    raise InputError(f"runs: the tables of {len(runs)} runs exceed 5 MB, the largest page; expected fewer runs")


def _limit_images(run: RunContent, max_bytes: int) -> RunContent:
    """Drop images that exceed ``max_bytes``. Thumbnails come first, then neighbors, views and the gallery."""
    remaining = max_bytes

    def fits(*images: EmbeddedImage | SpriteSheet) -> bool:
        nonlocal remaining
        size = sum(len(image.uri) for image in images)
        if size > remaining:
            return False
        remaining -= size
        return True

    features, views = run.features, run.views
    if isinstance(features, FeatureAnalysis):
        sprites = features.sprites if fits(features.sprites) else SpriteSheet("", 1, 1)
        neighbors = [row for row in features.neighbors if fits(row.query, *(image for _, image in row.neighbors))]
        features = replace(features, sprites=sprites, neighbors=neighbors)
    if not isinstance(views, Missing):
        views = [v for v in views if fits(v.image, *(view for pair in v.pairs for view in pair))] or Missing(OMITTED)
    gallery = [image for image in run.gallery if fits(image)]
    notes = list(run.notes)
    if omitted := len(run.gallery) - len(gallery):
        notes.append(f"Detections and tracks: {omitted} of {len(run.gallery)} images are omitted. {OMITTED}")
    return RunContent(run.record, features, views, gallery, notes)


def _render_html(runs: Sequence[RunContent], max_points: int, revision: str | None) -> bytes:
    records = [run.record for run in runs]
    analyses = [(i, r.record.name, r.features) for i, r in enumerate(runs) if isinstance(r.features, FeatureAnalysis)]
    curves = charts.curve_charts(records, max_points)
    spectrum = charts.spectrum_chart(analyses) if analyses else None
    data = {
        "revision": revision,
        "curves": {chart.id: chart.figure for chart in curves},
        "spectrum": spectrum and spectrum.figure,
        "maps": {index: _map_data(analysis) for index, _, analysis in analyses},
    }
    headlines = [headline(r) for r in records]
    levels = {h.run: h.level for h in headlines}
    # nothing is fine about the training of an encoder that is worse than raw pixels
    health = [
        m._replace(level="note") if m.level == "ok" and levels[m.run] == "warning" else m
        for r in records
        for m in check_health(r)
    ]
    plotly, plotly_hash = _plotly()
    script = _read_template("report.js")
    environment = Environment(loader=PackageLoader("mec.report", "template"), autoescape=True, trim_blocks=True)
    environment.filters |= {"clip": clip, "format_value": format_value}
    environment.filters["color_and_style"] = charts.color_and_style
    html = environment.get_template("report.html.jinja").render(
        title=_title(records),
        version=__version__,
        created=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        revision=revision,
        script_hashes=Markup(f"{_csp_hash(script)} {plotly_hash}"),
        colors=charts.COLORS,
        dash_arrays=DASH_ARRAYS,
        css=Markup(_read_template("report.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        data=htmlsafe_json_dumps(data),
        omitted=OMITTED,
        records=records,
        notes=[f"{run.record.name}: {note}" for run in runs for note in [*run.record.notes, *run.notes]],
        settings_rows=settings_rows(records),
        run_rows=run_rows(records),
        headlines=headlines,
        ranking=rank(records) if len(records) > 1 else None,
        health=health,
        curves=curves,
        has_epochs=all(r.steps_per_epoch for r in records if r.metrics or r.probes),
        runs=runs,
        spectrum=spectrum,
        evaluations=evaluation_tables(records),
    )
    return html.encode("utf-8", errors="replace")  # file names may contain bytes that are not UTF-8


def _map_data(analysis: FeatureAnalysis) -> dict[str, Any]:
    modes = ["label", "cluster"] if analysis.labels else ["cluster"]
    return {mode: charts.map_figure(analysis, by_label=mode == "label") for mode in modes} | {
        "points": [[round(float(x), 2), round(float(y), 2)] for x, y in analysis.points],
        "titles": [clip(title, 100) for title in analysis.titles],
        "labels": analysis.labels and [clip(label, 60) for label in analysis.labels],
        "clusters": [int(cluster) for cluster in analysis.clusters],
    }


def _title(records: Sequence[Record]) -> str:
    *first, last = [clip(r.name, 40) for r in records]
    if len(first) > 2:
        first, last = first[:2], f"{len(records) - 2} other runs"
    return f"{', '.join(first)} and {last}" if first else last


def _read_template(name: str) -> str:
    return (Path(__file__).parent / "template" / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> tuple[str, str]:
    """Return plotly.js, compressed and in base64, and its hash for the Content-Security-Policy."""
    source = get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode(), _csp_hash(source)


def _csp_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
