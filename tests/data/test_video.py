import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.data import open_images, read
from mec.errors import InputError

av = pytest.importorskip("av")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEC_DATA", str(tmp_path / "kept"))


def tone(number: int) -> int:
    return 20 + 2 * number


def write_video(path: Path, frames: int = 90, rate: int = 30) -> Path:
    """Frames as bright as their number says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), tone(number), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(images: object) -> list[int]:
    """The numbers of the frames from their brightness, to the nearest multiple of five: the encoder rounds."""
    return [5 * round((float(np.median(read(images, i))) - 20) / 10) for i in range(len(images))]


@pytest.mark.parametrize(("every", "expected"), [(None, [0, 30, 60]), (10, list(range(0, 90, 10))), (45, [0, 45])])
def test_every_nth_frame(tmp_path: Path, every: int | None, expected: list[int]) -> None:
    images = open_images(write_video(tmp_path / "walk.mp4"), every=every)
    assert numbers(images) == expected
    assert images.labels is None
    assert read(images, 0).shape == (48, 64, 3)


def test_videos_in_folders_have_labels(tmp_path: Path) -> None:
    for name in ("run/a.mp4", "run/b.avi", "swim/deep/c.mkv"):
        write_video(tmp_path / "data" / name, frames=31)
    images = open_images(tmp_path / "data")
    assert images.classes == ["run", "swim"]
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert numbers(images) == [0, 30] * 3
    assert len(open_images(tmp_path / "data", "test")) == 2


def test_frames_are_kept_and_made_anew_when_the_video_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "a.mp4")
    first = open_images(video)
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.video._extract", lambda *_: pytest.fail("decoded again"))
        assert open_images(video).names == first.names
    write_video(video, frames=31)
    os.utime(video, (1, 1))
    assert numbers(open_images(video)) == [0, 30]


def test_a_video_that_breaks_off_gives_what_comes_before(tmp_path: Path) -> None:
    video = write_video(tmp_path / "whole.avi")
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    found = numbers(open_images(tmp_path / "cut.avi", every=5))
    assert 1 < len(found) < 18
    assert found == list(range(0, 5 * len(found), 5))


def test_what_is_no_video_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_video(data / "a.mp4", frames=31)
    (data / "b.mp4").write_text("no video")
    (data / "c.mp4").write_bytes(b"")
    (data / "d.mp4").symlink_to(tmp_path / "nowhere")
    images = open_images(data)
    assert (len(images), images.left_out) == (2, 3)
    with pytest.raises(InputError, match=r"no frame of .*b\.mp4 can be read"):
        open_images(data / "b.mp4")


def test_a_folder_of_frames(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("L", (40, 30), tone(number)).save(tmp_path / f"{number:03}.png")
    assert open_images(tmp_path, every=3).names == ["000.png", "003.png", "006.png"]


def test_real_frames(real_data: Path) -> None:
    frames = sorted((real_data / "davis16-subset").rglob("*.jpg"))[0].parent
    every = open_images(frames, every=7)
    assert [Path(name).name for name in every.names] == [p.name for p in sorted(frames.glob("*.jpg"))[::7]]
