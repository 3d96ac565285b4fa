import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mec.data.corrupt import CorruptImage
from mec.data.dataset import ArrayDataset
from mec.data.decode import open_image
from mec.data.pixels import PixelFormat
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.loaders import (
    AspectRatioBatchSampler,
    TrainBatch,
    make_test_loader,
    make_train_loader,
    resize,
    resized_size,
)
from tests.evaluate.detection.scenes import COLOR, QUICK, noise, rectangle_dataset

IS_LANDSCAPE = np.array([True, False, True, True, False, True, True, False, False, True])


def test_resized_size_matches_detectron2() -> None:
    assert resized_size(480, 640, 800, 1333) == (800, 1067)  # 640 * 800 / 480 = 1066.7
    assert resized_size(640, 480, 800, 1333) == (1067, 800)
    assert resized_size(300, 900, 800, 1333) == (444, 1333)  # 300 * 1333 / 900 = 444.3
    assert resized_size(3, 4000, 800, 1333) == (1, 1333)
    assert resized_size(1, 9000, 800, 1333) == (1, 1333)
    assert resized_size(200, 301, 100, 150) == (100, 150)  # 150 / 301 is the smaller scale: 99.67 and 150


def test_each_pass_has_every_image_once_in_batches_of_one_orientation() -> None:
    batches = list(AspectRatioBatchSampler(IS_LANDSCAPE, 2, 20, seed=3))
    assert [len(batch) for batch in batches] == [2] * 20
    for batch in batches:
        assert len({bool(IS_LANDSCAPE[image]) for image, _ in batch}) == 1
    keys = [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys)
    # 6 landscape and 4 portrait images fill all batches of 2 in every pass
    for data_pass in range(4):
        assert sorted(image for image, p in keys if p == data_pass) == list(range(10))
    assert [image for image, p in keys if p == 0] != [image for image, p in keys if p == 1]


def test_an_incomplete_batch_is_completed_in_the_next_pass() -> None:
    keys = [key for batch in islice(AspectRatioBatchSampler(IS_LANDSCAPE, 4, 100, seed=0), 25) for key in batch]
    counts = np.bincount([image for image, _ in keys], minlength=10)
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 1
    single_image = AspectRatioBatchSampler(np.array([True]), 4, 2, seed=0)
    assert list(single_image) == [[(0, 0), (0, 1), (0, 2), (0, 3)], [(0, 4), (0, 5), (0, 6), (0, 7)]]


def test_batches_are_the_same_for_any_number_of_processes() -> None:
    shards = [list(AspectRatioBatchSampler(IS_LANDSCAPE, 4, 7, 5, rank, world_size=2)) for rank in range(2)]
    assert {len(batch) for shard in shards for batch in shard} == {2}
    joined = [[key for shard in step for key in shard] for step in zip(*shards, strict=True)]
    assert joined == list(AspectRatioBatchSampler(IS_LANDSCAPE, 4, 7, 5))


def test_batches_after_a_resume_are_the_same() -> None:
    uninterrupted = list(AspectRatioBatchSampler(IS_LANDSCAPE, 4, 18, seed=1))
    resumed = AspectRatioBatchSampler(IS_LANDSCAPE, 4, 18, seed=1)
    resumed.resume_at(13)
    assert list(resumed) == uninterrupted[13:]
    next(iter(resumed))
    assert list(resumed) == uninterrupted  # later iterations start at 0
    assert list(AspectRatioBatchSampler(IS_LANDSCAPE, 4, 18, seed=2)) != uninterrupted


@pytest.fixture
def rectangles(tmp_path: Path) -> AnnotatedDataset:
    """Rectangles of one color on noise, with masks."""
    return open_annotated(rectangle_dataset(tmp_path / "set"))[0]


def sampler_of(dataset: AnnotatedDataset, num_batches: int = 4, seed: int = 0) -> AspectRatioBatchSampler:
    return AspectRatioBatchSampler(dataset.sizes[:, 1] > dataset.sizes[:, 0], 2, num_batches, seed)


def load_batches(dataset: AnnotatedDataset, workers: int = 0, seed: int = 0, num_batches: int = 4) -> list[TrainBatch]:
    sampler = sampler_of(dataset, num_batches, seed)
    return list(make_train_loader(dataset, sampler, PixelFormat(), QUICK, False, workers))


def all_tensors(batches: list[TrainBatch]) -> list[Tensor]:
    return [
        tensor
        for batch in batches
        for tensor in (*batch.images, *(value for target in batch.targets for value in target.values()))
    ]


def corrupt_images(batches: list[TrainBatch]) -> list[CorruptImage]:
    return [image for batch in batches for image in batch.corrupt]


def test_boxes_and_masks_are_transformed_with_their_images(rectangles: AnnotatedDataset) -> None:
    num_flipped = 0
    for batch in load_batches(rectangles, num_batches=12):
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert image.dtype == torch.uint8
            assert min(image.shape[1:]) in QUICK.train_short_sides
            height, width = image.shape[1:]
            difference = (image.float() - torch.tensor(COLOR)[:, None, None]).abs().amax(0)
            inside = difference < 30
            ((x1, y1, x2, y2),) = target["boxes"].tolist()
            rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
            extent = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
            assert np.abs(np.subtract(extent, [x1, y1, x2, y2])).max() <= 1
            (mask,) = target["masks"]
            assert mask.shape == (height, width)
            # a tolerance of one pixel at the border: the image is interpolated, the mask is not
            dilated = torch.nn.functional.max_pool2d(inside[None].float(), 3, 1, 1)[0].bool()
            eroded = ~torch.nn.functional.max_pool2d((~inside)[None].float(), 3, 1, 1)[0].bool()
            assert (mask.bool() <= dilated).all()
            assert (eroded <= mask.bool()).all()
            assert target["labels"].tolist() == [1]
            num_flipped += x1 > width - x2  # all rectangles are left of the center
    assert 4 <= num_flipped <= 20, "half of 24"


@pytest.mark.filterwarnings("error")  # such as PyTorch's of more workers than cores
def test_augmentation_depends_on_the_seed_and_the_key_only(rectangles: AnnotatedDataset) -> None:
    tensors = all_tensors(load_batches(rectangles))
    assert len(tensors) == 4 * 2 * 4
    for a, b in zip(tensors, all_tensors(load_batches(rectangles, workers=3)), strict=True):
        assert torch.equal(a, b)
    other_seed = all_tensors(load_batches(rectangles, seed=1))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(tensors, other_seed, strict=True))


def test_a_corrupt_file_is_replaced_by_the_next_and_reported(rectangles: AnnotatedDataset) -> None:
    corrupt = rectangles.images.root / rectangles.images.names[2]
    corrupt.write_bytes(corrupt.read_bytes()[:60])
    batches = load_batches(rectangles, num_batches=6)  # two passes over 6 images
    assert all(len(batch.images) == len(batch.targets) == 2 for batch in batches)
    assert [image.title for image in corrupt_images(batches)] == [str(corrupt)] * 2
    keys = [key for batch in sampler_of(rectangles, 3) for key in batch]
    targets = [target for batch in batches for target in batch.targets]
    ((x1, y1, x2, y2),) = targets[keys.index((2, 0))]["boxes"].tolist()
    width, height = rectangles.boxes[3, 2:] - rectangles.boxes[3, :2]
    assert (x2 - x1) / (y2 - y1) == pytest.approx(width / height, rel=0.01)


def test_a_dataset_without_readable_images_is_an_input_error(rectangles: AnnotatedDataset) -> None:
    for name in rectangles.images.names:
        (rectangles.images.root / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"data: no image could be read; the last tried: .*: the file is empty"):
        load_batches(rectangles)


def test_an_image_of_another_size_than_annotated_is_corrupt(rectangles: AnnotatedDataset) -> None:
    path = rectangles.images.root / rectangles.images.names[0]
    Image.fromarray(noise(50, 70, 0)).save(path)
    corrupt = corrupt_images(load_batches(rectangles, num_batches=3))
    height, width = rectangles.sizes[0].tolist()
    assert {image.reason for image in corrupt} == {f"70 x 50 pixels, but {width} x {height} in the annotations"}
    assert {image.title for image in corrupt} == {str(path)}


def test_annotations_refer_to_the_image_after_its_exif_rotation(rectangles: AnnotatedDataset) -> None:
    """As in detectron2. An image that only has the annotated size before the rotation is corrupt."""
    height, width = rectangles.sizes[1].tolist()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = rectangles.images.root / rectangles.images.names[1]
    rotated_jpeg, upright = io.BytesIO(), Image.open(path).convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(rotated_jpeg, "JPEG", exif=exif, quality=95)
    path.write_bytes(rotated_jpeg.getvalue())
    batches = load_batches(rectangles, num_batches=3)
    assert not corrupt_images(batches)
    samples = [sample for batch in batches for sample in zip(batch.images, batch.targets, strict=True)]
    keys = [key for batch in sampler_of(rectangles, 3) for key in batch]
    image, target = samples[keys.index((1, 0))]
    (mask,) = target["masks"].bool()
    assert (image.float()[:, mask].mean(1) - torch.tensor(COLOR)).abs().max() < 10
    upright.save(path, "JPEG", exif=exif)
    reasons = [image.reason for image in corrupt_images(load_batches(rectangles, num_batches=3))]
    assert reasons == [f"{height} x {width} pixels, but {width} x {height} in the annotations"]


def test_16_bit_images_are_scaled_by_the_encoders_value_range() -> None:
    values = np.arange(2400, dtype=np.uint16).reshape(40, 60)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    image = resize(open_image(buffer.getvalue()), PixelFormat(1, (0.0, 4800.0)), 40, 400)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image[0].numpy(), values / 4800, atol=1e-6)


def test_scaled_jpeg_decoding_gives_the_same_image() -> None:
    rows, columns = np.mgrid[:640, :960]
    smooth = np.stack([rows * 255 / 640, columns * 255 / 960, (rows + columns) * 255 / 1600], 2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    expected = np.asarray(Image.fromarray(smooth).resize((96, 64), Image.Resampling.BILINEAR)).astype(int)
    resized = resize(open_image(buffer.getvalue()), PixelFormat(), 64, 128).permute(1, 2, 0).numpy()
    assert resized.shape == (64, 96, 3)
    assert np.abs(resized - expected).max() <= 4


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((256, 384, 3), np.uint8)
    stripes[:, ::4] = 255
    inner = resize(open_image(stripes), PixelFormat(), 64, 128)[:, :, 1:-1].numpy()
    assert np.abs(inner - 255 / 4).max() < 3


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_every_image_is_tested_once(world_size: int) -> None:
    dataset = ArrayDataset("a", np.zeros((5, 20, 30, 3), np.uint8))
    indices = [
        index
        for rank in range(world_size)
        for batch in make_test_loader(dataset, PixelFormat(), QUICK, rank, world_size, 0)
        for index in batch.indices
    ]
    assert sorted(indices) == list(range(5))


def test_test_images_have_the_test_short_side(rectangles: AnnotatedDataset) -> None:
    (rectangles.images.root / rectangles.images.names[1]).write_bytes(b"not an image")
    batches = list(make_test_loader(rectangles.images, PixelFormat(), QUICK, 0, 1, 0))
    for index, batch in enumerate(batches):
        if index == 1:
            assert (batch.images, batch.indices, batch.sizes) == ([], [], [])
            assert batch.corrupt[0].title == rectangles.images.title(1)
        else:
            assert batch.indices == [index]
            assert [list(size) for size in batch.sizes] == [rectangles.sizes[index].tolist()]
            assert min(batch.images[0].shape[1:]) == QUICK.test_short_side
