import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mec.data.dataset import ArrayDataset
from mec.data.decode import open_image
from mec.data.pixels import PixelFormat
from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset
from mec.evaluate.detection.loaders import Order, TrainingBatch, resized, size_for, training_batches
from mec.evaluate.detection.loaders import testing_batches as looked_at
from tests.evaluate.detection.scenes import COLOR, QUICK, noise, rectangles

WIDE = np.array([True, False, True, True, False, True, True, False, False, True])


@pytest.mark.parametrize(
    ("size", "side", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.7
        ((640, 480), 800, 1333, (1067, 800)),
        ((375, 500), 800, 1333, (800, 1067)),
        ((300, 900), 800, 1333, (444, 1333)),  # 300 * 1333 / 900 = 444.3
        ((1000, 1000), 800, 1333, (800, 800)),
        ((3, 4000), 800, 1333, (1, 1333)),
        ((1, 9000), 800, 1333, (1, 1333)),
        ((200, 301), 100, 150, (100, 150)),  # 150 / 301 is the smaller scale: 99.67 and 150
    ],
)
def test_sizes_are_detectron2s(size: tuple[int, int], side: int, longest: int, expected: tuple[int, int]) -> None:
    assert size_for(*size, side, longest) == expected


def keys(order: Order, epochs: list[int]) -> list[list[tuple[int, int]]]:
    found = []
    for epoch in epochs:
        order.set_epoch(epoch)
        found += list(order)
    return found


def test_each_turn_shows_every_image_once_in_batches_of_one_shape() -> None:
    batches = keys(Order(WIDE, 2, 10, seed=3), [0, 1])
    assert [len(batch) for batch in batches] == [2] * 20
    for batch in batches:
        assert len({bool(WIDE[image]) for image, _ in batch}) == 1
    shown = [key for batch in batches for key in batch]
    assert len(set(shown)) == len(shown)
    # 6 wide and 4 high images fill batches of 2 to the last in every turn
    for turn in range(4):
        assert sorted(image for image, t in shown if t == turn) == list(range(10))
    assert [p for p, t in shown if t == 0] != [p for p, t in shown if t == 1]


def test_what_fills_no_batch_waits_for_the_next_turn() -> None:
    shown = [key for batch in islice(Order(WIDE, 4, 100, seed=0), 25) for key in batch]
    counts = np.bincount([image for image, _ in shown], minlength=10)
    assert counts.sum() == 100
    assert counts.max() - counts.min() <= 1
    alone = Order(np.array([True]), 4, 2, seed=0)
    assert list(alone) == [[(0, 0), (0, 1), (0, 2), (0, 3)], [(0, 4), (0, 5), (0, 6), (0, 7)]]


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_joins_to_the_same_batches(processes: int) -> None:
    parts = [list(Order(WIDE, 4, 7, 5, rank, processes)) for rank in range(processes)]
    assert {len(batch) for part in parts for batch in part} == {4 // processes}
    assert [[key for part in joined for key in part] for joined in zip(*parts, strict=True)] == list(
        Order(WIDE, 4, 7, 5)
    )


def test_begun_anywhere_it_goes_on_as_if_never_stopped() -> None:
    unbroken = keys(Order(WIDE, 4, 3, seed=1), list(range(6)))
    assert keys(Order(WIDE, 4, 3, seed=1), [4, 5]) == unbroken[12:]
    again = Order(WIDE, 4, 3, seed=1)
    assert keys(again, [0, 1, 2, 0, 5]) == unbroken[:9] + unbroken[:3] + unbroken[15:]
    next(iter(again))  # left in the middle
    assert keys(again, [1]) == unbroken[3:6]
    assert keys(Order(WIDE, 4, 3, seed=2), list(range(6))) != unbroken


@pytest.fixture
def colored(tmp_path: Path) -> AnnotatedDataset:
    """Rectangles of one color on noise, with masks."""
    return open_annotated(rectangles(tmp_path / "set"))[0]


def batches(
    annotated: AnnotatedDataset, workers: int = 0, seed: int = 0, count: int = 4, batch: int = 2
) -> list[TrainingBatch]:
    order = Order(annotated.sizes[:, 1] > annotated.sizes[:, 0], batch, count, seed)
    return list(training_batches(annotated, order, PixelFormat(), QUICK, False, workers))


def tensors(shown: list[TrainingBatch]) -> list[Tensor]:
    return [t for one in shown for t in (*one.images, *(v for target in one.targets for v in target.values()))]


def test_boxes_and_masks_follow_their_images(colored: AnnotatedDataset) -> None:
    mirrored = 0
    for shown in batches(colored, count=12):
        for image, target in zip(shown.images, shown.targets, strict=True):
            assert image.dtype == torch.uint8
            assert min(image.shape[1:]) in QUICK.sides
            height, width = image.shape[1:]
            difference = (image.float() - torch.tensor(COLOR)[:, None, None]).abs().amax(0)
            inside = difference < 30
            ((x1, y1, x2, y2),) = target["boxes"].tolist()
            rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
            found = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
            assert np.abs(np.subtract(found, [x1, y1, x2, y2])).max() <= 1
            (mask,) = target["masks"]
            assert mask.shape == (height, width)
            # within a pixel of the border both may be: the image is interpolated, the mask is not
            grown = torch.nn.functional.max_pool2d(inside[None].float(), 3, 1, 1)[0].bool()
            shrunk = ~torch.nn.functional.max_pool2d((~inside)[None].float(), 3, 1, 1)[0].bool()
            assert (mask.bool() <= grown).all()
            assert (shrunk <= mask.bool()).all()
            assert target["labels"].tolist() == [1]
            mirrored += x1 > width - x2  # all rectangles are nearer to the left
    assert 4 <= mirrored <= 20, "half of 24"


def test_the_draw_depends_on_seed_and_key_alone(colored: AnnotatedDataset) -> None:
    alone, by_workers, other = batches(colored), batches(colored, workers=2), batches(colored, seed=1)
    assert len(tensors(alone)) == 4 * 2 * 4
    for a, b in zip(tensors(alone), tensors(by_workers), strict=True):
        assert torch.equal(a, b)
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(tensors(alone), tensors(other), strict=True)
    )


def test_a_broken_file_is_replaced_by_the_next_and_listed(colored: AnnotatedDataset) -> None:
    broken = colored.images.root / colored.images.names[2]
    broken.write_bytes(broken.read_bytes()[:60])
    shown = batches(colored, count=6)  # two turns of 6
    assert all(len(one.images) == len(one.targets) == 2 for one in shown)
    assert [lost.title for one in shown for lost in one.lost] == [str(broken)] * 2
    order = [key for batch in Order(colored.sizes[:, 1] > colored.sizes[:, 0], 2, 3, 0) for key in batch]
    targets = [target for one in shown for target in one.targets]
    ((x1, y1, x2, y2),) = targets[order.index((2, 0))]["boxes"].tolist()
    width, height = colored.boxes[3, 2:] - colored.boxes[3, :2]
    assert (x2 - x1) / (y2 - y1) == pytest.approx(width / height, rel=0.01)


def test_nothing_readable_ends_with_a_line(colored: AnnotatedDataset) -> None:
    for name in colored.images.names:
        (colored.images.root / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"data: no image could be read; the last tried: .*: the file is empty"):
        batches(colored)


def test_a_image_of_another_size_than_annotated_is_broken(colored: AnnotatedDataset) -> None:
    path = colored.images.root / colored.images.names[0]
    Image.fromarray(noise(50, 70, 0)).save(path)
    lost = [one for shown in batches(colored, count=3) for one in shown.lost]
    height, width = colored.sizes[0].tolist()
    assert {str(one.reason) for one in lost} == {f"70 x 50 pixels, but {width} x {height} in the annotations"}
    assert {one.title for one in lost} == {str(path)}


def test_a_photograph_that_its_exif_turns(colored: AnnotatedDataset) -> None:
    """Its annotations are of the turned image, as detectron2 has it; those of the one that lies are refused."""
    height, width = colored.sizes[1].tolist()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = colored.images.root / colored.images.names[1]
    lying, upright = io.BytesIO(), Image.open(path).convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(lying, "JPEG", exif=exif, quality=95)
    path.write_bytes(lying.getvalue())
    shown = batches(colored, count=3)
    assert not [one for batch in shown for one in batch.lost]
    images = [(p, t) for batch in shown for p, t in zip(batch.images, batch.targets, strict=True)]
    order = [key for batch in Order(colored.sizes[:, 1] > colored.sizes[:, 0], 2, 3, 0) for key in batch]
    image, target = images[order.index((1, 0))]
    (mask,) = target["masks"].bool()
    assert (image.float()[:, mask].mean(1) - torch.tensor(COLOR)).abs().max() < 10
    upright.save(path, "JPEG", exif=exif)
    lost = [one for batch in batches(colored, count=3) for one in batch.lost]
    assert [one.reason for one in lost] == [f"{height} x {width} pixels, but {width} x {height} in the annotations"]


@pytest.mark.parametrize(("channels", "kind"), [(3, "L"), (1, "RGB"), (3, "I;16"), (3, "RGBA")])
def test_images_of_other_kinds_are_read_as_the_encoder_asks(channels: int, kind: str) -> None:
    buffer = io.BytesIO()
    gray = Image.fromarray(noise(40, 60, 0)).convert("L")
    if kind == "I;16":
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(buffer, "PNG")
    else:
        gray.convert(kind).save(buffer, "PNG")
    image = resized(open_image(buffer.getvalue()), PixelFormat(channels), 40, 400)
    assert image.shape == (channels, 40, 60)
    for channel in image:
        assert np.abs(channel.numpy().astype(int) - np.asarray(gray)).max() <= 1


def test_deep_images_of_an_encoder_with_a_range() -> None:
    values = np.arange(2400, dtype=np.uint16).reshape(40, 60)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    image = resized(open_image(buffer.getvalue()), PixelFormat(1, (0.0, 4800.0)), 40, 400)
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image[0].numpy(), values / 4800, atol=1e-6)


def test_a_large_jpeg_that_is_decoded_smaller_is_the_same_image() -> None:
    rows, columns = np.mgrid[:640, :960]
    smooth = np.stack([rows * 255 / 640, columns * 255 / 960, (rows + columns) * 255 / 1600], 2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    expected = np.asarray(Image.fromarray(smooth).resize((96, 64), Image.Resampling.BILINEAR)).astype(int)
    found = resized(open_image(buffer.getvalue()), PixelFormat(), 64, 128).permute(1, 2, 0).numpy()
    assert found.shape == (64, 96, 3)
    assert np.abs(found - expected).max() <= 4


def test_what_is_made_smaller_is_antialiased() -> None:
    stripes = np.zeros((256, 384, 3), np.uint8)
    stripes[:, ::4] = 255
    inner = resized(open_image(stripes), PixelFormat(), 64, 128)[:, :, 1:-1].numpy()
    assert np.abs(inner - 255 / 4).max() < 3


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_image_is_tested_once(processes: int) -> None:
    images = ArrayDataset("a", np.zeros((5, 20, 30, 3), np.uint8))
    seen = [
        number
        for rank in range(processes)
        for looked in looked_at(images, PixelFormat(), QUICK, rank, processes, 0)
        for number in looked.numbers
    ]
    assert sorted(seen) == list(range(5))


def test_images_are_tested_at_the_side_for_tests(colored: AnnotatedDataset) -> None:
    (colored.images.root / colored.images.names[1]).write_bytes(b"not an image")
    looked = list(looked_at(colored.images, PixelFormat(), QUICK, 0, 1, 0))
    for number, one in enumerate(looked):
        if number == 1:
            assert (one.images, one.numbers, one.sizes) == ([], [], [])
            assert one.lost[0].title == colored.images.title(1)
        else:
            assert one.numbers == [number]
            assert [list(size) for size in one.sizes] == [colored.sizes[number].tolist()]
            assert min(one.images[0].shape[1:]) == QUICK.side_at_test
