import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from mec.data.rng import uniforms
from mec.data.transforms import NUM_CROP_UNIFORMS, crop_boxes
from mec.data.transforms.crop import crop_and_resize
from mec.data.transforms.multi_view import resized_crops


def photograph(height: int = 180, width: int = 240) -> np.ndarray:
    """Return a synthetic photograph with edges and gradients at all scales, which reveal a wrong filter."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
    fine = rng.normal(0, 12, (height, width, 3))
    return np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(375, 500, (0.2, 1.0)), (32, 32, (0.08, 1.0)), (40, 400, (0.5, 1.0))]
)
def test_crops_have_the_distribution_of_random_resized_crop(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    n, ratio = 4000, (3 / 4, 4 / 3)
    boxes = crop_boxes(uniforms(0, 0, np.arange(n), NUM_CROP_UNIFORMS), height, width, scale, ratio)
    torch.manual_seed(0)
    blank = torch.zeros(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(n)])
    for our_column, their_column in zip(boxes.T, theirs.T, strict=True):
        assert stats.ks_2samp(our_column, their_column).pvalue > 1e-3
    areas = [(b[:, 2] * b[:, 3]) / (height * width) for b in (boxes, theirs)]
    assert stats.ks_2samp(*areas).pvalue > 1e-3
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()
    assert (boxes[:, 2:] >= 1).all()


@pytest.mark.parametrize(("size", "flip"), [(32, False), (64, True), (224, False)])
def test_resized_crops_match_pil(size: int, flip: bool) -> None:
    image = photograph()
    box = np.array([[20, 30, 150, 181]])
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    ours = resized_crops(x, box, size, np.array([flip]))[0] / 255
    theirs = TF.resized_crop(Image.fromarray(image), 20, 30, 150, 181, [size, size], InterpolationMode.BILINEAR)
    theirs = TF.to_tensor(TF.hflip(theirs) if flip else theirs)
    assert psnr(ours, theirs) > 50
    cropped = torch.from_numpy(crop_and_resize(image, box[0], size, flip).transpose(2, 0, 1) / 255.0)
    assert (cropped - theirs).abs().max() <= 1.001 / 255
    assert psnr(cropped, theirs) > 50


def test_crops_of_one_pixel_and_of_the_whole_image() -> None:
    x = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    pixel = resized_crops(x, np.array([[1, 2, 1, 1]]), 5, np.array([False]))
    assert torch.allclose(pixel, torch.full((1, 1, 5, 5), 6.0))
    square = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.allclose(resized_crops(square, np.array([[0, 0, 4, 4]]), 4, np.array([False])), square.float())


def test_crop_and_resize_treats_channels_independently() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)
    out = crop_and_resize(image, np.array([2, 3, 10, 12]), 8)
    assert out.shape == (8, 8, 5)
    first_channel = crop_and_resize(image[..., :1], np.array([2, 3, 10, 12]), 8)
    assert np.abs(out[..., :1].astype(int) - first_channel).max() <= 1
