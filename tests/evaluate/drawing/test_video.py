"""Films hold what was put into them, whole or not at all."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.drawing import tracks as render
from mec.evaluate.drawing.tracks import VideoWriter, check_render
from mec.evaluate.tracking.datasets.video import open_frames
from mec.evaluate.tracking.sequences import Frame

GRAY = 90


def patches(number: int, height: int = 48, width: int = 64) -> Frame:
    """Smooth, and another color for each number."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 4, columns * 3, np.full_like(rows, 25 * number)], axis=2).clip(0, 255).astype(np.uint8)


@pytest.fixture
def film_path(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    return tmp_path / "new" / "film.mp4"


@pytest.mark.parametrize("encoders", [("libx264",), ("mpeg4",)])
def test_a_film_holds_its_frames(film_path: Path, encoders: tuple[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without H.264; at the rate of NTSC."""
    monkeypatch.setattr(render, "ENCODERS", encoders)
    with VideoWriter(film_path, 30000 / 1001) as film:
        for i in range(10):
            film.add(patches(i))
            assert not film_path.exists()
    frames = open_frames(film_path)
    assert len(frames) == 10
    assert frames.rate == 30000 / 1001
    for i, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3)
        assert abs(frame.astype(int) - patches(i)).mean() < 4
    assert i == 9
    assert os.listdir(film_path.parent) == ["film.mp4"]


def test_players_know_the_film(film_path: Path) -> None:
    import av

    with VideoWriter(film_path, 25) as film:
        film.add(patches(1))
    with av.open(str(film_path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    data = film_path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_frames_of_other_sizes_are_fitted(film_path: Path) -> None:
    """47 x 63 becomes even by a pixel; 24 of 64 columns leave 20 at each side."""
    with VideoWriter(film_path, 25) as film:
        film.add(np.full((47, 63, 3), 200, np.uint8))
        film.add(np.full((48, 24, 3), 200, np.uint8))
        film.add(np.full((480, 640, 3), 200, np.uint8))
    odd, tall, large = (frame.astype(int) for frame in open_frames(film_path))
    assert odd.shape == tall.shape == large.shape == (48, 64, 3)
    assert abs(odd - 200).max() < 6
    assert abs(large - 200).max() < 6
    assert abs(tall[:, 22:42] - 200).max() < 12
    assert tall[:, :18].max() < 12
    assert tall[:, 46:].max() < 12


def test_the_note_is_in_the_lower_left_corner(film_path: Path) -> None:
    plain = np.full((120, 160, 3), GRAY, np.uint8)
    with VideoWriter(film_path, 25, "one") as film:
        film.add(plain)
        film.note = ""
        film.add(plain)
        film.note = "another\nand longer"
        film.add(plain)
    noted, bare, longer = ((abs(frame.astype(int) - GRAY) > 25).any(axis=2) for frame in open_frames(film_path))
    assert noted[-9:, :10].mean() > 0.5
    assert not noted[:-16].any()
    assert not noted[:, 50:].any()
    assert not bare.any()
    assert longer[-9:, 40:60].mean() > 0.5
    assert not longer[:-16].any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whole_or_not_at_all(film_path: Path, error: type[BaseException]) -> None:
    with VideoWriter(film_path, 25) as film:
        film.add(patches(0))
    before = film_path.read_bytes()
    with pytest.raises(error), VideoWriter(film_path, 25) as film:
        film.add(patches(1))
        raise error
    assert film_path.read_bytes() == before
    assert os.listdir(film_path.parent) == ["film.mp4"]


def test_no_frames_no_film(film_path: Path) -> None:
    with VideoWriter(film_path, 25):
        pass
    assert not film_path.parent.exists()


def test_a_film_that_cannot_be_written_is_said_at_once(
    tmp_path: Path, film_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_render(film_path)
    assert not film_path.parent.exists()
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "film.gif", r"expected a file ending in .mp4, got .*film.gif"),
        (tmp_path / "a.mp4", "a.mp4 is a folder, expected the name of a file"),
        (tmp_path / "file" / "film.mp4", "file is no folder"),
    ):
        with pytest.raises(InputError, match=f"^render: .*{reason}$"):
            VideoWriter(path, 25)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="rate: expected frames a second, got"):
            VideoWriter(film_path, rate)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # for whoever may write everywhere
        with pytest.raises(InputError, match=rf"^render: {tmp_path} cannot be written to$"):
            check_render(film_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"^render: .*film.mp4 needs PyAV; pip install 'mec-ssl\[tracking\]'$"):
        check_render(film_path)
