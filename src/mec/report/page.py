"""One self-contained HTML page of one run or several, under 5 MB."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.console import Console

from mec import __version__
from mec.errors import InputError
from mec.files import atomic_write
from mec.report import charts
from mec.report.analysis import learned
from mec.report.gallery import gallery
from mec.report.health import verdicts
from mec.report.published import published
from mec.report.record import Record, read_records
from mec.report.schema import EmbeddedImage, Learned, Missing, Sprites, Views
from mec.report.tables import evaluations, facts, settings, told
from mec.report.views import views

LIMIT = 5_000_000
"""Bytes of a page: it is sent by mail, and opened on phones."""
FOR_IMAGES = 2_200_000
"""Of them, plotly.js taken off, at most for the images of all runs."""
CURVE_POINTS = 12_000
"""Points of a curve, over all runs."""
IMAGES = 1_000
"""On the maps of all runs, when nobody says how many."""
NO_ROOM = "Left out, to keep the page below 5 MB; a report of fewer runs, or with fewer --images, has them."
DASH_LENGTHS = ("none", "8 4", "2 3", "8 3 2 3", "14 4")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Shown:
    """A run and the images that the page has of it."""

    record: Record
    learned: Learned | Missing
    views: list[Views] | Missing
    gallery: list[EmbeddedImage]


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    images: int = IMAGES,
    console: Console | None = None,
) -> Path:
    """Write one HTML page that says what was run, whether it learns, what it has learned and how good it is.

    Args:
        runs: run folders, shown side by side; folders that hold only results.jsonl too.
        out: the page; None is report.html in the first run's folder.
        data: images to look at through the encoders, any source; None is what each run was trained on.
        images: on the maps, divided among the runs.
        console: where progress goes; None is standard error.

    Returns:
        the page's path.

    Raises:
        InputError: a folder holds no run, or the page cannot be written.
    """
    check_images(images)
    records = read_records(runs)
    path = records[0].folder / "report.html" if out is None else Path(out).expanduser()
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out: expected a file that ends with .html, got {path}")
    say = functools.partial((console or Console(stderr=True)).print, highlight=False, markup=False, soft_wrap=True)
    page = make_page([gather(record, data, images // len(records), say) for record in records])
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(page)
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror or error})") from error
    return path


def check_images(images: int) -> None:
    if not 1 <= images <= 10_000:
        raise InputError(f"images: expected 1 to 10,000 images on the maps, got {images}")


def gather(record: Record, data: str | os.PathLike[str] | None, most: int, say: Say) -> Shown:
    """What a run's encoder makes of images; the first time it takes as long as the encoder takes for them."""
    if not record.recipe:
        nothing = Missing("This folder holds evaluations only: there is no encoder to look through.")
        return Shown(record, nothing, nothing, gallery(record.folder))
    return Shown(
        record,
        learned(record.folder, data, max(20, most), say),
        views(record.folder, data, say),
        gallery(record.folder),
    )


def make_page(shown: Sequence[Shown], stamp: str | None = None) -> bytes:
    """The page, with as many images and points as it holds.

    Args:
        shown: the runs.
        stamp: of the state shown, for a page that is made anew while a run trains; see ``mec.report.watch``.

    Raises:
        InputError: so many runs that not even their tables fit.
    """
    for share in (1.0, 0.5, 0.25, 0.0):
        budget, points = int(share * FOR_IMAGES / len(shown)), max(20, int(share * CURVE_POINTS / len(shown)))
        page = _render([_within(s, budget) for s in shown], min(points, charts.POINTS), stamp)
        if len(page) < LIMIT:
            return page
    raise InputError(f"runs: the tables of {len(shown)} runs come to more than a page of 5 MB; expected fewer runs")


def _within(shown: Shown, budget: int) -> Shown:
    """The most telling images first, as long as they fit: thumbnails, neighbors, views, the gallery."""
    left = budget

    def fits(*images: EmbeddedImage | Sprites) -> bool:
        nonlocal left
        size = sum(len(p.source) for p in images)
        if size > left:
            return False
        left -= size
        return True

    seen, looked = shown.learned, shown.views
    if isinstance(seen, Learned):
        sprites = seen.sprites if fits(seen.sprites) else Sprites("", 1, 1)
        rows = [row for row in seen.neighbors if fits(row.query, *(p for _, p in row.found))]
        seen = replace(seen, sprites=sprites, neighbors=rows)
    if not isinstance(looked, Missing):
        looked = [v for v in looked if fits(v.image, *(p for pair in v.pairs for p in pair))] or Missing(NO_ROOM)
    return Shown(shown.record, seen, looked, [p for p in shown.gallery if fits(p)])


def _render(shown: Sequence[Shown], points: int, stamp: str | None) -> bytes:
    records = [s.record for s in shown]
    seen = [(n, s.record.name, s.learned) for n, s in enumerate(shown) if isinstance(s.learned, Learned)]
    drawn = charts.curves(records, points)
    spectrum = charts.spectrum(seen) if seen else None
    data = {
        "stamp": stamp,
        "curves": {chart.id: chart.figure for chart in drawn},
        "spectrum": spectrum and spectrum.figure,
        "maps": {number: _map(number, found) for number, _, found in seen},
    }
    packed, plotly_hash = _plotly()
    script = _text("report.js")
    environment = Environment(loader=PackageLoader("mec.report", "template"), autoescape=True, trim_blocks=True)
    environment.filters |= {"clip": clip, "told": told, "look": charts.look}
    html = environment.get_template("report.html.jinja").render(
        title=_title(records),
        version=__version__,
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        stamp=stamp,
        hashes=Markup(f"{_hash(script)} {plotly_hash}"),
        colors=charts.COLORS,
        dashes=DASH_LENGTHS,
        css=Markup(_text("report.css")),
        script=Markup(script),
        plotly=Markup(packed),
        data=htmlsafe_json_dumps(data),
        no_room=NO_ROOM,
        records=records,
        notes=[f"{r.name}: {note}" for r in records for note in r.notes],
        settings=settings(records),
        facts=facts(records),
        verdicts=[verdict for r in records for verdict in verdicts(r)],
        curves=drawn,
        epochs=all(r.steps_per_epoch for r in records if r.metrics or r.probes),
        shown=shown,
        spectrum=spectrum,
        evaluations=evaluations(records, published),
    )
    return html.encode("utf-8", errors="replace")  # a name may be of bytes that are no text


def _map(number: int, found: Learned) -> dict[str, Any]:
    figures = {
        by: charts.embedding(found, number, by) for by in ("label", "cluster") if by == "cluster" or found.labels
    }
    return figures | {
        "points": [[round(float(x), 2), round(float(y), 2)] for x, y in found.points],
        "titles": [clip(title, 100) for title in found.titles],
        "labels": found.labels and [clip(label, 60) for label in found.labels],
        "clusters": [int(c) for c in found.clusters],
    }


def clip(text: object, most: int) -> str:
    """Text of at most so many characters; of more, the beginning and the end."""
    said = str(text)
    return said if len(said) <= most else f"{said[: most - most // 3 - 1]}…{said[-(most // 3) :]}"


def _title(records: Sequence[Record]) -> str:
    names = [clip(r.name, 40) for r in records]
    if len(names) > 3:
        return f"{names[0]}, {names[1]} and {len(names) - 2} other runs"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _text(name: str) -> str:
    return (Path(__file__).parent / "template" / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> tuple[str, str]:
    """plotly.js, compressed, in base64; and its hash, by which the page lets it run and nothing that was put in."""
    source = get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode(), _hash(source)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
