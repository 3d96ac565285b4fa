"""The ``mec`` command. Every sub-command calls one typed function of the package."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from mec import __version__
from mec.cli.evaluate_options import DETECTION_HELP, TASKS, TRACKING_HELP, split_names, task_function
from mec.cli.options import COMMANDS
from mec.cli.parser import Parser
from mec.errors import InputError, did_you_mean
from mec.option_errors import option_names

if TYPE_CHECKING:
    from mec.evaluate import Result


def _parser(arguments: Sequence[str], all_options: bool = False) -> Parser:
    """Return the parser. Only the command in ``arguments`` gets its options: the others would import PyTorch."""
    parser = Parser(
        prog="mec",
        usage="mec COMMAND [options]",
        description="Pretrain image encoders without labels by Maximum Entropy Coding, and evaluate them.",
        version=__version__,
        epilog="example: mec demo\nmec COMMAND --help lists every option with its default, and an example",
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", dest="command", description=None)
    for name, (summary, add_options) in COMMANDS.items():
        command = Parser()
        commands.add_subcommand(name, command, help=summary)
        command.prog = f"mec {name}"
        if all_options:
            add_options(command, list(TASKS) if name == "evaluate" else [])
        elif name == next(iter(arguments), None):
            add_options(command, arguments[1:])
    return parser


def _check_order(parser: Parser, arguments: Sequence[str]) -> None:
    """Refuse an option before the command or the task, which argparse would report as an unknown command."""
    expected, argument, known = "COMMAND", arguments[0], [*option_names(parser), "-h"]
    if argument == "evaluate" and len(arguments) > 1:
        expected, argument, known = "TASK", arguments[1], ["--help", "-h"]
    name = argument.partition("=")[0]
    if name.startswith("-") and name not in known:
        command = "mec evaluate" if expected == "TASK" else "mec"
        suggestion = did_you_mean(name, known) or f"; expected {expected} first, then its options"
        print(f"{command}: unrecognized option {name}{suggestion}", file=sys.stderr)
        sys.exit(2)


def _run(arguments: Sequence[str]) -> None:
    parser = _parser(arguments)
    if not arguments:
        parser.print_help()
        return
    _check_order(parser, arguments)
    options = parser.parse_args(arguments)
    if options.command == "pretrain":
        from mec.pretraining import pretrain
        from mec.pretraining.online_probe import create_online_probe
        from mec.pretraining.recipe_files import make_recipe

        settings = options.pretrain.as_dict()
        data, out, resume, _, probe_every = (
            settings.pop(name) for name in ("data", "out", "resume", "recipe", "probe_every")
        )
        recipe = make_recipe(settings)
        probe = create_online_probe(data, probe_every, recipe.workers)
        pretrain(data, out, recipe, resume, callbacks=[] if probe is None else [probe])
    elif options.command == "views":
        from mec.pretraining.contact_sheet import contact_sheet
        from mec.pretraining.recipe_files import make_recipe

        settings = options.views.as_dict()
        data, out, images, pairs, _ = (settings.pop(name) for name in ("data", "out", "images", "pairs", "recipe"))
        print(contact_sheet(data, out, make_recipe(settings), images, pairs))
    elif options.command == "evaluate" and options.evaluate.task == "detect":
        _evaluate_detection(**options.evaluate.detect.as_dict())
    elif options.command == "evaluate" and options.evaluate.task in TRACKING_HELP:
        _evaluate_tracking(options.evaluate.task, **options.evaluate[options.evaluate.task].as_dict())
    elif options.command == "evaluate":
        _evaluate_classification(options.evaluate.task, options.evaluate[options.evaluate.task].as_dict())
    elif options.command == "track":
        from mec.evaluate import track

        print(track(**options.track.as_dict()))
    elif options.command == "embed":
        from mec.distributed import is_rank_zero
        from mec.embedding.embed import embed

        file = embed(**options.embed.as_dict())
        if is_rank_zero():
            print(file)
    elif options.command == "export":
        from mec.models.export.export import export

        print(export(**options.export.as_dict()))
    elif options.command == "report":
        _report(**options.report.as_dict())
    elif options.command == "doctor":
        from mec.cli.doctor import doctor

        print(doctor(options.doctor.folder))
    elif options.command == "completion":
        from mec.cli.completion import completion

        print(completion(_parser([], all_options=True), options.completion.shell))
    else:
        from mec.demo import demo

        demo(**options.demo.as_dict())


def _evaluate_classification(task: str, settings: dict[str, Any]) -> None:
    """Evaluate on every DATA and print one table. Each result is written as soon as it exists."""
    from mec.data import open_dataset
    from mec.distributed import is_rank_zero
    from mec.results import results_table

    datasets, out = settings.pop("data"), settings.pop("out")
    if out is None and (Path(settings["encoder"]) / "recipe.yaml").exists():
        out = settings["encoder"]
    for data in datasets[1:]:
        open_dataset(data, "test")  # refuse a wrong name before hours are spent on the first dataset
    results: list[Result] = []
    try:
        for data in datasets:
            results.append(task_function(task)(data, **settings))
            if out is not None and is_rank_zero():
                path = results[-1].append_to(out)
    finally:
        if results and is_rank_zero():
            console = Console(soft_wrap=True)
            console.print(results_table(results))
            if out is not None:
                print(f"added to {path}")


def _evaluate_detection(
    data: str | None, encoder: str | None, out: str | None, predict: str | None, threshold: float, **settings: Any
) -> None:
    """Train and evaluate detectors, then draw predictions; or only draw, with a detector trained before."""
    from mec import evaluate
    from mec.distributed import is_rank_zero
    from mec.evaluate.detection.predict import check_threshold, open_prediction_images

    if data is None and predict is None:
        raise InputError(f"data: expected {DETECTION_HELP}; or --predict IMAGES --out DETECTORS")
    if data is not None and encoder is None:
        raise InputError("encoder: expected the weights that the detector starts from, such as a run folder")
    results_folder = out
    if not out and data is not None and (Path(str(encoder)) / "recipe.yaml").exists():
        results_folder, out = encoder, os.path.join(str(encoder), f"detect-{settings['schedule']}")
    if not out:
        raise InputError("out: expected a folder for the detectors, got nothing")
    if predict is not None:
        check_threshold(threshold)  # refuse bad values before hours of training
        open_prediction_images(predict)
    if data is not None:
        result = evaluate.detect(data, str(encoder), out, **settings)
        if is_rank_zero():
            path = result.append_to(str(results_folder))
            Console(soft_wrap=True).print(result.table())
            print(f"added to {path}; detectors and detections in {out}")
    if predict is not None:
        folder = evaluate.predict(predict, out, threshold, settings["devices"], settings["workers"])
        if is_rank_zero():
            print(folder)


def _evaluate_tracking(
    task: str, data: str, encoder: str, out: str | None, sequences: str | None, **settings: Any
) -> None:
    """Evaluate a tracking task; without ``out`` the tracks go into a folder of the run. Skipped sequences are an error,
    raised after the results of the others are printed."""
    results_folder = out
    if not out and (Path(encoder) / "recipe.yaml").exists():
        flags = [flag for flag in ("corrected", "motion") if settings.get(flag)]
        parts = [task, settings.get("tracker"), settings["stage"], *flags, Path(data).expanduser().resolve().name]
        results_folder, out = encoder, os.path.join(encoder, "-".join(filter(None, parts)))
    result = task_function(task)(data, encoder, out=out, sequences=split_names(sequences), **settings)
    Console(soft_wrap=True).print(result.table())
    if results_folder:
        print(f"added to {result.append_to(results_folder)}; tracks in {out}")
    if result.skipped:
        name, reason = next(iter(result.skipped.items()))
        number = f"{len(result.skipped)} sequence{'s' if len(result.skipped) > 1 else ''}"
        raise InputError(f"data: {number} of {data} could not be used; the first: {name}: {reason}")


def _report(runs: list[str], out: str | None, watch: bool, port: int | None, **settings: Any) -> None:
    if watch and out is not None:
        raise InputError("out: expected none with --watch, which serves the page and writes no file")
    if port is not None and not watch:
        raise InputError("port: expected --watch with it, which serves the page")
    if watch:
        from mec.report.watch import watch as serve

        serve(runs, port=port, **settings)
    else:
        from mec.report import write_report

        print(write_report(runs, out, **settings))


def _normalize(argument: str) -> str:
    """Accept --max-corrupt for --max_corrupt, and expand ~ in --out=~/x as the shell does in --out ~/x."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    return name.replace("-", "_").replace("__", "--", 1) + equals + (os.path.expanduser(value) if equals else "")


class _ConsoleHandler(logging.Handler):
    """Prints log messages to standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        Console(stderr=True, soft_wrap=True).print(prefix + record.getMessage(), highlight=False, markup=False)


@contextmanager
def logging_to_console() -> Iterator[None]:
    """Print the messages of the package from level INFO on, within the block."""
    logger, handler = logging.getLogger("mec"), _ConsoleHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 after one line about a mistake of the user, 130 after Ctrl-C."""
    with logging_to_console():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        _run([_normalize(a) for a in (sys.argv[1:] if arguments is None else arguments)])
    except InputError as error:
        from mec.distributed import is_rank_zero

        # an error in a loader process carries its traceback; the last line is the message
        if is_rank_zero() or not error.on_all_ranks:
            print(f"mec: {str(error).splitlines()[-1].removeprefix('mec.errors.InputError: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mec: interrupted", file=sys.stderr)
        return 130
    return 0


def entry() -> NoReturn:
    """Run ``main`` and end the process. A bug prints its traceback and exits with 1.

    C exit handlers are skipped: those of oneDNN in PyTorch 2.15 crash after some batch sizes, so that a successful run
    would end with a segmentation fault.
    """
    try:
        status = main()
    except SystemExit as end:  # from --help and the parser
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
