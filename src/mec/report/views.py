"""The views that training showed of some pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mec.data.pixels import fitted
from mec.errors import InputError
from mec.report import pictures
from mec.report.schema import Missing, EmbeddedImage, Views
from mec.report.inputs import not_opened, source_of
from mec.pretraining.run_folder import Run
from mec.pretraining.contact_sheet import training_views

PICTURES, PAIRS = 4, 3
SIDE = 96


def views(run: Path, data: str | os.PathLike[str] | None, say: Callable[[str], object]) -> list[Views] | Missing:
    """Pictures from all over the source, and the pairs of views that the run's first epochs showed of each.

    Args:
        run: a run folder.
        data: any source of pictures; None is what the run has learnt from.
        say: is told before it begins.

    Raises:
        InputError: ``data`` is given and cannot be opened.
    """
    source = source_of(run, data)
    if isinstance(source, Missing):
        return source
    try:
        recipe = Run(run).recipe()
    except (InputError, OSError) as error:
        return Missing(f"The run's recipe cannot be read: {error}")
    say(f"views: {PICTURES} pictures of {pictures.printable(source)}, {PAIRS} pairs of each")
    try:
        seen = training_views(source, recipe, PICTURES, PAIRS)
    except InputError as error:
        return not_opened(data, error)
    shown = []
    for one in seen:
        title = pictures.printable(Path(one.title).name)
        pairs = [
            (_view(first, f"view 1 of {title}, epoch {epoch}"), _view(second, f"view 2 of {title}, epoch {epoch}"))
            for epoch, (first, second) in enumerate(one.pairs, 1)
        ]
        shown.append(Views(pictures.picture(fitted(one.picture, SIDE), title), pairs))
    return shown


def _view(x: Tensor, alt: str) -> EmbeddedImage:
    return pictures.picture(fitted(x.permute(1, 2, 0).numpy(), SIDE), alt)
