"""Options of every command, with defaults and help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mec.cli.evaluate_options import evaluate_options
from mec.cli.parser import DATA_HELP, ENCODER_HELP, MACHINE, Parser, add_settings, description_of

RECIPE_GROUPS = {
    "images and views": {
        "channels",
        "background",
        "subsample",
        "frame_stride",
        "max_corrupt",
        "views",
        "image_size",
    },
    "network": {"backbone", "backbone_options", "small_stem"},
    "training": {"epochs", "batch_size", "chunk_size", "gradient_checkpointing", "seed", "log_every"},
    "machine": set(MACHINE),
}
"""Help groups of the settings on the top level of the recipe. Each nested one, such as objective, is its own group."""


def _pretrain_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec pretrain DATA --out RUN [--recipe NAME] [--resume] [any setting of the recipe]"
    parser.description = "Pretrain an encoder on images, without labels."
    parser.epilog = (
        "example: mec pretrain photographs/ --out runs/photographs --epochs 200 --batch_size 256\n"
        "resume: mec pretrain photographs/ --out runs/photographs --resume"
    )
    run = parser.add_argument_group("run")
    run.add_argument("data", help=DATA_HELP)
    run.add_argument("--out", required=True, help="run folder; must not hold another run")
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest intact checkpoint of the run folder, or start if there is none",
    )
    run.add_argument(
        "--probe_every",
        type=int | None,
        help="epochs between two online probes (kNN and linear), where DATA has labels; training does not use them. "
        "0: never; absent: ten times in the run, for shards never",
    )
    _recipe_options(parser, run, arguments)


def _views_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec views DATA --out VIEWS.png [--recipe NAME] [any setting of the recipe]"
    parser.description = "Draw a contact sheet: images of a dataset and the augmented views that training would use."
    parser.epilog = "example: mec views photographs/ --out views.png --image_size 128 --view_2.solarize 0"
    sheet = parser.add_argument_group("contact sheet")
    sheet.add_argument("data", help=DATA_HELP)
    sheet.add_argument("--out", required=True, help="file to write, such as views.png")
    sheet.add_argument("--images", type=int, default=8, help="number of rows")
    sheet.add_argument("--pairs", type=int, default=6, help="pairs of views per image")
    _recipe_options(parser, sheet, arguments)


def _recipe_options(parser: Parser, group: argparse._ArgumentGroup, arguments: Sequence[str]) -> None:
    from mec.pretraining import Recipe, packaged_recipes

    recipes = ", ".join(packaged_recipes())
    group.add_argument("--recipe", help=f"packaged settings: {recipes}, or a YAML file; absent: chosen for DATA")
    names = {field.name for field in fields(Recipe)}
    for title, members in RECIPE_GROUPS.items():
        parser.add_argument_group(title).add_class_arguments(Recipe, as_group=False, skip=names - members)
    parser.add_class_arguments(Recipe, as_group=False, skip=set().union(*RECIPE_GROUPS.values()) & names)
    for action in parser._actions:
        if action.dest in (
            parser.groups or {}
        ):  # hide --objective FILE of jsonargparse: --recipe is the one way to read a file
            action.help = argparse.SUPPRESS
    parser.set_defaults(_recipe_defaults(parser, arguments))


def _track_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.evaluate import track

    parser.usage = "mec track VIDEO --box X,Y,W,H | --mask FIRST.png [--encoder ENCODER] [options]"
    parser.description = description_of(track)
    parser.epilog = "example: mec track bird.mp4 --box 210,95,60,48 --encoder runs/birds --out bird-tracked.mp4"
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


def _embed_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.embedding.embed import embed

    parser.usage = "mec embed DATA --encoder ENCODER --out FILE.parquet|FILE.npy [options]"
    parser.description = "Write the embedding of every image with its path and label. Rerun to resume."
    parser.epilog = (
        "example: mec embed photographs/ --encoder runs/photographs --out photographs.parquet --near-duplicates"
    )
    required = parser.add_argument_group("images and encoder")
    required.add_argument("data", help=DATA_HELP)
    required.add_argument("--encoder", required=True, help=ENCODER_HELP)
    lists = parser.add_argument_group("lists")
    lists.add_argument("--near_duplicates", action="store_true", help="list and draw pairs of nearly equal images")
    lists.add_argument("--outliers", action="store_true", help="list and draw images far from all others")
    add_settings(parser, "embeddings", embed, {"data", "encoder", "near_duplicates", "outliers"})


def _export_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.models.export.export import export

    parser.usage = "mec export --encoder ENCODER --format FORMAT --out FILE_OR_FOLDER [options]"
    parser.description = "Export an encoder for another library."
    parser.epilog = "example: mec export --encoder runs/pets --format onnx --out pets.onnx"
    parser.add_argument_group("encoder").add_argument("--encoder", required=True, help=ENCODER_HELP)
    add_settings(parser, "output", export, {"encoder"})


def _report_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec report RUN [RUN ...] [--out REPORT.html] [--data DATA] [--watch]"
    parser.description = (
        "Write one HTML page about one or several runs: settings, training curves, learned features, results."
    )
    parser.epilog = "example: mec report runs/pets runs/other --out pets.html"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders with a results.jsonl")
    parser.add_argument("--out", help="file to write; absent: report.html in the first run folder")
    parser.add_argument("--data", help=f"images to show; absent: those of the run; {DATA_HELP}")
    parser.add_argument("--images", type=int, default=1000, help="images on the t-SNE maps, divided among the runs")
    parser.add_argument(
        "--watch", action="store_true", help="serve the page on localhost and update it while a run trains"
    )
    parser.add_argument("--port", type=int | None, help="port of --watch; absent: the first free one from 8765")


def _demo_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.demo import demo

    parser.usage = "mec demo [--out FOLDER] [--epochs N] [--seed N]"
    parser.description = description_of(demo)
    parser.epilog = "example: mec demo --out demo"
    add_settings(parser, "run", demo)


def _doctor_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec doctor [FOLDER]"
    parser.description = (
        "Print versions, devices, decoder speed and disk of this machine, and what would be slow on it."
    )
    parser.epilog = "example: mec doctor photographs/"
    parser.add_argument(
        "folder", nargs="?", default=".", help="folder of images or runs whose disk is checked; absent: the current one"
    )


def _completion_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.cli.completion import SCRIPT_PATHS

    lines = "\n".join(f"  mec completion {shell} > {place}" for shell, place in SCRIPT_PATHS.items())
    parser.usage = "mec completion SHELL"
    parser.description = (
        "Print a script for tab completion of commands, tasks, options, choices and file names.\n"
        f"Install it once, and again after an update of mec; new terminals load it:\n\n{lines}"
    )
    parser.add_argument("shell", choices=list(SCRIPT_PATHS), help="shell of your terminal (echo $SHELL)")


COMMANDS: dict[str, tuple[str, Callable[[Parser, Sequence[str]], None]]] = {
    "demo": ("pretrain and evaluate on handwritten digits: two minutes, no download", _demo_options),
    "views": ("draw the augmented views of some images before training", _views_options),
    "pretrain": ("pretrain an encoder on images, without labels", _pretrain_options),
    "report": ("write one HTML page about runs: settings, curves, features, results", _report_options),
    "evaluate": ("evaluate an encoder on a downstream task", evaluate_options),
    "track": ("track an object through a video, from a box or a mask in the first frame", _track_options),
    "embed": ("write the embedding of every image; list near-duplicates and outliers", _embed_options),
    "export": ("export an encoder to timm, torchvision, detectron2, ONNX or Hugging Face", _export_options),
    "doctor": ("print versions, devices, decoder speed and disk, and what would be slow", _doctor_options),
    "completion": ("print a script for tab completion in bash, zsh or fish", _completion_options),
}


def _recipe_defaults(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """Read the recipe regardless of option order: its settings are the defaults of all other options."""
    from mec.pretraining.recipe_files import load_recipe
    from mec.pretraining.run import default_recipe

    recipe_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    recipe_parser.add_argument("--recipe")
    recipe_parser.add_argument("--out")
    recipe_parser.add_argument("--resume", action="store_true")
    try:
        known, rest = recipe_parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        parser.error(str(error))
    name = known.recipe
    if name is None and known.resume and known.out and (Path(known.out) / "recipe.yaml").exists():
        name = os.path.join(known.out, "recipe.yaml")
    if name is None:
        name = default_recipe(_find_data(parser, rest))
    return load_recipe(name).as_dict()


def _find_data(parser: Parser, arguments: Sequence[str]) -> str:
    """Return the argument that is neither an option nor the value of one."""
    takes_value = {name for a in parser._actions if a.nargs != 0 for name in a.option_strings}
    values = {i + 1 for i, a in enumerate(arguments) if a in takes_value}
    return next((a for i, a in enumerate(arguments) if i not in values and not a.startswith("-")), "")
