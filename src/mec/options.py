"""The options of every command: what each asks of its function, with defaults and help."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mec.parser import Parser, about

if TYPE_CHECKING:
    from mec.evaluate import Result

DATA_HELP = (
    "a folder of pictures (labels: its sub-folders), a .txt list or .csv of path and label, WebDataset shards "
    "(a-{0000..0099}.tar, a folder of them, a URL), .parquet or hf:owner/name, a video, an .npz file, or digits, "
    "cifar10, cifar100, fashion-mnist, stl10"
)
DETECTION_HELP = (
    "a VOCdevkit; or COCO: a folder with annotations/instances_train*.json and instances_val*.json, Roboflow's layout, "
    "or one .json"
)
TRACKING_HELP = {
    "sot": "sequences with a box in every frame: OTB, GOT-10k or LaSOT, or one sequence's folder",
    "vos": "DAVIS 2016 or 2017 (JPEGImages, Annotations), or a folder of that layout",
    "mot": "sequences with boxes: MOTChallenge (SEQUENCE/img1, gt, det), or one sequence's folder",
    "mots": "sequences with masks: MOTSChallenge or KITTI MOTS, or one sequence's folder",
    "pose": "PoseTrack18: a folder with annotations/val/SEQUENCE.json, and the frames they name",
}
SEQUENCES_HELP = {
    "sot": "those to take, such as Couple,Jogging-1; absent: all",
    "vos": "those to take, such as blackswan,dog; absent: the val list, or all where there is none",
    "mot": 'those to take, or patterns, such as "*-FRCNN"; absent: all',
    "mots": 'those to take, or patterns, such as "*-02,*-05"; absent: all',
    "pose": 'those to take, or patterns, such as "*_mpii_test"; absent: all',
}
ENCODER_HELP = (
    "a run folder; a file of weights: MEC's, SimSiam's, MoCo's, Barlow Twins', VICReg's, SwAV's, DINO's, solo-learn's, "
    "lightly's, torchvision's, timm's, detectron2's (FILE:teacher or FILE:student chooses the part); a timm folder or "
    "hf:owner/name; or a timm name (untrained)"
)


def _pretrain_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec pretrain DATA --out RUN [--recipe NAME] [--resume] [any setting of the recipe]"
    parser.description = "Learn an encoder from pictures, without labels."
    parser.epilog = "example: mec pretrain photographs/ --out runs/photographs --epochs 200 --batch_size 256"
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("--out", required=True, help="the run folder; it must not hold another run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest sound checkpoint in the run folder, or begin where there is none",
    )
    parser.add_argument(
        "--probe_every",
        type=int | None,
        help="epochs between two online probes (kNN and linear) where DATA has labels, which training does not see; "
        "0: never; null: ten times in the run, for shards never",
    )
    _recipe_options(parser, arguments)


def _views_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec views DATA --out SHEET.png [--recipe NAME] [any setting of the recipe]"
    parser.description = "Draw pictures of a source and the pairs of views that training would show of them."
    parser.epilog = "example: mec views photographs/ --out sheet.png --image_size 128 --view_2.solarise 0"
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("--out", required=True, help="the file to write, such as sheet.png")
    parser.add_argument("--pictures", type=int, default=8, help="rows")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of views of each picture")
    _recipe_options(parser, arguments)


def _recipe_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.training import Recipe, packaged_recipes

    recipes = ", ".join(packaged_recipes())
    parser.add_argument("--recipe", help=f"settings to start from: {recipes}, or a YAML file; absent: what fits DATA")
    parser.add_class_arguments(Recipe, as_group=False)
    parser.set_defaults(_recipe_defaults(arguments))


def _evaluate_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.description = "Measure an encoder on a downstream task, beside raw pixels and itself untrained."
    tasks = parser.add_subcommands(title="tasks", metavar="TASK", dest="task")
    for name, (summary, example) in TASKS.items():
        task = Parser(
            usage=f"mec evaluate {name} DATA{'' if name in ALONE else ' [DATA ...]'} --encoder ENCODER [options]",
            description=about(task_of(name)) if name in arguments else None,
            epilog=f"example: mec evaluate {name} {example}",
        )
        tasks.add_subcommand(name, task, help=summary)
        if name in arguments and name == "detect":
            _detect_options(task)
        elif name in arguments and name in TRACKING_HELP:
            _tracking_options(task, name)
        elif name in arguments:
            task.add_argument("data", nargs="+", help=f"one or several of: {DATA_HELP}")
            task.add_argument("--encoder", required=True, help=ENCODER_HELP)
            task.add_argument("--out", help="folder whose results.jsonl takes the result; absent: the run folder")
            task.add_function_arguments(task_of(name), as_group=False, skip={"data", "encoder"})


def _detect_options(task: Parser) -> None:
    from mec.evaluate import detect

    task.add_argument("data", nargs="?", help=f"{DETECTION_HELP}; absent: --predict with what is in --out")
    task.add_argument("--encoder", help=ENCODER_HELP)
    task.add_argument(
        "--out", help="folder for the detectors and their figures; absent: detect-SCHEDULE in the run folder"
    )
    task.add_argument("--predict", help="pictures (a folder, a file, a video ...) on which to draw what is found")
    task.add_argument("--threshold", type=float, default=0.5, help="the least score of an object that is drawn")
    task.add_argument("--resume", action="store_true", help="go on with what is in --out, from the newest checkpoint")
    task.add_function_arguments(detect, as_group=False, skip={"data", "encoder", "out", "resume"})


def _tracking_options(task: Parser, name: str) -> None:
    task.add_argument("data", help=TRACKING_HELP[name])
    task.add_argument("--encoder", required=True, help=ENCODER_HELP)
    task.add_argument(
        "--out", help="folder for the tracks and the figures of each sequence; absent: one in the run folder, or none"
    )
    task.add_argument("--resume", action="store_true", help="go on with what is in --out")
    task.add_argument("--sequences", help=SEQUENCES_HELP[name])
    for flag, words in (
        ("corrected", "put right what the published code does otherwise than it means to; absent: published figures"),
        ("motion", "let motion share in the cost of a pair; absent: looks alone, as encoders are compared"),
    ):
        if flag in inspect.signature(task_of(name)).parameters:
            task.add_argument(f"--{flag}", action="store_true", help=words)
    task.add_function_arguments(
        task_of(name), as_group=False, skip={"data", "encoder", "out", "resume", "sequences", "corrected", "motion"}
    )


def listed(names: str | None) -> list[str] | None:
    """NAME,NAME or [NAME,NAME]: as YAML, one name would be no list, and a star would not be what it is in patterns."""
    if names is None:
        return None
    inner = names.strip()
    inner = inner[1:-1] if inner.startswith("[") and inner.endswith("]") else inner
    return [word.strip(" '\"") for word in inner.split(",")]


def _track_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.evaluate import track

    parser.usage = "mec track VIDEO --box X,Y,W,H | --mask FIRST.png [--encoder ENCODER] [options]"
    parser.description = about(track)
    parser.epilog = "example: mec track bird.mp4 --box 210,95,60,48 --encoder runs/birds --out bird-tracked.mp4"
    parser.add_argument("video", help="a video, or a folder of its frames")
    parser.add_argument(
        "--encoder", default="resnet18", help=f"{ENCODER_HELP}; the default, untrained, is enough for a first look"
    )
    parser.add_argument(
        "--box",
        help="left,top,width,height of the object in the first frame, in pixels; --box=-9,... left of its edge",
    )
    parser.add_function_arguments(track, as_group=False, skip={"video", "encoder", "box"})


def _embed_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.evaluate.embed import embed

    parser.usage = "mec embed DATA --encoder ENCODER --out FILE.parquet|FILE.npy [options]"
    parser.description = "Write the features of every picture, with its path and label; a broken-off call goes on."
    parser.epilog = (
        "example: mec embed photographs/ --encoder runs/photographs --out photographs.parquet --near-duplicates"
    )
    parser.add_argument("data", help=DATA_HELP)
    parser.add_argument("--encoder", required=True, help=ENCODER_HELP)
    parser.add_argument(
        "--near_duplicates", action="store_true", help="list and draw pictures that are nearly the same"
    )
    parser.add_argument("--outliers", action="store_true", help="list and draw pictures unlike all others")
    parser.add_function_arguments(embed, as_group=False, skip={"data", "encoder", "near_duplicates", "outliers"})


def _export_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.models.export import export

    parser.usage = "mec export --encoder ENCODER --format FORMAT --out FILE_OR_FOLDER [options]"
    parser.description = "Write an encoder as other libraries read it."
    parser.epilog = "example: mec export --encoder runs/pets --format onnx --out pets.onnx"
    parser.add_argument("--encoder", required=True, help=ENCODER_HELP)
    parser.add_function_arguments(export, as_group=False, skip={"encoder"})


def _demo_options(parser: Parser, arguments: Sequence[str]) -> None:
    from mec.demo import demo

    parser.epilog = "example: mec demo --out demo"
    parser.add_function_arguments(demo, as_group=False)


COMMANDS: dict[str, tuple[str, Callable[[Parser, Sequence[str]], None]]] = {
    "pretrain": ("learn an encoder from pictures, without labels", _pretrain_options),
    "views": ("draw what the network will see, before training", _views_options),
    "evaluate": ("measure an encoder on a downstream task", _evaluate_options),
    "track": ("follow an object through a video, from a box or a mask in its first frame", _track_options),
    "embed": ("write the features of every picture; list near-duplicates and outliers", _embed_options),
    "export": ("write an encoder for timm, torchvision, detectron2, ONNX or Hugging Face", _export_options),
    "demo": ("the whole way on handwritten digits: two minutes, no download", _demo_options),
}
TASKS = {
    "knn": ("weighted nearest neighbours, no training", "cifar10 --encoder runs/cifar10"),
    "linear": ("linear classifier on frozen features", "pets/ birds/ --encoder runs/pets"),
    "few-label": ("1, 5 or 10 labels per class, nearest class mean", "pets/ --encoder runs/pets"),
    "finetune": ("the whole network trained further with some of the labels", "pets/ --encoder runs/pets --labels 10%"),
    "detect": ("objects: boxes and masks, the encoder trained further", "coco/ --encoder runs/pets --out runs/coco"),
    "sot": ("one object followed from its first box, no training", "OTB100/ --encoder runs/pets --tracker both"),
    "vos": ("objects followed from their first masks, no training", "DAVIS/ --encoder runs/pets --render davis.mp4"),
    "mot": ("objects told apart, their boxes given, no training", "MOT17/ --encoder runs/pets --sequences '*-FRCNN'"),
    "mots": ("objects told apart, their masks given, no training", "MOTS/ --encoder runs/pets --out runs/mots"),
    "pose": ("people told apart, their poses given, no training", "posetrack18/ --encoder runs/pets --motion"),
}
ALONE = {"detect", *TRACKING_HELP}
"""Tasks of one DATA."""


def task_of(name: str) -> Callable[..., Result]:
    from mec import evaluate

    task: Callable[..., Result] = getattr(evaluate, name.replace("-", "_"))
    return task


def _recipe_defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """The recipe is the default of every option, so it is read before them, wherever it stands."""
    from mec.training.recipe_files import load_recipe
    from mec.training.run import default_recipe

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    known, rest = first.parse_known_args(list(arguments))
    name = known.recipe
    if name is None and known.resume and known.out and (Path(known.out) / "recipe.yaml").exists():
        name = os.path.join(known.out, "recipe.yaml")
    if name is None:
        name = default_recipe(next((a for a in rest if not a.startswith("-")), ""))
    return load_recipe(name).as_dict()
