from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.evaluate.tracking.datasets.davis import PALETTE, read_masks, write_masks
from mec.evaluate.tracking.sequences import ImageFrames, Labels, MaskSequence, SequenceError

H, W = 6, 8


def grid(*values: int) -> Labels:
    """Columns 0, 1 ... have these values; the rest is 0."""
    labels = np.zeros((H, W), np.uint8)
    labels[:, : len(values)] = values
    return labels


def three_frames() -> MaskSequence:
    names = ("00000", "00005", "00010")
    return MaskSequence("dog", ImageFrames(()), names, lambda frame: grid(1, 2), PALETTE)


def test_masks_round_trip_in_davis_format(tmp_path: Path) -> None:
    sequence, out = three_frames(), tmp_path / "out" / "masks"
    assert read_masks(out, sequence) is None
    for labels in ([grid(1, 2), grid(2, 1), grid()], [grid(1, 2, 3), grid(2, 1, 254), grid(1)]):
        write_masks(out, sequence, iter(labels))
        read = read_masks(out, sequence)
        assert read is not None
        assert all(one.dtype == np.uint8 for one in read)
        np.testing.assert_array_equal(read, labels)
    assert [path.name for path in out.iterdir()] == ["dog"]
    assert sorted(path.name for path in (out / "dog").iterdir()) == ["00000.png", "00005.png", "00010.png"]
    with Image.open(out / "dog" / "00000.png") as image:
        assert image.mode == "P"
        assert np.asarray(image.convert("RGB"))[0, :4].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 0]]
    write_masks(out, sequence, [grid(1, 255)] * 3)
    with Image.open(out / "dog" / "00005.png") as image:
        np.testing.assert_array_equal(np.asarray(image), grid(1))


def test_interrupted_writing_leaves_the_previous_masks(tmp_path: Path) -> None:
    def breaking() -> Iterator[Labels]:
        yield grid(2)
        raise SequenceError("00005.jpg")

    sequence, out = three_frames(), tmp_path / "out"
    for before in (None, [grid(1)] * 3):
        if before:
            write_masks(out, sequence, before)
        with pytest.raises(SequenceError, match=r"00005.jpg"):
            write_masks(out, sequence, breaking())
        for wrong in (2, 4):
            with pytest.raises(ValueError, match="zip"):
                write_masks(out, sequence, [grid(1)] * wrong)
        assert [path.name for path in out.iterdir()] == (["dog"] if before else [])
    np.testing.assert_array_equal(read_masks(out, sequence), [grid(1)] * 3)


def test_incomplete_masks_are_not_read(tmp_path: Path) -> None:
    sequence, out = three_frames(), tmp_path / "out"
    write_masks(out, sequence, [grid(1)] * 3)
    file = out / "dog" / "00010.png"
    intact = file.read_bytes()
    for damaged in (intact[:-30], b""):
        file.write_bytes(damaged)
        assert read_masks(out, sequence) is None
    for other in (grid(1)[:, 1:], grid(1)[..., None].repeat(3, 2)):
        Image.fromarray(other).save(file)
        assert read_masks(out, sequence) is None
    file.unlink()
    assert read_masks(out, sequence) is None
    file.write_bytes(intact)
    assert read_masks(out, sequence) is not None
