"""``mec track``: an object tracked through any video, from a box or a mask in the first frame."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import mec
from mec.cli.main import main
from mec.evaluate.tracking.metrics.propagation import paired_iou
from tests.evaluate.tracking.crossings import FRONT_OBJECT, narrow_encoder, walk
from tests.evaluate.tracking.scenes import Scene

LENGTH = 6
BOX = "--box={:g},{:g},{:g},{:g}"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return walk(LENGTH)


@pytest.fixture(scope="module")
def videos(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scene as frames without leading zeros (bird) and as a video (bird.mp4), and an encoder."""
    root = tmp_path_factory.mktemp("videos")
    (root / "bird").mkdir()
    for t, frame in enumerate(scene.frames):
        Image.fromarray(frame).save(root / "bird" / f"frame {t + 7}.png")
    with av.open(str(root / "bird.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 240, "yuv420p", 8_000_000
        for frame in scene.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    mec.save_encoder(narrow_encoder(), root / "encoder")
    return root


@pytest.fixture
def work(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("bird", "bird.mp4", "encoder"):
        (tmp_path / name).symlink_to(videos / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mask(scene: Scene, work: Path) -> Path:
    """A mask of both objects, as gray levels 1 and 2."""
    labels = scene.visible[0, 0] + 2 * scene.visible[1, 0]
    Image.fromarray(labels.astype(np.uint8)).save(work / "first.png")
    return work / "first.png"


def read_video(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    with av.open(str(path)) as container:
        frame_rate = float(container.streams.video[0].average_rate or 0)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], frame_rate


def changed_pixels(frames: list[NDArray[np.uint8]], scene: Scene) -> list[NDArray[np.bool_]]:
    """Return masks of the pixels that differ much from the scene."""
    return [np.abs(a.astype(int) - b).max(axis=2) > 90 for a, b in zip(frames, scene.frames, strict=True)]


@pytest.mark.parametrize(("video", "frame_rate"), [("bird", 30), ("bird.mp4", 12)])
@pytest.mark.parametrize("tracker", ["dcf", "xcorr"])
def test_box_is_tracked_and_drawn(
    video: str, frame_rate: float, tracker: str, scene: Scene, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = scene.boxes[FRONT_OBJECT]
    command = ["track", video, "--encoder", "encoder", "--tracker", tracker, BOX.format(*truth[0])]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == "bird-tracked.mp4\n"
    assert "encoder of encoder" in captured.err
    boxes = np.loadtxt("bird-tracked.txt", delimiter=",") - (1, 1, 0, 0)
    np.testing.assert_allclose(boxes[0], truth[0])
    assert paired_iou(truth, boxes).min() > 0.7
    frames, written_rate = read_video(Path("bird-tracked.mp4"))
    assert (len(frames), written_rate, frames[0].shape) == (LENGTH, frame_rate, (240, 320, 3))
    for t, pixels in enumerate(changed_pixels(frames, scene)):
        rows, columns = np.nonzero(pixels)
        left, top, width, height = boxes[t]
        assert abs(columns.min() - left) < 4
        assert abs(columns.max() - left - width) < 4
        assert abs(rows.max() - top - height) < 4  # the id is drawn above the box
    assert sorted(p.name for p in work.iterdir()) == [
        "bird", "bird-tracked.mp4", "bird-tracked.txt", "bird.mp4", "encoder",
    ]  # fmt: skip


def test_masks_are_tracked_and_drawn(scene: Scene, work: Path, mask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = work / "new folder" / "both birds.mp4"
    assert main(["track", "bird.mp4", "--encoder", "encoder", "--mask", "first.png", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    files = sorted((work / "new folder" / "both birds").iterdir())
    assert [file.name for file in files] == [f"{t:05}.png" for t in range(LENGTH)]
    labels = [np.asarray(Image.open(file)) for file in files]
    np.testing.assert_array_equal(labels[0], np.asarray(Image.open(mask)))
    overlap, baseline = np.array([
        [(truth & mask).sum() / (truth | mask).sum() for mask in (predicted == i, labels[0] == i)]
        for i in (1, 2)
        for truth, predicted in zip(scene.visible[i - 1, 1:], labels[1:], strict=True)
    ]).mean(axis=0)  # fmt: skip
    assert overlap > 0.5 > baseline + 0.2
    frames, frame_rate = read_video(out)
    assert (len(frames), frame_rate) == (LENGTH, 12)


def test_input_is_never_overwritten(work: Path, mask: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(p.name for p in (work / "bird").iterdir())
    for video, options, message in (
        (
            "bird",
            ("--mask", "first.png", "--out", "bird.mp4"),
            "out: the folder of the masks, bird, already exists",
        ),
        ("bird.mp4", ("--box", "9,9,20,20", "--out", "bird.mp4"), "out: bird.mp4 is the video itself"),
        ("bird.mp4", ("--box", "9,9,20,20", "--out", "../{}/bird.mp4"), "out: .*bird.mp4 is the video itself"),
    ):
        options = tuple(option.replace("{}", work.name) for option in options)
        assert main(["track", video, "--encoder", "encoder", *options]) == 2
        assert re.fullmatch(f"mec: {message}\n", capsys.readouterr().err)
    assert sorted(p.name for p in (work / "bird").iterdir()) == before


EXPECTED = "expected left,top,width,height in pixels, such as 210,95,60,48, got"
INVALID = [
    (("bird",), "box, mask: expected one of them, for the object in the first frame"),
    (("bird", "--box", "1,2,3,4", "--mask", "first.png"), "box, mask: expected one of them, .*"),
    (("bird", "--box", "1,2,3"), f"box: {EXPECTED} 1,2,3"),
    (("bird", "--box", "1,2,3,nan"), f"box: {EXPECTED} 1,2,3,nan"),
    (("bird", "--box", "1,2,0,4"), f"box: {EXPECTED} 1,2,0,4"),
    (("bird", "--box", "a,b,c,d"), f"box: {EXPECTED} a,b,c,d"),
    (("bird", "--box", "400,2,30,40"), r".*the box 400, 2, 30, 40 is not within the first frame \(320 x 240\)"),
    (("bird", "--box", "1,2,3,4", "--tracker", "kcf"), "tracker: expected dcf or xcorr, got 'kcf'"),
    (("bird", "--box", "1,2,3,4", "--stage", "s2"), "stage: expected s3 or s4, got 's2'"),
    (("bird", "--box", "1,2,3,4", "--out", "video.avi"), "out: expected a file ending in .mp4, got video.avi"),
    (("bird", "--mask", "first"), "mask: first does not exist"),
    (("bird", "--mask", "bird"), "mask: bird is not a file"),
    (("bird", "--mask", "small.png"), "mask: small.png: 32 x 24 pixels, expected 320 x 240 .*"),
    (("bird", "--mask", "black.png"), "mask: black.png: no object .*"),
    (("bird", "--mask", "bird.mp4"), "mask: bird.mp4: not a PNG"),
    (("brd", "--box", "1,2,3,4"), "video: brd does not exist; did you mean bird.?"),
    (("encoder", "--box", "1,2,3,4"), "video: no image in encoder; expected .*"),
    (("small.png", "--box", "1,2,3,4"), "video: expected a video .* or a folder of images, got small.png"),
    (("bad.mp4", "--box", "1,2,3,4"), "video: bad.mp4 cannot be read as a video .*"),
]


@pytest.mark.parametrize(("arguments", "message"), INVALID, ids=[" ".join(arguments) for arguments, _ in INVALID])
def test_invalid_arguments_give_one_line_and_no_files(
    arguments: tuple[str, ...], message: str, work: Path, mask: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (32, 24), 255).save("small.png")
    Image.new("L", (320, 240)).save("black.png")
    Path("bad.mp4").write_bytes(b"data" * 99)
    before = sorted(p.name for p in work.iterdir())
    assert main(["track", *arguments, "--encoder", "encoder"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *log, line = captured.err.splitlines()
    assert re.fullmatch(f"mec: {message}", line)
    assert set(log) <= {"video: 6 frames of bird, 30 per second", "encoder: encoder of encoder, s3, stride 8"}
    assert sorted(p.name for p in work.iterdir()) == before


def test_failed_tracking_leaves_no_files(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "corrupt").mkdir()
    for file in (work / "bird").iterdir():
        (work / "corrupt" / file.name).write_bytes(file.read_bytes())
    (work / "corrupt" / "frame 9.png").write_bytes((work / "corrupt" / "frame 9.png").read_bytes()[:5000])
    before = sorted(p.name for p in work.iterdir())
    assert main(["track", "corrupt", "--encoder", "encoder", "--box", "9,9,90,90"]) == 2
    assert re.match(r"mec: video: corrupt/frame 9.png: ", capsys.readouterr().err.splitlines()[-1])
    assert sorted(p.name for p in work.iterdir()) == before
