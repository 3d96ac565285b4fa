"""Options of ``mec evaluate``: one sub-command per task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mec.cli.parser import DATA_HELP, ENCODER_HELP, Parser, add_settings, description_of

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
    "sot": "sequences to evaluate, such as Couple,Jogging-1; absent: all",
    "vos": "sequences to evaluate, such as blackswan,dog; absent: the val list, or all without one",
    "mot": 'sequences to evaluate, or patterns, such as "*-FRCNN"; absent: all',
    "mots": 'sequences to evaluate, or patterns, such as "*-02,*-05"; absent: all',
    "pose": 'sequences to evaluate, or patterns, such as "*_mpii_test"; absent: all',
}
TASKS = {
    "knn": ("weighted nearest neighbors; nothing is trained", "cifar10 --encoder runs/cifar10"),
    "linear": ("linear classifier on frozen features", "pets/ birds/ --encoder runs/pets"),
    "few-shot": ("1, 5 or 10 labels per class, nearest class mean", "pets/ --encoder runs/pets --shots 1,5"),
    "finetune": ("finetune the network on a fraction of the labels", "pets/ --encoder runs/pets --label_fraction 0.1"),
    "detect": ("object detection and instance segmentation", "coco/ --encoder runs/pets --out runs/coco"),
    "sot": ("single-object tracking; nothing is trained", "OTB100/ --encoder runs/pets --tracker both"),
    "vos": ("video object segmentation; nothing is trained", "DAVIS/ --encoder runs/pets --render davis.mp4"),
    "mot": ("multi-object tracking of given boxes", "MOT17/ --encoder runs/pets --sequences '*-FRCNN'"),
    "mots": ("multi-object tracking of given masks", "MOTS/ --encoder runs/pets --out runs/mots"),
    "pose": ("tracking of people by given poses", "posetrack18/ --encoder runs/pets --motion"),
}
ONE_DATASET_TASKS = {"detect", *TRACKING_HELP}
"""Tasks that take one DATA; the others take several."""


def task_function(name: str) -> Callable[..., Result]:
    """Return the function of a task in ``mec.evaluate``."""
    from mec import evaluate

    task: Callable[..., Result] = getattr(evaluate, name.replace("-", "_"))
    return task


def evaluate_options(parser: Parser, arguments: Sequence[str]) -> None:
    parser.usage = "mec evaluate TASK DATA --encoder ENCODER [options]"
    parser.description = "Evaluate an encoder on a downstream task, next to baselines."
    parser.epilog = (
        "example: mec evaluate knn digits --encoder runs/digits\nmec evaluate TASK --help lists the options of a task"
    )
    tasks = parser.add_subcommands(title="tasks", metavar="TASK", dest="task", description=None)
    for name, (summary, example) in TASKS.items():
        more_data = "" if name in ONE_DATASET_TASKS else " [DATA ...]"
        task = Parser(
            usage=f"mec evaluate {name} DATA{more_data} --encoder ENCODER [options]",
            description=description_of(task_function(name)) if name in arguments else None,
            epilog=f"example: mec evaluate {name} {example}",
        )
        tasks.add_subcommand(name, task, help=summary)
        task.prog = f"mec evaluate {name}"
        if name in arguments and name == "detect":
            _detect_options(task)
        elif name in arguments and name in TRACKING_HELP:
            _tracking_options(task, name)
        elif name in arguments:
            required = task.add_argument_group("images and encoder")
            required.add_argument("data", nargs="+", help=f"one or several of: {DATA_HELP}")
            required.add_argument("--encoder", required=True, help=ENCODER_HELP)
            required.add_argument("--out", help="folder of the results.jsonl to append to; absent: the run folder")
            add_settings(task, "protocol", task_function(name), {"data", "encoder"})


def _detect_options(task: Parser) -> None:
    from mec.evaluate import detect

    required = task.add_argument_group("images and encoder")
    required.add_argument("data", nargs="?", help=f"{DETECTION_HELP}; absent: only --predict, with a detector in --out")
    required.add_argument("--encoder", help=f"{ENCODER_HELP}; absent: only --predict")
    required.add_argument(
        "--out", help="folder for the detectors and their metrics; absent: detect-SCHEDULE in the run folder"
    )
    required.add_argument("--resume", action="store_true", help="continue in --out from the newest checkpoint")
    prediction = task.add_argument_group("prediction")
    prediction.add_argument("--predict", help="images (folder, file, video) to draw detections on; absent: none")
    prediction.add_argument("--threshold", type=float, default=0.5, help="smallest score, 0 to 1, of a drawn detection")
    add_settings(task, "protocol", detect, {"data", "encoder", "out", "resume"})


def _tracking_options(task: Parser, name: str) -> None:
    required = task.add_argument_group("sequences and encoder")
    required.add_argument("data", help=TRACKING_HELP[name])
    required.add_argument("--encoder", required=True, help=ENCODER_HELP)
    required.add_argument(
        "--out",
        help="folder for tracks and metrics of each sequence; absent: a folder in the run folder, or none",
    )
    required.add_argument("--resume", action="store_true", help="continue with the tracks in --out")
    required.add_argument("--sequences", help=SEQUENCES_HELP[name])
    handled = {"data", "encoder", "out", "resume", "sequences", "corrected", "motion"}
    protocol = add_settings(task, "protocol", task_function(name), handled)
    for flag, flag_help in (
        ("corrected", "correct errors of the published code; absent: reproduce it, to compare with published numbers"),
        ("motion", "use motion in the association cost; absent: appearance alone, to compare encoders"),
    ):
        if flag in inspect.signature(task_function(name)).parameters:
            protocol.add_argument(f"--{flag}", action="store_true", help=flag_help)


def split_names(names: str | None) -> list[str] | None:
    """Split NAME,NAME or [NAME,NAME]. YAML would not read one name as a list, and gives * another meaning."""
    if names is None:
        return None
    inner = names.strip()
    inner = inner[1:-1] if inner.startswith("[") and inner.endswith("]") else inner
    return [name.strip(" '\"") for name in inner.split(",")]
