"""A mec encoder in other libraries: as a timm model, and in a scikit-learn pipeline.

    python examples/encoder_elsewhere.py [--run RUN] [--epochs 3] [--images 1347]

RUN is a run folder; the default is a ResNet-18 pretrained briefly on the digits of scikit-learn, as a placeholder.
Prints the difference between timm's and mec's features, and the accuracy of the pipeline on 450 test digits. Takes a
quarter of a minute on one CPU core.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import mec


def in_timm(encoder: mec.Encoder, folder: Path) -> float:
    """Largest difference between timm's features and the encoder's, as a fraction of the largest feature."""
    mec.export(encoder, "timm", folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(model)
    images = torch.rand(8, *settings["input_size"])
    mean, std = (torch.tensor(settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = encoder(encoder.normalize(images))
        return float((model((images - mean) / std) - expected).abs().max() / expected.abs().max())


def in_scikit_learn(encoder: mec.Encoder, images: int) -> float:
    """Test accuracy of a pipeline from images (n, 8, 8) to digits, usable in grid search and cross-validation."""

    @torch.no_grad()
    def features(x: np.ndarray) -> np.ndarray:
        gray = torch.from_numpy(x / 16).float()[:, None]
        size = (encoder.image_size, encoder.image_size)
        resized = F.interpolate(gray, size, mode="bilinear", antialias=True).expand(-1, encoder.spec.channels, -1, -1)
        return torch.cat([encoder(encoder.normalize(batch)) for batch in resized.split(256)]).numpy()

    digits = load_digits()
    train, test, y_train, y_test = train_test_split(digits.images, digits.target, test_size=450, random_state=0)
    pipeline = make_pipeline(FunctionTransformer(features), StandardScaler(), LogisticRegression(max_iter=500))
    return float(pipeline.fit(train[:images], y_train[:images]).score(test, y_test))


def main(run: Path | None = None, epochs: int = 3, images: int = 1347) -> None:
    """Use an encoder in timm and scikit-learn.

    Args:
        run: a run folder; null: pretrain on the digits.
        epochs: epochs of that pretraining.
        images: training digits of the pipeline.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            recipe = replace(mec.load_recipe("digits"), epochs=epochs)
            run = mec.pretrain("digits", Path(folder, "run"), recipe).folder
        encoder = mec.load_encoder(run)
        print(f"timm: features differ by {in_timm(encoder, Path(folder, 'timm')):.0e} of the largest")
        print(f"scikit-learn: the pipeline classifies {in_scikit_learn(encoder, images):.1%} of 450 test digits")


if __name__ == "__main__":
    auto_cli(main)
