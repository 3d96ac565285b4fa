"""Pictures: opening a source of them, and the two views of each that training looks at."""

from mec.data.dataset import ArrayImages, FileImages, Images, read
from mec.data.transforms.view_settings import ViewSettings
from mec.data.pixels import Reading
from mec.data.datasets import open_images
from mec.data.transforms.multi_view import TwoViews

__all__ = ["ArrayImages", "FileImages", "Images", "Reading", "TwoViews", "ViewSettings", "open_images", "read"]
