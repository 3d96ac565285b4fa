import io
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mec.data.decode import open_picture
from mec.data.dataset import ArrayImages
from mec.data.pixels import Reading
from mec.errors import InputError
from mec.evaluate.detection.datasets.annotations import Annotated
from mec.evaluate.detection.loaders import Order, TrainingBatch, resized, size_for, training_batches
from mec.evaluate.detection.loaders import testing_batches as looked_at
from mec.evaluate.detection.datasets import open_annotated
from tests.evaluate.detection.scenes import COLOUR, QUICK, noise, rectangles

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


def test_each_turn_shows_every_picture_once_in_batches_of_one_shape() -> None:
    batches = keys(Order(WIDE, 2, 10, seed=3), [0, 1])
    assert [len(batch) for batch in batches] == [2] * 20
    for batch in batches:
        assert len({bool(WIDE[picture]) for picture, _ in batch}) == 1
    shown = [key for batch in batches for key in batch]
    assert len(set(shown)) == len(shown)
    # 6 wide and 4 high pictures fill batches of 2 to the last in every turn
    for turn in range(4):
        assert sorted(picture for picture, t in shown if t == turn) == list(range(10))
    assert [p for p, t in shown if t == 0] != [p for p, t in shown if t == 1]


def test_what_fills_no_batch_waits_for_the_next_turn() -> None:
    shown = [key for batch in islice(Order(WIDE, 4, 100, seed=0), 25) for key in batch]
    counts = np.bincount([picture for picture, _ in shown], minlength=10)
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
def coloured(tmp_path: Path) -> Annotated:
    """Rectangles of one colour on noise, with masks."""
    return open_annotated(rectangles(tmp_path / "set"))[0]


def batches(
    annotated: Annotated, workers: int = 0, seed: int = 0, count: int = 4, batch: int = 2
) -> list[TrainingBatch]:
    order = Order(annotated.sizes[:, 1] > annotated.sizes[:, 0], batch, count, seed)
    return list(training_batches(annotated, order, Reading(), QUICK, False, workers))


def tensors(shown: list[TrainingBatch]) -> list[Tensor]:
    return [t for one in shown for t in (*one.pictures, *(v for target in one.targets for v in target.values()))]


def test_boxes_and_masks_follow_their_pictures(coloured: Annotated) -> None:
    mirrored = 0
    for shown in batches(coloured, count=12):
        for picture, target in zip(shown.pictures, shown.targets, strict=True):
            assert picture.dtype == torch.uint8
            assert min(picture.shape[1:]) in QUICK.sides
            height, width = picture.shape[1:]
            difference = (picture.float() - torch.tensor(COLOUR)[:, None, None]).abs().amax(0)
            inside = difference < 30
            ((x1, y1, x2, y2),) = target["boxes"].tolist()
            rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
            found = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
            assert np.abs(np.subtract(found, [x1, y1, x2, y2])).max() <= 1
            (mask,) = target["masks"]
            assert mask.shape == (height, width)
            # within a pixel of the border both may be: the picture is interpolated, the mask is not
            grown = torch.nn.functional.max_pool2d(inside[None].float(), 3, 1, 1)[0].bool()
            shrunk = ~torch.nn.functional.max_pool2d((~inside)[None].float(), 3, 1, 1)[0].bool()
            assert (mask.bool() <= grown).all()
            assert (shrunk <= mask.bool()).all()
            assert target["labels"].tolist() == [1]
            mirrored += x1 > width - x2  # all rectangles are nearer to the left
    assert 4 <= mirrored <= 20, "half of 24"


def test_the_draw_depends_on_seed_and_key_alone(coloured: Annotated) -> None:
    alone, by_workers, other = batches(coloured), batches(coloured, workers=2), batches(coloured, seed=1)
    assert len(tensors(alone)) == 4 * 2 * 4
    for a, b in zip(tensors(alone), tensors(by_workers), strict=True):
        assert torch.equal(a, b)
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(tensors(alone), tensors(other), strict=True)
    )


def test_a_broken_file_is_replaced_by_the_next_and_listed(coloured: Annotated) -> None:
    broken = coloured.pictures.root / coloured.pictures.names[2]
    broken.write_bytes(broken.read_bytes()[:60])
    shown = batches(coloured, count=6)  # two turns of 6
    assert all(len(one.pictures) == len(one.targets) == 2 for one in shown)
    assert [lost.title for one in shown for lost in one.lost] == [str(broken)] * 2
    order = [key for batch in Order(coloured.sizes[:, 1] > coloured.sizes[:, 0], 2, 3, 0) for key in batch]
    targets = [target for one in shown for target in one.targets]
    ((x1, y1, x2, y2),) = targets[order.index((2, 0))]["boxes"].tolist()
    width, height = coloured.boxes[3, 2:] - coloured.boxes[3, :2]
    assert (x2 - x1) / (y2 - y1) == pytest.approx(width / height, rel=0.01)


def test_nothing_readable_ends_with_a_line(coloured: Annotated) -> None:
    for name in coloured.pictures.names:
        (coloured.pictures.root / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"data: no picture could be read; the last tried: .*: the file is empty"):
        batches(coloured)


def test_a_picture_of_another_size_than_annotated_is_broken(coloured: Annotated) -> None:
    path = coloured.pictures.root / coloured.pictures.names[0]
    Image.fromarray(noise(50, 70, 0)).save(path)
    lost = [one for shown in batches(coloured, count=3) for one in shown.lost]
    height, width = coloured.sizes[0].tolist()
    assert {str(one.reason) for one in lost} == {f"70 x 50 pixels, but {width} x {height} in the annotations"}
    assert {one.title for one in lost} == {str(path)}


def test_a_photograph_that_its_exif_turns(coloured: Annotated) -> None:
    """Its annotations are of the turned picture, as detectron2 has it; those of the one that lies are refused."""
    height, width = coloured.sizes[1].tolist()
    exif = Image.Exif()
    exif[0x0112] = 6
    path = coloured.pictures.root / coloured.pictures.names[1]
    lying, upright = io.BytesIO(), Image.open(path).convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(lying, "JPEG", exif=exif, quality=95)
    path.write_bytes(lying.getvalue())
    shown = batches(coloured, count=3)
    assert not [one for batch in shown for one in batch.lost]
    pictures = [(p, t) for batch in shown for p, t in zip(batch.pictures, batch.targets, strict=True)]
    order = [key for batch in Order(coloured.sizes[:, 1] > coloured.sizes[:, 0], 2, 3, 0) for key in batch]
    picture, target = pictures[order.index((1, 0))]
    (mask,) = target["masks"].bool()
    assert (picture.float()[:, mask].mean(1) - torch.tensor(COLOUR)).abs().max() < 10
    upright.save(path, "JPEG", exif=exif)
    lost = [one for batch in batches(coloured, count=3) for one in batch.lost]
    assert [one.reason for one in lost] == [f"{height} x {width} pixels, but {width} x {height} in the annotations"]


@pytest.mark.parametrize(("channels", "kind"), [(3, "L"), (1, "RGB"), (3, "I;16"), (3, "RGBA")])
def test_pictures_of_other_kinds_are_read_as_the_encoder_asks(channels: int, kind: str) -> None:
    buffer = io.BytesIO()
    grey = Image.fromarray(noise(40, 60, 0)).convert("L")
    if kind == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(buffer, "PNG")
    else:
        grey.convert(kind).save(buffer, "PNG")
    picture = resized(open_picture(buffer.getvalue()), Reading(channels), 40, 400)
    assert picture.shape == (channels, 40, 60)
    for channel in picture:
        assert np.abs(channel.numpy().astype(int) - np.asarray(grey)).max() <= 1


def test_deep_pictures_of_an_encoder_with_a_range() -> None:
    values = np.arange(2400, dtype=np.uint16).reshape(40, 60)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    picture = resized(open_picture(buffer.getvalue()), Reading(1, (0.0, 4800.0)), 40, 400)
    assert picture.dtype == torch.float32
    np.testing.assert_allclose(picture[0].numpy(), values / 4800, atol=1e-6)


def test_a_large_jpeg_that_is_decoded_smaller_is_the_same_picture() -> None:
    rows, columns = np.mgrid[:640, :960]
    smooth = np.stack([rows * 255 / 640, columns * 255 / 960, (rows + columns) * 255 / 1600], 2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    expected = np.asarray(Image.fromarray(smooth).resize((96, 64), Image.Resampling.BILINEAR)).astype(int)
    found = resized(open_picture(buffer.getvalue()), Reading(), 64, 128).permute(1, 2, 0).numpy()
    assert found.shape == (64, 96, 3)
    assert np.abs(found - expected).max() <= 4


def test_what_is_made_smaller_is_antialiased() -> None:
    stripes = np.zeros((256, 384, 3), np.uint8)
    stripes[:, ::4] = 255
    inner = resized(open_picture(stripes), Reading(), 64, 128)[:, :, 1:-1].numpy()
    assert np.abs(inner - 255 / 4).max() < 3


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_picture_is_tested_once(processes: int) -> None:
    images = ArrayImages("a", np.zeros((5, 20, 30, 3), np.uint8))
    seen = [
        number
        for rank in range(processes)
        for looked in looked_at(images, Reading(), QUICK, rank, processes, 0)
        for number in looked.numbers
    ]
    assert sorted(seen) == list(range(5))


def test_pictures_are_tested_at_the_side_for_tests(coloured: Annotated) -> None:
    (coloured.pictures.root / coloured.pictures.names[1]).write_bytes(b"not a picture")
    looked = list(looked_at(coloured.pictures, Reading(), QUICK, 0, 1, 0))
    for number, one in enumerate(looked):
        if number == 1:
            assert (one.pictures, one.numbers, one.sizes) == ([], [], [])
            assert one.lost[0].title == coloured.pictures.title(1)
        else:
            assert one.numbers == [number]
            assert [list(size) for size in one.sizes] == [coloured.sizes[number].tolist()]
            assert min(one.pictures[0].shape[1:]) == QUICK.side_at_test
