"""Pictures: opening a source of them, and the two views of each that training looks at."""

from mec.data.images import ArrayImages, FileImages, Images, read
from mec.data.parameters import ViewSettings
from mec.data.pixels import Reading
from mec.data.sources import open_images
from mec.data.views import TwoViews

__all__ = ["ArrayImages", "FileImages", "Images", "Reading", "TwoViews", "ViewSettings", "open_images", "read"]
