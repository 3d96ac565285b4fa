"""Commands of ``mec`` but evaluate and those that take a recipe: each adds options and returns the function to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mec.cli.parser import DATA_HELP, ENCODER_HELP, Parser, Run, add_settings, description_of
from mec.errors import InputError


def add_inspect(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.inspection import inspect

    parser.describe("DATA [--max_images N] [--labels_csv CSV]", description_of(inspect), "photographs/")
    parser.add_argument_group("images").add_argument("data", help=DATA_HELP)
    add_settings(parser, "reading", inspect, {"data"})

    def run(data: str, **options: Any) -> str:
        from mec.cli.evaluate import annotated_tasks

        inspection = inspect(data, **options)
        tasks = [f"annotations for mec evaluate {task}: {text}" for task, text in annotated_tasks(data).items()]
        return "\n".join([str(inspection), *tasks])

    return run


def add_track(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.evaluate import track

    parser.describe(
        "VIDEO --box X,Y,W,H | --mask FIRST.png [--encoder ENCODER] [options]",
        description_of(track),
        "bird.mp4 --box 210,95,60,48 --encoder runs/birds --out bird-tracked.mp4",
    )
    required = parser.add_argument_group("video and encoder")
    required.add_argument("video", help="a video, or a folder of frames")
    required.add_argument(
        "--encoder", default="resnet18", help=f"{ENCODER_HELP}; the default is untrained, enough for a first try"
    )
    required.add_argument(
        "--box",
        help="left,top,width,height of the object in the first frame, in pixels; --box=-9,... for a negative left",
    )
    add_settings(parser, "tracker", track, {"video", "encoder", "box"})
    return track


def add_embed(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.embedding.embed import embed

    parser.describe(
        "DATA --encoder ENCODER --out FILE.parquet|FILE.npy [options]",
        "Write the embedding of every image with its path and label. Rerun to resume.",
        "photographs/ --encoder runs/photographs --out photographs.parquet --near-duplicates",
    )
    required = parser.add_argument_group("images and encoder")
    required.add_argument("data", help=DATA_HELP)
    required.add_argument("--encoder", required=True, help=ENCODER_HELP)
    lists = parser.add_argument_group("lists")
    lists.add_argument("--near_duplicates", action="store_true", help="list and draw pairs of nearly equal images")
    lists.add_argument("--outliers", action="store_true", help="list and draw images far from all others")
    add_settings(parser, "embeddings", embed, {"data", "encoder", "near_duplicates", "outliers"})
    return embed


def add_classify(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.classification import classify

    parser.describe(
        "LABELED UNLABELED --encoder ENCODER --out LABELS.csv [options]",
        description_of(classify),
        "labeled/ photographs/ --encoder runs/adapted --out labels.csv",
    )
    group = parser.add_argument_group("images and encoder")
    group.add_argument(
        "labeled",
        help="the labeled images: a folder with a sub-folder per class, a .csv with path and label, or another labeled "
        "dataset; or a classifier that --save has written, FILE.safetensors",
    )
    group.add_argument("unlabeled", help=f"the images to label: {DATA_HELP}")
    group.add_argument("--encoder", required=True, help=ENCODER_HELP)
    add_settings(parser, "labels", classify, {"labeled", "unlabeled", "encoder"})

    def run(**options: Any) -> Path:
        return classify(**options).file

    return run


def add_export(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.models.export import export

    parser.describe(
        "--encoder ENCODER --format FORMAT --out FILE_OR_FOLDER [options]",
        "Export an encoder for another library.",
        "--encoder runs/pets --format onnx --out pets.onnx",
    )
    parser.add_argument_group("encoder").add_argument("--encoder", required=True, help=ENCODER_HELP)
    group = add_settings(parser, "output", export, {"encoder", "head"})
    group.add_argument(
        "--head",
        help="a classifier that mec classify --save wrote, for format onnx: the network then returns class "
        "probabilities, and its metadata hold the names of the classes; absent: it returns features",
    )
    return export


def add_report(parser: Parser, arguments: Sequence[str]) -> Run:
    parser.describe(
        "RUN [RUN ...] [--out REPORT.html] [--data DATA] [--watch]",
        "Write one HTML page about one or several runs: results, learned features, training curves, settings.",
        "runs/pets runs/other --out pets.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders with a results.jsonl")
    parser.add_argument("--out", help="file to write; absent: report.html in the first run folder")
    parser.add_argument("--data", help=f"images to show; absent: those of the run; {DATA_HELP}")
    parser.add_argument("--images", type=int, default=1000, help="images on the t-SNE maps, divided among the runs")
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on localhost and update it while a run trains"
    )
    parser.add_argument("--port", type=int | None, help="port of --watch; absent: the first free one from 8765")

    def run(runs: list[str], out: str | None, watch: bool, port: int | None, **settings: Any) -> Path | None:
        from mec.report import write_report
        from mec.report.watch import watch as serve

        if watch and out is not None:
            raise InputError("out: expected none with --watch, which serves the page and writes no file")
        if port is not None and not watch:
            raise InputError("port: expected --watch with it, which serves the page")
        if not watch:
            return write_report(runs, out, **settings)
        serve(runs, port=port, **settings)
        return None

    return run


def add_demo(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.demo import demo

    parser.describe("[--out FOLDER] [--epochs N] [--seed N]", description_of(demo), "--out demo")
    add_settings(parser, "run", demo)
    return demo


def add_doctor(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.cli.doctor import doctor

    parser.describe(
        "[FOLDER]",
        "Print versions, devices, decoder speed and disk of this machine, and what would be slow on it.",
        "photographs/",
    )
    folder_help = "folder of images or runs whose disk is checked; absent: the current one"
    parser.add_argument("folder", nargs="?", default=".", help=folder_help)
    return doctor
