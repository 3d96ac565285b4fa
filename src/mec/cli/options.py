"""The options of every command: what each asks of its function, with defaults and help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mec.cli.evaluate_options import evaluate_options
from mec.cli.parser import DATA_HELP, ENCODER_HELP, MACHINE, Parser, about, add_settings

RECIPE_GROUPS = {
    "the images and their views": {
        "channels",
        "background",
        "subsample",
        "frame_stride",
        "max_corrupt",
        "views",
        "image_size",
    },
    "the network": {"backbone", "backbone_options", "small_stem"},
    "the training": {"epochs", "batch_size", "chunk_size", "gradient_checkpointing", "seed", "log_every"},
    "the machine": set(MACHINE),
}
"""The settings of a recipe that are of no component; a component is a group of its own."""


def _pretrain_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec pretrain DATA --out RUN [--recipe NAME] [--resume] [any setting of the recipe]"
    parser.description = "Learn an encoder from images, without labels."
    parser.epilog = (
        "example: mec pretrain photographs/ --out runs/photographs --epochs 200 --batch_size 256\n"
        "stopped? mec pretrain photographs/ --out runs/photographs --resume"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("data", help=DATA_HELP)
    run.add_argument("--out", required=True, help="the run folder; it must not hold another run")
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest sound checkpoint in the run folder, or begin where there is none",
    )
    run.add_argument(
        "--probe_every",
        type=int | None,
        help="epochs between two online probes (kNN and linear) where DATA has labels, which training does not see; "
        "0: never; null: ten times in the run, for shards never",
    )
    _recipe_options(parser, run, arguments)


def _views_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec views DATA --out SHEET.png [--recipe NAME] [any setting of the recipe]"
    parser.description = "Draw images of a source and the pairs of views that training would show of them."
    parser.epilog = "example: mec views photographs/ --out sheet.png --image_size 128 --view_2.solarize 0"
    sheet = parser.add_argument_group("the sheet")
    sheet.add_argument("data", help=DATA_HELP)
    sheet.add_argument("--out", required=True, help="the file to write, such as sheet.png")
    sheet.add_argument("--images", type=int, default=8, help="rows")
    sheet.add_argument("--pairs", type=int, default=6, help="pairs of views of each image")
    _recipe_options(parser, sheet, arguments)


def _recipe_options(parser: Parser, group: argparse._ArgumentGroup, arguments: Sequence[str]) -> None:
    from mec.pretraining import Recipe, packaged_recipes

    recipes = ", ".join(packaged_recipes())
    group.add_argument("--recipe", help=f"settings to start from: {recipes}, or a YAML file; absent: what fits DATA")
    names = {field.name for field in fields(Recipe)}
    for title, members in RECIPE_GROUPS.items():
        parser.add_argument_group(title).add_class_arguments(Recipe, as_group=False, skip=names - members)
    parser.add_class_arguments(Recipe, as_group=False, skip=set().union(*RECIPE_GROUPS.values()) & names)
    for action in parser._actions:
        if action.dest in (parser.groups or {}):  # --objective FILE: jsonargparse's, beside --recipe one way too many
            action.help = argparse.SUPPRESS
    parser.set_defaults(_recipe_defaults(parser, arguments))


def _track_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.evaluate import track

    parser.usage = "mec track VIDEO --box X,Y,W,H | --mask FIRST.png [--encoder ENCODER] [options]"
    parser.description = about(track)
    parser.epilog = "example: mec track bird.mp4 --box 210,95,60,48 --encoder runs/birds --out bird-tracked.mp4"
    needed = parser.add_argument_group("the video and the encoder")
    needed.add_argument("video", help="a video, or a folder of its frames")
    needed.add_argument(
        "--encoder", default="resnet18", help=f"{ENCODER_HELP}; the default, untrained, is enough for a first look"
    )
    needed.add_argument(
        "--box",
        help="left,top,width,height of the object in the first frame, in pixels; --box=-9,... left of its edge",
    )
    add_settings(parser, "the tracker", track, {"video", "encoder", "box"})


def _embed_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.embedding.embed import embed

    parser.usage = "mec embed DATA --encoder ENCODER --out FILE.parquet|FILE.npy [options]"
    parser.description = "Write the features of every image, with its path and label; a broken-off call goes on."
    parser.epilog = (
        "example: mec embed photographs/ --encoder runs/photographs --out photographs.parquet --near-duplicates"
    )
    needed = parser.add_argument_group("the images and the encoder")
    needed.add_argument("data", help=DATA_HELP)
    needed.add_argument("--encoder", required=True, help=ENCODER_HELP)
    lists = parser.add_argument_group("lists to look through")
    lists.add_argument("--near_duplicates", action="store_true", help="list and draw images that are nearly the same")
    lists.add_argument("--outliers", action="store_true", help="list and draw images unlike all others")
    add_settings(parser, "the embeddings", embed, {"data", "encoder", "near_duplicates", "outliers"})


def _export_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.models.export.export import export

    parser.usage = "mec export --encoder ENCODER --format FORMAT --out FILE_OR_FOLDER [options]"
    parser.description = "Write an encoder as other libraries read it."
    parser.epilog = "example: mec export --encoder runs/pets --format onnx --out pets.onnx"
    parser.add_argument_group("the encoder").add_argument("--encoder", required=True, help=ENCODER_HELP)
    add_settings(parser, "what is written", export, {"encoder"})


def _report_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec report RUN [RUN ...] [--out REPORT.html] [--data DATA] [--watch]"
    parser.description = (
        "Write one HTML page: what was run, is it learning, what has it learned, how good is it; runs side by side."
    )
    parser.epilog = "example: mec report runs/pets runs/other --out pets.html"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders; of results.jsonl alone, too")
    parser.add_argument("--out", help="the page; absent: report.html in the first run folder")
    parser.add_argument("--data", help=f"images to show; absent: those the run has learned from; {DATA_HELP}")
    parser.add_argument("--images", type=int, default=1000, help="on the maps, divided among the runs")
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on this machine alone, and follow a run as it trains"
    )
    parser.add_argument("--port", type=int | None, help="of --watch; absent: the first free one from 8765 on")


def _demo_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.demo import demo

    parser.usage = "mec demo [--out FOLDER] [--epochs N] [--seed N]"
    parser.description = about(demo)
    parser.epilog = "example: mec demo --out demo"
    add_settings(parser, "the run", demo)


def _doctor_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.cli.doctor import doctor

    parser.usage = "mec doctor [FOLDER]"
    parser.description = about(doctor)
    parser.epilog = "example: mec doctor photographs/"
    parser.add_argument("folder", nargs="?", default=".", help="of images or of runs: its disk; absent: this one")


def _completion_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.cli.completion import PLACES

    lines = "\n".join(f"  mec completion {shell} > {place}" for shell, place in PLACES.items())
    parser.usage = "mec completion SHELL"
    parser.description = (
        "Print a script with which the Tab key completes commands, tasks, options, choices and file names.\n"
        f"Make it once, and again after an update of mec; terminals that are opened then have it:\n\n{lines}"
    )
    parser.add_argument("shell", choices=list(PLACES), help="the shell of your terminal: echo $SHELL")


COMMANDS: dict[str, tuple[str, Callable[[Parser, Sequence[str]], None]]] = {
    "demo": ("the whole way on handwritten digits: two minutes, no download", _demo_options),
    "views": ("draw what the network will see, before training", _views_options),
    "pretrain": ("learn an encoder from images, without labels", _pretrain_options),
    "report": ("one HTML page of runs: what was run, what they learned, how good they are", _report_options),
    "evaluate": ("measure an encoder on a downstream task", evaluate_options),
    "track": ("follow an object through a video, from a box or a mask in its first frame", _track_options),
    "embed": ("write the features of every image; list near-duplicates and outliers", _embed_options),
    "export": ("write an encoder for timm, torchvision, detectron2, ONNX or Hugging Face", _export_options),
    "doctor": ("versions, devices, decoder, disk, and what would be slow: for bug reports", _doctor_options),
    "completion": ("a script with which the Tab key completes commands, options and files", _completion_options),
}


def _recipe_defaults(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """The recipe is the default of every option, so it is read before them, wherever it stands."""
    from mec.pretraining.recipe_files import load_recipe
    from mec.pretraining.run import default_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe")
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    try:
        known, rest = first.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        parser.error(str(error))
    name = known.recipe
    if name is None and known.resume and known.out and (Path(known.out) / "recipe.yaml").exists():
        name = os.path.join(known.out, "recipe.yaml")
    if name is None:
        name = default_recipe(_data(parser, rest))
    return load_recipe(name).as_dict()


def _data(parser: Parser, arguments: Sequence[str]) -> str:
    """The argument that is neither an option nor an option's value."""
    takes_value = {name for a in parser._actions if a.nargs != 0 for name in a.option_strings}
    values = {i + 1 for i, a in enumerate(arguments) if a in takes_value}
    return next((a for i, a in enumerate(arguments) if i not in values and not a.startswith("-")), "")
