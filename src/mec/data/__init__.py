"""Image datasets, and the augmented views of their images for training."""

from mec.data.dataset import ArrayDataset, FileDataset, ImageDataset, read_image
from mec.data.datasets import open_dataset
from mec.data.pixels import PixelFormat
from mec.data.transforms import ExtraViewSettings, ViewSettings
from mec.data.transforms.multi_view import TwoViews

__all__ = [
    "ArrayDataset",
    "ExtraViewSettings",
    "FileDataset",
    "ImageDataset",
    "PixelFormat",
    "TwoViews",
    "ViewSettings",
    "open_dataset",
    "read_image",
]
