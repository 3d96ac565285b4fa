import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.data import open_dataset, read_image
from mec.data.dataset import FileDataset, ImageDataset
from mec.errors import InputError

av = pytest.importorskip("av")
FRAMES, FPS = 90, 30


def brightness(frame: int) -> int:
    return 20 + 2 * frame


def write_video(path: Path, frames: Iterable[int] = range(FRAMES), fps: int = FPS, codec: str = "libx264") -> Path:
    """Write a video of 64 x 48 pixels; the brightness of a frame encodes its number.

    A little noise keeps the packets from being empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    # write the index first, so that a truncated file can still be opened
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for i in frames:
            pixels = (brightness(i) + noise.integers(-15, 16, (48, 64, 3))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def frames_of(dataset: ImageDataset) -> list[float]:
    """Return frame numbers, decoded from the brightness; codecs change it by less than the step between frames."""
    return [(float(read_image(dataset, i).mean()) - brightness(0)) / 2 for i in range(len(dataset))]


def about(frames: Iterable[int]) -> object:
    return pytest.approx(list(frames), abs=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "swim.mp4")


@pytest.mark.parametrize(
    ("frame_stride", "expected"),
    [(None, [0, 30, 60]), (10, list(range(0, 90, 10))), (1, list(range(90))), (89, [0, 89]), (1000, [0])],
)
def test_frame_stride_keeps_every_nth_frame(video: Path, frame_stride: int | None, expected: list[int]) -> None:
    dataset = open_dataset(video, frame_stride=frame_stride)
    assert isinstance(dataset, FileDataset)
    assert dataset.labels is None
    assert read_image(dataset, 0).shape == (48, 64, 3)
    assert frames_of(dataset) == about(expected)
    assert frames_of(open_dataset(video, subsample=2, frame_stride=frame_stride)) == about(expected[::2])


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.AVI", "mpeg4"), ("a.webm", "libvpx")])
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name.lower(), range(0, 90, 3), 10, codec).rename(tmp_path / name)
    assert len(open_dataset(path)) == 3
    assert frames_of(open_dataset(path, frame_stride=5)) == about(range(0, 90, 15))


def test_subfolders_of_videos_are_classes(tmp_path: Path) -> None:
    write_video(tmp_path / "swim" / "deep" / "a.mp4", range(0, 60))
    write_video(tmp_path / "run" / "a.mp4", range(30, 90))
    write_video(tmp_path / "run" / "b.mp4", range(60, 90))
    (tmp_path / "run" / "notes.txt").write_text("no video")
    (tmp_path / ".thumbnails").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / ".thumbnails" / "a.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ["run", "swim"]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert frames_of(dataset) == about([30, 60, 60, 0, 30])
    assert len(open_dataset(tmp_path, "test")) == 2
    write_video(tmp_path / "c.mp4", range(30))
    assert open_dataset(tmp_path).labels is None
    assert len(open_dataset(tmp_path)) == 6


def test_links_to_videos_are_followed(tmp_path: Path, video: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "swim").symlink_to(video.parent)
    (tmp_path / "videos" / "gone.mp4").symlink_to(tmp_path / "absent.mp4")
    dataset = open_dataset(tmp_path / "videos")
    assert frames_of(dataset) == about([0, 30, 60])
    assert (dataset.classes, sum(map(len, dataset.skipped.values()))) == (["swim"], 1)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4")])
def test_truncated_video_gives_the_frames_before_the_end(tmp_path: Path, name: str, codec: str) -> None:
    path = write_video(tmp_path / name, codec=codec)
    os.truncate(path, path.stat().st_size * 7 // 10)
    dataset = open_dataset(path, frame_stride=1)
    assert 20 < len(dataset) < 80
    # the last frame may be incomplete
    assert frames_of(dataset)[:-1] == about(range(len(dataset) - 1))
    assert sum(map(len, dataset.skipped.values())) == 0


def test_damaged_packet_affects_only_its_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][40]
        start, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes([255] * size)
    path.write_bytes(data)
    assert len(open_dataset(path, frame_stride=1)) > 80


def test_folder_of_videos_with_its_own_splits(tmp_path: Path, video: Path) -> None:
    for name in ("train/run/a.mp4", "train/swim/b.mp4", "val/swim/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(video)
    train, test = (open_dataset(tmp_path, split, frame_stride=45) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)
    assert train.classes == test.classes == ["run", "swim"]
    assert test.labels.tolist() == [1, 1]


def write_sound(path: Path) -> None:
    """Write a video file that has an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())


@pytest.mark.parametrize("write", [Path.touch, lambda path: path.write_text("no video\n" * 50), write_sound])
def test_unreadable_videos_are_ignored(tmp_path: Path, write: Callable[[Path], object]) -> None:
    write(tmp_path / "a.mp4")
    for path in (tmp_path / "a.mp4", tmp_path):
        with pytest.raises(InputError, match=r"^data: cannot read any frame of "):
            open_dataset(path)
    write_video(tmp_path / "b.mp4")
    dataset = open_dataset(tmp_path)
    assert (frames_of(dataset), sum(map(len, dataset.skipped.values()))) == (about([0, 30, 60]), 1)


def test_frames_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, home = write_video(tmp_path / "a.mp4"), Path(os.environ["MEC_DATA"])
    (tmp_path / "b.mp4").write_text("no video")
    first = open_dataset(tmp_path, frame_stride=30)
    assert len(list(home.rglob("*.jpg"))) == 3
    with monkeypatch.context() as patch:
        patch.setattr(av, "open", fail_to_decode)
        again = open_dataset(tmp_path, frame_stride=30)
        assert [again.load(i) for i in range(3)] == [first.load(i) for i in range(3)]
        assert sum(map(len, again.skipped.values())) == 1
        with pytest.raises(AssertionError, match="decoded again"):
            open_dataset(tmp_path, frame_stride=45)
    write_video(path, range(40, 70))
    assert frames_of(open_dataset(path, frame_stride=30)) == about([40])
    assert not [f for f in (home / "frames").iterdir() if f.name.startswith(".")]


def fail_to_decode(*_: object, **__: object) -> None:
    raise AssertionError("decoded again")


def test_frame_stride_without_a_video_is_an_input_error(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    for data in ("digits", tmp_path, tmp_path / "a.jpg"):
        with pytest.raises(InputError, match=r"^frame_stride: expected a video or a folder of videos"):
            open_dataset(data, frame_stride=2)
    with pytest.raises(InputError, match=r"^data: .*absent\.mp4 does not exist"):
        open_dataset(tmp_path / "absent.mp4", frame_stride=2)
    for options in ({"subsample": 0}, {"frame_stride": -1}):
        with pytest.raises(InputError, match=rf"^{next(iter(options))}: expected at least 1"):
            open_dataset("digits", **options)
