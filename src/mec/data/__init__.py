"""Images: opening a source of them, and the two views of each that training looks at."""

from mec.data.dataset import ArrayDataset, FileDataset, ImageDataset, read_image
from mec.data.datasets import open_dataset
from mec.data.pixels import PixelFormat
from mec.data.transforms.multi_view import TwoViews
from mec.data.transforms.view_settings import ViewSettings

__all__ = [
    "ArrayDataset",
    "FileDataset",
    "ImageDataset",
    "PixelFormat",
    "TwoViews",
    "ViewSettings",
    "open_dataset",
    "read_image",
]
