"""The options of ``mec evaluate``, a sub-command a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mec.cli.parser import DATA_HELP, ENCODER_HELP, Parser, about, add_settings

if TYPE_CHECKING:
    from mec.evaluate import Result

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
TASKS = {
    "knn": ("weighted nearest neighbors, no training", "cifar10 --encoder runs/cifar10"),
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


def evaluate_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec evaluate TASK DATA --encoder ENCODER [options]"
    parser.description = "Measure an encoder on a downstream task, beside raw pixels and itself untrained."
    parser.epilog = "example: mec evaluate knn digits --encoder runs/digits\nmec evaluate TASK --help tells more"
    tasks = parser.add_subcommands(title="tasks", metavar="TASK", dest="task", description=None)
    for name, (summary, example) in TASKS.items():
        task = Parser(
            usage=f"mec evaluate {name} DATA{'' if name in ALONE else ' [DATA ...]'} --encoder ENCODER [options]",
            description=about(task_of(name)) if name in arguments else None,
            epilog=f"example: mec evaluate {name} {example}",
        )
        tasks.add_subcommand(name, task, help=summary)
        task.prog = f"mec evaluate {name}"
        if name in arguments and name == "detect":
            _detect_options(task)
        elif name in arguments and name in TRACKING_HELP:
            _tracking_options(task, name)
        elif name in arguments:
            needed = task.add_argument_group("the images and the encoder")
            needed.add_argument("data", nargs="+", help=f"one or several of: {DATA_HELP}")
            needed.add_argument("--encoder", required=True, help=ENCODER_HELP)
            needed.add_argument("--out", help="folder whose results.jsonl takes the result; absent: the run folder")
            add_settings(task, "the protocol", task_of(name), {"data", "encoder"})


def _detect_options(task: Parser) -> None:
    from mec.evaluate import detect

    needed = task.add_argument_group("the images and the encoder")
    needed.add_argument("data", nargs="?", help=f"{DETECTION_HELP}; absent: --predict with what is in --out")
    needed.add_argument("--encoder", help=f"{ENCODER_HELP}; absent: with --predict alone")
    needed.add_argument(
        "--out", help="folder for the detectors and their figures; absent: detect-SCHEDULE in the run folder"
    )
    needed.add_argument("--resume", action="store_true", help="go on with what is in --out, from the newest checkpoint")
    drawn = task.add_argument_group("images to draw on")
    drawn.add_argument("--predict", help="a folder, a file, a video ... on which to draw what is found; absent: none")
    drawn.add_argument("--threshold", type=float, default=0.5, help="the least score, 0 to 1, of what is drawn")
    add_settings(task, "the protocol", detect, {"data", "encoder", "out", "resume"})


def _tracking_options(task: Parser, name: str) -> None:
    needed = task.add_argument_group("the sequences and the encoder")
    needed.add_argument("data", help=TRACKING_HELP[name])
    needed.add_argument("--encoder", required=True, help=ENCODER_HELP)
    needed.add_argument(
        "--out", help="folder for the tracks and the figures of each sequence; absent: one in the run folder, or none"
    )
    needed.add_argument("--resume", action="store_true", help="go on with what is in --out")
    needed.add_argument("--sequences", help=SEQUENCES_HELP[name])
    own = {"data", "encoder", "out", "resume", "sequences", "corrected", "motion"}
    protocol = add_settings(task, "the protocol", task_of(name), own)
    for flag, words in (
        ("corrected", "put right what the published code does otherwise than it means to; absent: published figures"),
        ("motion", "let motion share in the cost of a pair; absent: looks alone, as encoders are compared"),
    ):
        if flag in inspect.signature(task_of(name)).parameters:
            protocol.add_argument(f"--{flag}", action="store_true", help=words)


def listed(names: str | None) -> list[str] | None:
    """NAME,NAME or [NAME,NAME]: as YAML, one name would be no list, and a star would not be what it is in patterns."""
    if names is None:
        return None
    inner = names.strip()
    inner = inner[1:-1] if inner.startswith("[") and inner.endswith("]") else inner
    return [word.strip(" '\"") for word in inner.split(",")]
