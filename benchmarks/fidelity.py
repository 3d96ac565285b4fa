"""How closely do the fast views match PIL's, for the same parameters?

    python benchmarks/fidelity.py --data ../shared/data

PSNR in dB of complete views of photographs (every thirtieth of Caltech-101, 96 px) against the recipe's operations in
PIL: with all of the recipe, without hue, without color jitter. Also the sharpness of crops from images decoded at a
fraction of their size (DAVIS frames): their mean horizontal gradient over that of the same crop from the full decode.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jsonargparse
import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table

from machine import write
from mec.data import PixelFormat, TwoViews, ViewSettings
from mec.data.decode import open_image
from mec.data.transforms import VIEW_1, VIEW_2, ViewParameters
from mec.data.transforms.crop import crop_and_resize, scale_box

CASES = {
    "view 1": VIEW_1,
    "view 2": VIEW_2,
    "view 1 without hue": replace(VIEW_1, hue=0),
    "view 1 without color jitter": replace(VIEW_1, color_jitter=0),
}


def view_in_pil(pil_image: Image.Image, p: ViewParameters, size: int) -> Image.Image:
    """Apply the recipe's operations in PIL with the first row of the parameters."""
    top, left, height, width = p.boxes[0].tolist()
    pil_image = TF.resized_crop(pil_image, top, left, height, width, [size, size])
    adjust = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for step in p.order[0] if p.factors[0, 0] != 1 else ():
        pil_image = adjust[step](pil_image, float(p.factors[0, step]))
    pil_image = TF.to_grayscale(pil_image, 3) if p.grayscale[0] else pil_image
    pil_image = pil_image.filter(ImageFilter.GaussianBlur(float(p.sigma[0]))) if p.sigma[0] else pil_image
    pil_image = ImageOps.solarize(pil_image) if p.solarize[0] else pil_image
    return TF.hflip(pil_image) if p.flip[0] else pil_image


def psnr(paths: list[Path], settings: ViewSettings, size: int = 96) -> list[float]:
    """Return the PSNR in dB of the view of each image."""
    views, values = TwoViews(size, settings, settings, seed=1), []
    for i, path in enumerate(paths):
        pil_image = Image.open(path).convert("RGB")
        array = np.array(pil_image)
        ours, _ = views(torch.from_numpy(array).permute(2, 0, 1)[None], np.array([i]), epoch=0)
        p = views.view_parameters(0, np.array([i]), 0, *array.shape[:2])
        error = (ours[0] - TF.to_tensor(view_in_pil(pil_image, p, size))).square().mean()
        values.append(float(-10 * torch.log10(error + 1e-10)))
    return values


def sharpness(paths: list[Path], shrink: int, size: int = 64) -> list[float]:
    """Return the mean gradients of crops decoded at 1 / ``shrink``, over those of PIL's crops from the full decode."""
    rng, ratios = np.random.default_rng(0), []
    for path in paths:
        encoded, pil_image = path.read_bytes(), Image.open(path).convert("RGB")
        opened = open_image(encoded)
        image = opened.decode(PixelFormat(), shrink)
        for _ in range(8):
            side = min(int(size * shrink * rng.uniform(1, 2)), opened.height)
            top, left = (int(rng.integers(0, length - side + 1)) for length in (opened.height, opened.width))
            box = scale_box(np.array([top, left, side, side]), (opened.height, opened.width), image.shape[:2])
            ours = crop_and_resize(image, box, size)
            theirs = np.asarray(TF.resized_crop(pil_image, top, left, side, side, [size, size]))
            gradients = [np.abs(np.diff(a.astype(float), axis=1)).mean() for a in (ours, theirs)]
            ratios.append(float(gradients[0] / gradients[1]))
    return ratios


def main(data: str) -> None:
    """Measure, print and write benchmarks/results/fidelity.json.

    Args:
        data: folder with caltech101 and davis16-subset.
    """
    photographs = sorted(Path(data).glob("caltech101/101_ObjectCategories/*/*.jpg"))[::30]
    frames = sorted(Path(data).glob("davis16-subset/**/*.jpg"))[::40]
    rows: dict[str, dict[str, float]] = {}
    for name, settings in CASES.items():
        rows[f"{name}, PSNR in dB"] = summarize(psnr(photographs, settings))
    for shrink in (2, 4):
        rows[f"sharpness at 1/{shrink}"] = summarize(sharpness(frames, shrink))
    table = Table("", "median", "10th percentile")
    for name, row in rows.items():
        table.add_row(name, f"{row['median']:.3g}", f"{row['10th percentile']:.3g}")
    Console().print(table)
    images = {"photographs": len(photographs), "frames": len(frames)}
    question = "agreement of the fast views with PIL's, for the same parameters"
    print(write("fidelity", question, images=images, rows=rows))


def summarize(values: list[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "10th percentile": float(np.quantile(values, 0.1))}


if __name__ == "__main__":
    jsonargparse.CLI(main, as_positional=False)
