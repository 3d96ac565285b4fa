"""From a folder of your own images to a classifier, when 50 of them have a label.

    python examples/own_images.py [--folder FOLDER] [--out RUN] [--epochs 15] [--labels 5]

FOLDER has a sub-folder for each class; pretraining learns from all images, those tested on later too, and from no
label. Without a folder, the digits of scikit-learn are written as PNG files into a temporary one. Prints two tables,
each with the pretrained encoder and the same one untrained: nearest class mean on frozen features, and fine-tuning,
both with 5 labels a class. With the digits, one CPU core: about a minute and a half.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

import mec


def write_digits(folder: Path, images: int) -> Path:
    """The first so many digits as folder/7/0042.png."""
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images[:images], digits.target[:images], strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).save(path)
    return folder


def main(
    folder: Path | None = None,
    out: Path | None = None,
    epochs: int = 15,
    labels: int = 5,
    images: int = 1797,
    seeds: int = 3,
) -> None:
    """Pretrain on a folder, then classify with few labels.

    Args:
        folder: your images; none: the digits.
        out: where the run is kept; none: nowhere.
        epochs: of pretraining.
        labels: labeled images a class.
        images: how many digits.
        seeds: how many choices of the labeled images are fine-tuned on.
    """
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        # views must keep what matters: a digit that is mirrored, or of which a quarter is seen, is no longer one
        recipe = mec.load_recipe("digits" if folder is None else "small")
        data = folder or write_digits(Path(temporary, "digits"), images)
        run = mec.pretrain(data, out or Path(temporary, "run"), replace(recipe, epochs=epochs))

        frozen = mec.evaluate.few_shot(data, run, labels=[labels])
        console.print(frozen.table())
        tuned = mec.evaluate.finetune(data, run, labels=str(labels), seeds=seeds)
        console.print(tuned.table())
        if out is not None:
            frozen.append_to(out)
            tuned.append_to(out)


if __name__ == "__main__":
    auto_cli(main)
