"""The views that training showed of some images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mec.data.pixels import resize_longer_side
from mec.errors import InputError
from mec.pretraining.contact_sheet import training_views
from mec.pretraining.run_folder import Run
from mec.report import images
from mec.report.inputs import not_opened, sampling_of, source_of
from mec.report.schema import EmbeddedImage, Missing, Views

IMAGES, PAIRS = 4, 3
SIDE = 96


def views(run: Path, data: str | os.PathLike[str] | None, say: Callable[[str], object]) -> list[Views] | Missing:
    """Images from all over the source, and the pairs of views that the run's first epochs showed of each.

    Args:
        run: a run folder.
        data: any source of images; None is what the run has learned from.
        say: is told before it begins.

    Raises:
        InputError: ``data`` is given and cannot be opened.
    """
    source = source_of(run, data)
    if isinstance(source, Missing):
        return source
    try:
        recipe = replace(Run(run).recipe(), frame_stride=sampling_of(run, source).frame_stride)
    except (InputError, OSError) as error:
        return Missing(f"The run's recipe cannot be read: {error}")
    say(f"views: {IMAGES} images of {images.printable(source)}, {PAIRS} pairs of each")
    try:
        seen = training_views(source, recipe, IMAGES, PAIRS)
    except InputError as error:
        return not_opened(data, error)
    shown = []
    for one in seen:
        title = images.printable(Path(one.title).name)
        pairs = [
            (_view(first, f"view 1 of {title}, epoch {epoch}"), _view(second, f"view 2 of {title}, epoch {epoch}"))
            for epoch, (first, second) in enumerate(one.pairs, 1)
        ]
        shown.append(Views(images.image(resize_longer_side(one.image, SIDE), title), pairs))
    return shown


def _view(x: Tensor, alt: str) -> EmbeddedImage:
    return images.image(resize_longer_side(x.permute(1, 2, 0).numpy(), SIDE), alt)
