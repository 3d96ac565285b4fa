"""Images as data: URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

from PIL import Image

from mec.report.schema import EmbeddedImage, SpriteSheet

IMAGE_QUALITY, SPRITE_QUALITY = 75, 55
"""WebP quality of single images, and of sprite sheets."""


def embed_image(image: Image.Image, alt: str) -> EmbeddedImage:
    """Encode an image as a data: URI. ``alt`` is its description in plain text."""
    return EmbeddedImage(_webp_uri(image, IMAGE_QUALITY), alt, image.width, image.height)


def embed_sprites(thumbnails: Sequence[Image.Image], cell_size: int) -> SpriteSheet:
    """Arrange thumbnails of ``cell_size`` x ``cell_size`` pixels row by row in a nearly square image."""
    columns = math.isqrt(len(thumbnails) - 1) + 1
    sheet = Image.new("RGB", (columns * cell_size, -(-len(thumbnails) // columns) * cell_size))
    for index, thumbnail in enumerate(thumbnails):
        sheet.paste(thumbnail, (index % columns * cell_size, index // columns * cell_size))
    return SpriteSheet(_webp_uri(sheet, SPRITE_QUALITY), columns, cell_size)


def printable(text: str) -> str:
    """Replace what UTF-8 cannot encode by question marks. File names may contain any bytes."""
    return text.encode(errors="replace").decode()


def _webp_uri(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
