import pytest
from PIL import Image

from tests.data.encoded_images import H, W
from tests.data.transforms.test_geometry import photograph


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(photograph(H, W))
