"""Images as a page carries them: small, in data: URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

from PIL import Image

from mec.report.schema import EmbeddedImage, Sprites

QUALITY, SMALL_QUALITY = 75, 55
"""Of WebP: of images that are looked at, and of those seen in passing."""


def image(image: Image.Image, alt: str) -> EmbeddedImage:
    """``alt``: what it shows, as plain text."""
    return EmbeddedImage(_webp(image, QUALITY), alt, image.width, image.height)


def sprites(images: Sequence[Image.Image], cell: int) -> Sprites:
    """Images of ``cell`` x ``cell`` pixels in one that is about square, in their order, row after row."""
    columns = math.isqrt(len(images) - 1) + 1
    sheet = Image.new("RGB", (columns * cell, -(-len(images) // columns) * cell))
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * cell, number // columns * cell))
    return Sprites(_webp(sheet, SMALL_QUALITY), columns, cell)


def printable(text: str) -> str:
    """Names of files need not be text; what is not becomes a question mark."""
    return text.encode(errors="replace").decode()


def _webp(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
