"""Frames of videos are in order and upright; other files are rejected."""

import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mec.errors import InputError
from mec.evaluate.tracking.datasets.video import PREFETCH, VideoFrames, open_frames
from mec.evaluate.tracking.sequences import Frame, Frames, ImageFrames, SequenceError

av = pytest.importorskip("av")


def gray(frame: int) -> int:
    return 30 + 3 * frame


def write_video(
    path: Path, frames: Iterable[int], frame_rate: int = 25, codec: str = "libx264", size: tuple[int, int] = (48, 64)
) -> Path:
    """Write frames of one gray level each, with a little noise so that no packet is empty."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=frame_rate)
        stream.height, stream.width = size
        stream.pix_fmt, stream.bit_rate = "yuvj420p" if codec == "mjpeg" else "yuv420p", 4_000_000
        for i in frames:
            pixels = (gray(i) + noise.integers(-15, 16, (*size, 3))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: Iterable[Frame]) -> list[int]:
    """Return the numbers of the frames from their gray levels, which codecs preserve to within half a step."""
    return [round((float(frame.mean()) - gray(0)) / 3) for frame in frames]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "swim.mp4", range(60))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")]
)
def test_frames_can_be_iterated_twice(tmp_path: Path, name: str, codec: str) -> None:
    """Matroska and WebM do not store the number of frames."""
    frames = open_frames(write_video(tmp_path / name, range(40), 20, codec))
    assert (len(frames), frames.frame_rate) == (40, 20.0)
    first = next(iter(frames))
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((48, 64, 3), np.uint8, True)
    for _ in range(2):
        assert numbers(frames) == list(range(40))


def matrix(path: Path, corners: tuple[int, int, int, int]) -> None:
    """Set the rotation part of the display matrix in the track header of an .mp4, which has a fixed layout."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (int(value << 16).to_bytes(4, "big", signed=True) for value in corners)
    data[start : start + 20] = a + b + bytes(4) + c + d
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("corners", "shape", "bright"),
    [
        ((0, 1, -1, 0), (64, 48), np.s_[:, 24:]),
        ((0, -1, 1, 0), (64, 48), np.s_[:, :24]),
        ((-1, 0, 0, -1), (48, 64), np.s_[24:]),
    ],
    ids=["clockwise", "counter-clockwise", "upside down"],
)
def test_rotated_videos_are_turned_upright(
    tmp_path: Path, corners: tuple[int, int, int, int], shape: tuple[int, int], bright: Any
) -> None:
    """ISO 14496-12: (p, q) is shown at (a p + c q, b p + d q). A bright upper half turns to the right, left, below."""
    pixels = np.full((48, 64, 3), 30, np.uint8)
    pixels[:24] = 220
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    matrix(tmp_path / "a.mp4", corners)
    (frame,) = open_frames(tmp_path / "a.mp4")
    expected = np.full((*shape, 3), 30)
    expected[bright] = 220
    assert frame.shape == (*shape, 3)
    assert abs(frame.astype(int) - expected).mean() < 5


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_few_frames_are_decoded_in_advance(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends and the file is closed when the iterator is dropped."""
    before, decoded, closed = set(decoders()), list[Frame](), threading.Event()
    decode = VideoFrames.decode

    def counted(self: VideoFrames) -> Any:
        try:
            for frame in decode(self):
                decoded.append(frame)
                yield frame
        finally:
            closed.set()

    frames = open_frames(video)
    monkeypatch.setattr(VideoFrames, "decode", counted)
    iterator = iter(frames)
    assert numbers([next(iterator), next(iterator)]) == [0, 1]
    (thread,) = set(decoders()) - before
    for _ in range(200):  # wait at most two seconds for the thread
        if len(decoded) < 2 + PREFETCH:
            thread.join(0.01)
    assert len(decoded) == 2 + PREFETCH
    del iterator
    assert not thread.is_alive()
    assert closed.is_set()


def test_decoder_threads_end_with_the_iteration(video: Path) -> None:
    before = set(decoders())
    assert len(list(open_frames(video))) == 60
    with pytest.raises(ZeroDivisionError):
        for _ in open_frames(video):
            raise ZeroDivisionError
    assert set(decoders()) <= before


def test_damaged_packets_lose_only_their_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packets of MJPEG are images, so at most two of 30 frames are lost; multi-threaded decoders may recover them."""
    path = write_video(tmp_path / "a.avi", range(30), codec="mjpeg")
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for n in (7, 20):
        start = data.index(b"\xff\xd8", places[n][0])
        data[start : start + 300] = bytes(300)
    path.write_bytes(data)
    frames = open_frames(path)
    assert len(frames) == 30
    capsys.readouterr()
    decoded_numbers = numbers(frames)
    damaged = (7, 20)
    assert [i for i in decoded_numbers if i not in damaged] == [i for i in range(30) if i not in damaged]
    missing = 30 - len(decoded_numbers)
    message = f"{path}: {missing} damaged packets skipped, {len(decoded_numbers)} frames decoded"
    assert missing == 0 or message in capsys.readouterr().err


def test_changing_frame_sizes_are_rejected(tmp_path: Path) -> None:
    """An MPEG-1 stream may restart with another size."""
    first = write_video(tmp_path / "one.mpg", range(10), codec="mpeg1video")
    second = write_video(tmp_path / "two.mpg", range(10), codec="mpeg1video", size=(80, 96))
    path = tmp_path / "both.mpg"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    frames = open_frames(path)
    with pytest.raises(SequenceError, match=r"both.mpg: frame 1\d is 96 x 80, previous frames are 64 x 48$"):
        for frame in frames:
            assert frame.shape == (48, 64, 3)


def open_error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_frames(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("video: ")
    return line


@pytest.mark.parametrize("content", [b"", b"this is a text file\n" * 50, b"\0" * 5000])
def test_files_that_are_not_videos_are_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert f"{path} cannot be read as a video" in open_error(path)


def test_audio_only_is_rejected(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    assert "a.mp4 has no images" in open_error(tmp_path / "a.mp4")


def test_a_video_without_decodable_frames_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", range(5))
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[start:end] = bytes([255]) * (end - start)
    path.write_bytes(data)
    assert "no frame of" in open_error(path)


def test_other_paths_are_rejected_with_a_hint(tmp_path: Path, video: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    assert "expected a video (.avi, " in open_error(tmp_path / "notes.txt")
    assert f"swin.mp4 does not exist; did you mean {video}?" in open_error(video.parent / "swin.mp4")
    assert open_error(tmp_path / "gone" / "a.mp4").endswith("does not exist")
    assert f"no image in {tmp_path}; expected .bmp, " in open_error(tmp_path)
    assert f"no image in {video.parent}; did you mean {video}?" in open_error(video.parent)


def test_pyav_is_needed_only_for_video_files(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert open_error(video) == f"video: {video} needs PyAV; pip install 'mec-ssl[tracking]'"
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    assert len(open_frames(tmp_path)) == 1


def test_images_in_a_folder_are_sorted_by_number(tmp_path: Path) -> None:
    names = ["frame9.png", "frame10.png", "frame2.png", "frame100.PNG", "frame09b.png", ".frame3.png"]
    for i, name in enumerate(names):
        Image.new("RGB", (16, 12), (gray(i),) * 3).save(tmp_path / name)
    (tmp_path / "frame5.txt").write_text("no image")
    (tmp_path / "frame4.png").mkdir()
    frames: Frames = open_frames(tmp_path)
    assert isinstance(frames, ImageFrames)
    assert [file.name for file in frames.files] == [names[i] for i in (2, 0, 4, 1, 3)]
    assert numbers(frames) == [2, 0, 4, 1, 3]


def test_real_video_matches_its_images(real_data: Path) -> None:
    """The same frames as a video and as images differ only by compression."""
    folder = real_data / "posetrack18" / "videos" / "000001_mpiinew_test"
    if not folder.is_dir():
        pytest.skip(f"no PoseTrack18 at {folder}")
    video_frames, images = open_frames(folder / "000001_mpiinew_test.mp4"), open_frames(folder)
    assert (len(video_frames), len(images)) == (5, 5)
    for frame, image in zip(video_frames, images, strict=True):
        assert frame.shape == image.shape
        assert abs(frame.astype(int) - image).mean() < 5
