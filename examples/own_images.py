"""From a folder of your own images to a classifier with 50 labeled images.

    python examples/own_images.py [--folder FOLDER] [--out RUN] [--epochs 15] [--shots 5]

FOLDER has a sub-folder per class. Pretraining uses all images, the later test images too, without labels. The default
is the digits of scikit-learn, written as PNG files to a temporary folder. Prints two tables with the pretrained and
the untrained encoder: nearest class mean on frozen features, and finetuning, both with 5 labels per class. With the
digits, takes about a minute and a half on one CPU core.
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
    """Write the first digits as FOLDER/7/0042.png."""
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
    shots: int = 5,
    images: int = 1797,
    trials: int = 3,
) -> None:
    """Pretrain on a folder, then classify with few labels.

    Args:
        folder: folder of images; null: the digits.
        out: run folder; null: a temporary folder.
        epochs: epochs of pretraining.
        shots: labeled images per class.
        images: number of digits.
        trials: finetunings, each with another choice of labels.
    """
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        # views must preserve the class: a flipped digit, or a quarter of one, is not a digit
        recipe = mec.load_recipe("digits" if folder is None else "small")
        data = folder or write_digits(Path(temporary, "digits"), images)
        run = mec.pretrain(data, out or Path(temporary, "run"), replace(recipe, epochs=epochs))

        few_shot = mec.evaluate.few_shot(data, run, shots=[shots])
        console.print(few_shot.table())
        finetuned = mec.evaluate.finetune(data, run, shots=shots, trials=trials)
        console.print(finetuned.table())
        if out is not None:
            few_shot.append_to(out)
            finetuned.append_to(out)


if __name__ == "__main__":
    auto_cli(main)
