"""Video files have the frames that were added, or do not exist."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.tracking.datasets import video as datasets_video
from mec.evaluate.tracking.datasets.video import VideoWriter, check_video_path, open_frames
from mec.evaluate.tracking.sequences import Frame

GRAY = 90


def patches(number: int, height: int = 48, width: int = 64) -> Frame:
    """Return a smooth image with another color for each number."""
    rows, columns = np.indices((height, width))
    return np.stack([rows * 4, columns * 3, np.full_like(rows, 25 * number)], axis=2).clip(0, 255).astype(np.uint8)


@pytest.fixture
def video_path(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    return tmp_path / "new" / "video.mp4"


@pytest.mark.parametrize("encoders", [("libx264",), ("mpeg4",)])
def test_written_frames_are_read_back(video_path: Path, encoders: tuple[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Use H.264 or MPEG-4, at the frame rate of NTSC."""
    monkeypatch.setattr(datasets_video, "VIDEO_ENCODERS", encoders)
    with VideoWriter(video_path, 30000 / 1001) as video:
        for i in range(10):
            video.add(patches(i))
            assert not video_path.exists()
    frames = open_frames(video_path)
    assert len(frames) == 10
    assert frames.frame_rate == 30000 / 1001
    for i, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3)
        assert abs(frame.astype(int) - patches(i)).mean() < 4
    assert i == 9
    assert os.listdir(video_path.parent) == ["video.mp4"]


def test_videos_use_h264_with_the_index_first(video_path: Path) -> None:
    import av

    with VideoWriter(video_path, 25) as video:
        video.add(patches(1))
    with av.open(str(video_path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    data = video_path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_frames_of_other_sizes_are_scaled_to_fit(video_path: Path) -> None:
    """47 x 63 is padded to even numbers; 24 of 64 columns leave 20 at each side."""
    with VideoWriter(video_path, 25) as video:
        video.add(np.full((47, 63, 3), 200, np.uint8))
        video.add(np.full((48, 24, 3), 200, np.uint8))
        video.add(np.full((480, 640, 3), 200, np.uint8))
    odd, tall, large = (frame.astype(int) for frame in open_frames(video_path))
    assert odd.shape == tall.shape == large.shape == (48, 64, 3)
    assert abs(odd - 200).max() < 6
    assert abs(large - 200).max() < 6
    assert abs(tall[:, 22:42] - 200).max() < 12
    assert tall[:, :18].max() < 12
    assert tall[:, 46:].max() < 12


def test_caption_is_in_the_lower_left_corner(video_path: Path) -> None:
    plain = np.full((120, 160, 3), GRAY, np.uint8)
    with VideoWriter(video_path, 25, "one") as video:
        video.add(plain)
        video.caption = ""
        video.add(plain)
        video.caption = "another\nand longer"
        video.add(plain)
    noted, bare, longer = ((abs(frame.astype(int) - GRAY) > 25).any(axis=2) for frame in open_frames(video_path))
    assert noted[-9:, :10].mean() > 0.5
    assert not noted[:-16].any()
    assert not noted[:, 50:].any()
    assert not bare.any()
    assert longer[-9:, 40:60].mean() > 0.5
    assert not longer[:-16].any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_keeps_the_previous_file(video_path: Path, error: type[BaseException]) -> None:
    with VideoWriter(video_path, 25) as video:
        video.add(patches(0))
    before = video_path.read_bytes()
    with pytest.raises(error), VideoWriter(video_path, 25) as video:
        video.add(patches(1))
        raise error
    assert video_path.read_bytes() == before
    assert os.listdir(video_path.parent) == ["video.mp4"]


def test_without_frames_no_file_is_written(video_path: Path) -> None:
    with VideoWriter(video_path, 25):
        pass
    assert not video_path.parent.exists()


def test_unwritable_videos_are_rejected_before_tracking(
    tmp_path: Path, video_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_video_path(video_path)
    assert not video_path.parent.exists()
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "video.gif", r"expected a file ending in .mp4, got .*video.gif"),
        (tmp_path / "a.mp4", "expected the name of a file, got the folder .*a.mp4"),
        (tmp_path / "file" / "video.mp4", "file is not a folder"),
    ):
        with pytest.raises(InputError, match=f"^render: .*{reason}$"):
            VideoWriter(path, 25)
    for frame_rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="frame_rate: expected between 0 and 1000 frames per second, got"):
            VideoWriter(video_path, frame_rate)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # root may write everywhere
        with pytest.raises(InputError, match=rf"^render: {tmp_path} is not writable$"):
            check_video_path(video_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"^render: .*video.mp4 needs PyAV; pip install 'mec-ssl\[tracking\]'$"):
        check_video_path(video_path)
