"""The ``mec`` command: every sub-command is one typed function of the package."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from mec import __version__
from mec.cli.evaluate_options import DETECTION_HELP, TASKS, TRACKING_HELP, listed, task_of
from mec.cli.options import COMMANDS
from mec.cli.parser import Parser
from mec.distributed import is_rank_zero
from mec.errors import InputError, did_you_mean
from mec.option_errors import option_names

if TYPE_CHECKING:
    from mec.evaluate import Result


def _parser(arguments: Sequence[str], everything: bool = False) -> Parser:
    """Only the command asked for gets its options: the others would import all of PyTorch for a line of help."""
    parser = Parser(
        prog="mec",
        usage="mec COMMAND [options]",
        description="Image encoders learned without labels by Maximum Entropy Coding, and what they are worth.",
        version=__version__,
        epilog="example: mec demo\nmec COMMAND --help tells more: every option with its default, and an example",
    )
    commands = parser.add_subcommands(title="commands", metavar="COMMAND", dest="command", description=None)
    for name, (summary, add_options) in COMMANDS.items():
        command = Parser()
        commands.add_subcommand(name, command, help=summary)
        command.prog = f"mec {name}"
        if everything:
            add_options(command, list(TASKS) if name == "evaluate" else [])
        elif name == next(iter(arguments), None):
            add_options(command, arguments[1:])
    return parser


def _check_order(parser: Parser, arguments: Sequence[str]) -> None:
    """An option before the command or the task would be said to be an unknown one of these."""
    wanted, asked, known = "COMMAND", arguments[0], [*option_names(parser), "-h"]
    if asked == "evaluate" and len(arguments) > 1:
        wanted, asked, known = "TASK", arguments[1], ["--help", "-h"]
    name = asked.partition("=")[0]
    if name.startswith("-") and name not in known:
        where = "mec evaluate" if wanted == "TASK" else "mec"
        proposed = did_you_mean(name, known) or f"; expected {wanted} first, then its options"
        print(f"{where}: unrecognized option {name}{proposed}", file=sys.stderr)
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
        data, out, resume, _, every = (
            settings.pop(name) for name in ("data", "out", "resume", "recipe", "probe_every")
        )
        recipe = make_recipe(settings)
        probe = create_online_probe(data, every, recipe.workers)
        pretrain(data, out, recipe, resume, callbacks=[] if probe is None else [probe])
    elif options.command == "views":
        from mec.pretraining.contact_sheet import contact_sheet
        from mec.pretraining.recipe_files import make_recipe

        settings = options.views.as_dict()
        data, out, images, pairs, _ = (settings.pop(name) for name in ("data", "out", "images", "pairs", "recipe"))
        print(contact_sheet(data, out, make_recipe(settings), images, pairs))
    elif options.command == "evaluate" and options.evaluate.task == "detect":
        _detect(**options.evaluate.detect.as_dict())
    elif options.command == "evaluate" and options.evaluate.task in TRACKING_HELP:
        _follow(options.evaluate.task, **options.evaluate[options.evaluate.task].as_dict())
    elif options.command == "evaluate":
        from mec.distributed import process_group

        with process_group():
            _evaluate(options.evaluate.task, options.evaluate[options.evaluate.task].as_dict())
    elif options.command == "track":
        from mec.evaluate import track

        print(track(**options.track.as_dict()))
    elif options.command == "embed":
        from mec.distributed import process_group
        from mec.embedding.embed import embed

        with process_group():
            made = embed(**options.embed.as_dict())
        if is_rank_zero():
            print(made)
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

        print(completion(_parser([], everything=True), options.completion.shell))
    else:
        from mec.demo import demo

        demo(**options.demo.as_dict())


def _evaluate(task: str, settings: dict[str, Any]) -> None:
    """One table of all the sources; each result is kept as soon as it is there."""
    from mec.data import open_dataset
    from mec.results import results_table

    sources, out = settings.pop("data"), settings.pop("out")
    if out is None and (Path(settings["encoder"]) / "recipe.yaml").exists():
        out = settings["encoder"]
    for source in sources[1:]:
        open_dataset(source, "test")  # a wrong name is told before the first source has taken its hours
    results: list[Result] = []
    try:
        for source in sources:
            results.append(task_of(task)(source, **settings))
            if out is not None and is_rank_zero():
                path = results[-1].append_to(out)
    finally:
        if results and is_rank_zero():
            console = Console(soft_wrap=True)
            console.print(results_table(results))
            if out is not None:
                print(f"added to {path}")


def _detect(
    data: str | None, encoder: str | None, out: str | None, predict: str | None, threshold: float, **settings: Any
) -> None:
    """Train and measure detectors, then draw; or only draw, with one that was trained before."""
    from mec import evaluate
    from mec.evaluate.detection.predict import check_threshold, open_prediction_images

    if data is None and predict is None:
        raise InputError(f"data: expected {DETECTION_HELP}; or --predict IMAGES --out DETECTORS")
    if data is not None and encoder is None:
        raise InputError("encoder: expected what the detector begins with, such as a run folder")
    kept = out
    if not out and data is not None and (Path(str(encoder)) / "recipe.yaml").exists():
        kept, out = encoder, os.path.join(str(encoder), f"detect-{settings['schedule']}")
    if not out:
        raise InputError("out: expected a folder for the detectors")
    if predict is not None:
        check_threshold(threshold)  # what is wrong is told before the hours of training
        open_prediction_images(predict)
    if data is not None:
        result = evaluate.detect(data, str(encoder), out, **settings)
        if is_rank_zero():
            path = result.append_to(str(kept))
            Console(soft_wrap=True).print(result.table())
            print(f"added to {path}; detectors and detections in {out}")
    if predict is not None:
        drawn = evaluate.predict(predict, out, threshold, settings["devices"], settings["workers"])
        if is_rank_zero():
            print(drawn)


def _follow(task: str, data: str, encoder: str, out: str | None, sequences: str | None, **settings: Any) -> None:
    """Tracks beside the run where there is one. What could not be used is an error, once the others are told."""
    kept = out
    if not out and (Path(encoder) / "recipe.yaml").exists():
        words = [settings.get("tracker"), settings["stage"], *(f for f in ("corrected", "motion") if settings.get(f))]
        words.append(Path(data).expanduser().resolve().name)
        kept, out = encoder, os.path.join(encoder, "-".join([task, *filter(None, words)]))
    result = task_of(task)(data, encoder, out=out, sequences=listed(sequences), **settings)
    Console(soft_wrap=True).print(result.table())
    if kept:
        print(f"added to {result.append_to(kept)}; tracks in {out}")
    if result.skipped:
        name, reason = next(iter(result.skipped.items()))
        number = f"{len(result.skipped)} sequence{'s' if len(result.skipped) > 1 else ''}"
        raise InputError(f"data: {number} of {data} could not be used; the first: {name}: {reason}")


def _report(runs: list[str], out: str | None, watch: bool, port: int | None, **settings: Any) -> None:
    if watch and out is not None:
        raise InputError("out: --watch serves the page and writes no file; expected one of the two")
    if port is not None and not watch:
        raise InputError("port: it is --watch that serves the page; expected both or neither")
    if watch:
        from mec.report.watch import watch as serve

        serve(runs, port=port, **settings)
    else:
        from mec.report import write_report

        print(write_report(runs, out, **settings))


def _as_meant(argument: str) -> str:
    """--max-broken is --max_corrupt: both spellings are natural, and the settings have the second. And --out=~/x is
    meant as it would be without the sign, where the shell fills in the home folder."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    return name.replace("-", "_").replace("__", "--", 1) + equals + (os.path.expanduser(value) if equals else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0; 2 and one line for what the user got wrong; 1 and a traceback for a bug; 130 after Ctrl-C."""
    try:
        _run([_as_meant(a) for a in (sys.argv[1:] if arguments is None else arguments)])
    except InputError as error:
        # a loader process sends its traceback along; the last line is the message
        if is_rank_zero() or not error.on_all_ranks:
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
