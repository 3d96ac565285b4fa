"""The ``mec`` command: every sub-command is one typed function of the package."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from mec import __version__
from mec.errors import InputError
from mec.parser import Parser, about

if TYPE_CHECKING:
    from mec.evaluate import Result

DATA_HELP = (
    "a folder of pictures (labels: its sub-folders), a .txt list or .csv of path and label, WebDataset shards "
    "(a-{0000..0099}.tar, a folder of them, a URL), .parquet or hf:owner/name, a video, an .npz file, or digits, "
    "cifar10, cifar100, fashion-mnist, stl10"
)
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
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")
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
            usage=f"mec evaluate {name} DATA [DATA ...] --encoder ENCODER [options]",
            description=about(_task(name)) if name in arguments else None,
            epilog=f"example: mec evaluate {name} {example}",
        )
        tasks.add_subcommand(name, task, help=summary)
        if name in arguments:
            task.add_argument("data", nargs="+", help=f"one or several of: {DATA_HELP}")
            task.add_argument("--encoder", required=True, help=ENCODER_HELP)
            task.add_argument("--out", help="folder whose results.jsonl takes the result; absent: the run folder")
            task.add_function_arguments(_task(name), as_group=False, skip={"data", "encoder"})


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
    "embed": ("write the features of every picture; list near-duplicates and outliers", _embed_options),
    "export": ("write an encoder for timm, torchvision, detectron2, ONNX or Hugging Face", _export_options),
    "demo": ("the whole way on handwritten digits: two minutes, no download", _demo_options),
}
TASKS = {
    "knn": ("weighted nearest neighbours, no training", "cifar10 --encoder runs/cifar10"),
    "linear": ("linear classifier on frozen features", "pets/ birds/ --encoder runs/pets"),
    "few-label": ("1, 5 or 10 labels per class, nearest class mean", "pets/ --encoder runs/pets"),
    "finetune": ("the whole network trained further with some of the labels", "pets/ --encoder runs/pets --labels 10%"),
}


def _task(name: str) -> Callable[..., Result]:
    from mec import evaluate

    task: Callable[..., Result] = getattr(evaluate, name.replace("-", "_"))
    return task


def _parser(arguments: Sequence[str]) -> Parser:
    """Only the command asked for gets its options: the others would import all of PyTorch for a line of help."""
    parser = Parser(
        prog="mec",
        description="Image encoders learnt without labels by Maximum Entropy Coding, and what they are worth.",
        version=f"mec {__version__}",
        epilog="mec COMMAND --help tells more; start with: mec demo",
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", dest="command")
    asked = next((a for a in arguments if not a.startswith("-")), None)
    for name, (summary, add_options) in COMMANDS.items():
        command = Parser()
        commands.add_subcommand(name, command, help=summary)
        if name == asked:
            add_options(command, arguments[1:])
    return parser


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


def _run(arguments: Sequence[str]) -> None:
    parser = _parser(arguments)
    options = parser.parse_args(arguments)
    if options.command == "pretrain":
        from mec.evaluate.online import online_probe
        from mec.training import pretrain
        from mec.training.recipe_files import make_recipe

        settings = options.pretrain.as_dict()
        data, out, resume, _, every = (
            settings.pop(name) for name in ("data", "out", "resume", "recipe", "probe_every")
        )
        recipe = make_recipe(settings)
        probe = online_probe(data, every, recipe.workers)
        pretrain(data, out, recipe, resume, callbacks=[] if probe is None else [probe])
    elif options.command == "views":
        from mec.training.recipe_files import make_recipe
        from mec.training.sheet import view_sheet

        settings = options.views.as_dict()
        data, out, pictures, pairs, _ = (settings.pop(name) for name in ("data", "out", "pictures", "pairs", "recipe"))
        print(view_sheet(data, out, make_recipe(settings), pictures, pairs))
    elif options.command == "evaluate":
        _evaluate(options.evaluate.task, options.evaluate[options.evaluate.task].as_dict())
    elif options.command == "embed":
        from mec.evaluate.embed import embed

        print(embed(**options.embed.as_dict()))
    elif options.command == "export":
        from mec.models.export import export

        print(export(**options.export.as_dict()))
    else:
        from mec.demo import demo

        demo(**options.demo.as_dict())


def _evaluate(task: str, settings: dict[str, Any]) -> None:
    """One table of all the sources; each result is kept as soon as it is there."""
    from mec.data import open_images
    from mec.evaluate.result import table

    sources, out = settings.pop("data"), settings.pop("out")
    if out is None and (Path(settings["encoder"]) / "recipe.yaml").exists():
        out = settings["encoder"]
    for source in sources[1:]:
        open_images(source, "test")  # a wrong name is told before the first source has taken its hours
    results: list[Result] = []
    try:
        for source in sources:
            results.append(_task(task)(source, **settings))
            if out is not None:
                path = results[-1].append_to(out)
    finally:
        if results:
            console = Console(soft_wrap=True)
            console.print(table(results))
            if out is not None:
                console.print(f"added to {path}", highlight=False)


def _with_underscores(argument: str) -> str:
    """--max-broken is --max_broken: both spellings are natural, and the settings have the second."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 and one line for what the user got wrong; 1 and a traceback for a bug; 130 after Ctrl-C."""
    try:
        _run([_with_underscores(a) for a in (sys.argv[1:] if arguments is None else arguments)])
    except InputError as error:
        # a loader process sends its traceback along; the last line is the message
        print(f"mec: {str(error).splitlines()[-1].removeprefix('mec.errors.InputError: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mec: interrupted", file=sys.stderr)
        return 130
    return 0


def entry() -> NoReturn:
    """``main`` as a process of its own.

    It ends without C's exit handlers: those of PyTorch 2.15's oneDNN crash after some batch sizes, and a run that
    went well would report a segmentation fault.
    """
    try:
        status = main()
    except SystemExit as end:  # --help and the parser's own errors
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
