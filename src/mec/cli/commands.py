"""Commands of ``mec`` except evaluate: each function adds options to a parser and returns the function to run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mec.cli.parser import DATA_HELP, ENCODER_HELP, MACHINE, Parser, add_settings, description_of
from mec.errors import InputError

Run = Callable[..., object]
"""Function of a command: takes the values of the options. A string or path that it returns is printed."""
RECIPE_GROUPS = {
    "images and views": {
        "channels", "background", "subsample", "frame_stride", "max_corrupt", "views", "image_size",
        "resolution_schedule",
    },
    "network": {"backbone", "backbone_options", "small_stem", "whiten_stem", "evaluation_scale"},
    "training": {
        "epochs", "steps", "minutes", "batch_size", "chunk_size", "gradient_checkpointing", "seed", "log_every"
    },
    "machine": set(MACHINE),
}  # fmt: skip
"""Help groups of the settings on the top level of the recipe. Each nested one, such as objective, is its own group."""


def add_pretrain(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.engine.loggers import DEFAULT_LOGGERS, LOGGERS, check_loggers
    from mec.pretraining import pretrain
    from mec.pretraining.online_probe import create_online_probe
    from mec.pretraining.recipe import make_recipe

    parser.describe(
        "DATA --out RUN [--recipe NAME] [--resume] [any setting of the recipe]",
        "Pretrain an encoder on images, without labels.",
        "photographs/ --out runs/photographs --epochs 200 --batch_size 256\n"
        "resume: mec pretrain photographs/ --out runs/photographs --resume",
    )
    group = parser.add_argument_group("run")
    group.add_argument("data", help=DATA_HELP)
    group.add_argument("--out", required=True, help="run folder; must not hold another run")
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue from the newest intact checkpoint of the run folder, or start if there is none",
    )
    group.add_argument(
        "--probe_every",
        type=int | None,
        help="epochs between two online probes (kNN and linear), where DATA has labels; training does not use them. "
        "0: never; absent: ten times in the run, for shards never",
    )
    group.add_argument(
        "--loggers",
        default=",".join(DEFAULT_LOGGERS),
        help=f"comma-separated: {', '.join(LOGGERS)}; metrics.csv is always written",
    )
    complete = _add_recipe(parser, group, arguments)

    def run(
        data: str, out: str, resume: bool, recipe: str, probe_every: int | None, loggers: str, **settings: Any
    ) -> None:
        check_loggers(loggers)  # before the images of probes are read
        checked = make_recipe(complete(settings))
        probe = create_online_probe(data, probe_every, checked.workers)
        pretrain(data, out, checked, resume, callbacks=[] if probe is None else [probe], loggers=loggers)

    return run


def add_compare(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.comparison import compare
    from mec.pretraining.recipe import make_recipe

    parser.describe(
        "DATA --out FOLDER --SETTING VALUE,VALUE[,...] [--seed N,N,...] [any setting of the recipe]",
        "Pretrain an encoder with every combination of the settings that have several values, separated by commas.\n"
        "Evaluate each by kNN and a linear probe, where DATA has labels, and print means over the seeds.\n"
        "Rerun to continue, also with more values.",
        "photographs/ --out objectives --objective.name mec,simclr,vicreg --seed 0,1,2 --epochs 50",
    )
    group = parser.add_argument_group("comparison")
    group.add_argument("data", help=DATA_HELP)
    group.add_argument(
        "--out", required=True, help="folder of the comparison, with a run folder VALUES/seed=N for each"
    )
    complete = _add_recipe(parser, group, arguments)
    from mec.pretraining import Recipe

    parser.varied = {field.name for field in fields(Recipe)}

    def run(data: str, out: str, grid: list[tuple[dict[str, str], dict[str, Any]]], **_: Any) -> None:
        from rich.console import Console

        from mec.distributed import is_rank_zero

        seeds: dict[int, None] = {}
        variants: dict[str, dict[str, Any]] = {}
        for values, settings in grid:
            settings = {name: value for name, value in settings.items() if name not in ("data", "out", "recipe")}
            recipe = make_recipe(complete(settings))
            seeds[recipe.seed] = None
            names = [v if n == "objective.name" else f"{n}={v}" for n, v in values.items() if n != "seed"]
            name = (",".join(names) or recipe.objective.name).replace("/", "_")  # a folder
            variants.setdefault(name, {"recipe": recipe})
        comparison = compare(data, out, variants, seeds=list(seeds))
        if is_rank_zero():
            Console().print(comparison.table())
            print(comparison.note, comparison.report or comparison.folder, sep="\n")
        if comparison.failed:
            raise InputError(f"failed, for the reasons above: {'; '.join(comparison.failed)}")

    return run


def add_views(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.pretraining.contact_sheet import contact_sheet
    from mec.pretraining.recipe import make_recipe

    parser.describe(
        "DATA --out VIEWS.png [--recipe NAME] [any setting of the recipe]",
        "Draw a contact sheet: images of a dataset and the augmented views that training would use.",
        "photographs/ --out views.png --image_size 128 --view_2.solarize 0",
    )
    group = parser.add_argument_group("contact sheet")
    group.add_argument("data", help=DATA_HELP)
    group.add_argument("--out", required=True, help="file to write, such as views.png")
    group.add_argument("--images", type=int, default=8, help="number of rows")
    group.add_argument("--pairs", type=int, default=6, help="pairs of views per image")
    complete = _add_recipe(parser, group, arguments)

    def run(data: str, out: str, images: int, pairs: int, recipe: str, **settings: Any) -> Path:
        return contact_sheet(data, out, make_recipe(complete(settings)), images, pairs)

    return run


def _add_recipe(
    parser: Parser, group: argparse._ArgumentGroup, arguments: Sequence[str]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Add all settings; those of the recipe in the arguments, or of the default for DATA, are the defaults. Return a
    function that completes the parsed settings: the recipe's objective and teacher.enabled do not apply to another
    objective, and a default distortion not to another form."""
    from mec.pretraining import Recipe, packaged_recipes
    from mec.pretraining.recipe import default_recipe, load_recipe

    recipes = ", ".join(packaged_recipes())
    group.add_argument("--recipe", help=f"packaged settings: {recipes}, or a YAML file; absent: chosen for DATA")
    names = {field.name for field in fields(Recipe)}
    for title, members in RECIPE_GROUPS.items():
        parser.add_argument_group(title).add_class_arguments(Recipe, as_group=False, skip=names - members)
    skipped = set().union(*RECIPE_GROUPS.values()) & names
    parser.add_class_arguments(Recipe, as_group=False, skip={*skipped, "parts"})
    for action in parser._actions:
        if action.dest in (parser.groups or {}):
            # hide --objective FILE of jsonargparse: --recipe is the one way to read a file
            action.help = argparse.SUPPRESS
    positional, options = parser.split(arguments)
    recipe: str | Path | None = options.get("--recipe")
    saved = Path(options.get("--out") or "") / "recipe.yaml"
    if recipe is None and "--resume" in options and saved.exists():
        recipe = saved
    defaults = load_recipe(recipe or default_recipe("".join(positional[:1])))
    parser.set_defaults({name: value for name, value in defaults.as_dict().items() if name != "parts"})

    def complete(settings: dict[str, Any]) -> dict[str, Any]:
        objective = settings["objective"]
        if defaults.objective.distortion is None and "--objective.distortion" not in options:
            objective["distortion"] = None  # that of the form
        if objective["name"] != defaults.objective.name:
            # --objective.options.temperature sets an entry of options, --objective.options all of them
            typed = {name.split(".")[1] for name in options if name.startswith("--objective.")}
            own = {name: objective[name] for name in typed}
            if "options" in typed and "--objective.options" not in options:
                own["options"] = {n: v for n, v in own["options"].items() if f"--objective.options.{n}" in options}
            settings = settings | {"objective": own}
            if "--teacher.enabled" not in options:
                settings["teacher"] = settings["teacher"] | {"enabled": False}
        return settings | {"parts": defaults.parts}

    return complete


def add_inspect(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.data.inspect import inspect

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


def add_export(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.models.export import export

    parser.describe(
        "--encoder ENCODER --format FORMAT --out FILE_OR_FOLDER [options]",
        "Export an encoder for another library.",
        "--encoder runs/pets --format onnx --out pets.onnx",
    )
    parser.add_argument_group("encoder").add_argument("--encoder", required=True, help=ENCODER_HELP)
    add_settings(parser, "output", export, {"encoder"})
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
