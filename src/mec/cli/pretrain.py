"""Commands of ``mec`` that take a recipe: pretrain, compare and views."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mec.cli.parser import DATA_HELP, ENCODER_HELP, MACHINE, Parser, Run
from mec.errors import InputError

RECIPE_GROUPS = {
    "images and views": {
        "channels", "background", "subsample", "frame_stride", "max_corrupt", "views", "image_size",
        "resolution_schedule",
    },
    "network": {
        "backbone", "backbone_options", "small_stem", "whiten_stem", "evaluation_scale", "freeze", "batch_norm",
    },
    "training": {
        "epochs", "steps", "minutes", "patience",
        "batch_size", "chunk_size", "gradient_checkpointing", "seed", "log_every"
    },
    "machine": set(MACHINE),
}  # fmt: skip
"""Help groups of the settings on the top level of the recipe. Each nested one, such as objective, is its own group."""


INIT_SETTINGS = ("backbone", "backbone_options", "small_stem", "whiten_stem", "channels")
"""Settings that an encoder to start from determines."""


def add_pretrain(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.distributed import is_rank_zero
    from mec.engine.loggers import DEFAULT_LOGGERS, LOGGERS, check_loggers
    from mec.pretraining import pretrain
    from mec.pretraining.online_probe import create_online_probe
    from mec.pretraining.outcome import log_outcome
    from mec.pretraining.recipe_files import make_recipe

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
    group.add_argument(
        "--distill_from",
        help=f"trained encoder whose features of the whole images are the targets of a smaller one: {ENCODER_HELP}. "
        "The recipe is distill unless another is chosen",
    )
    complete = _add_recipe(parser, group, arguments, with_init=True)

    def run(
        data: str, out: str, resume: bool, recipe: str, init: str | None, distill_from: str | None,
        probe_every: int | None, loggers: str, **settings: Any,
    ) -> None:  # fmt: skip
        check_loggers(loggers)  # before the images of probes are read
        checked, encoder = make_recipe(complete(settings)), _load_trained("init", init)
        teacher = _load_trained("distill_from", distill_from)
        probe = create_online_probe(data, probe_every, checked.workers)
        callbacks = [] if probe is None else [probe]
        result = pretrain(data, out, checked, resume, callbacks, encoder=encoder, distill_from=teacher, loggers=loggers)
        if probe is not None and is_rank_zero():
            log_outcome(probe, result.encoder(), result.folder)

    return run


def add_compare(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.comparison import compare
    from mec.pretraining.recipe_files import make_recipe

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
    complete = _add_recipe(parser, group, arguments, with_init=True)
    from mec.pretraining import Recipe

    parser.varied = {field.name for field in fields(Recipe)}

    def run(data: str, out: str, grid: list[tuple[dict[str, str], dict[str, Any]]], **_: Any) -> None:
        from rich.console import Console

        from mec.distributed import is_rank_zero

        encoder = _load_trained("init", grid[0][1]["init"])
        seeds: dict[int, None] = {}
        variants: dict[str, dict[str, Any]] = {}
        for values, settings in grid:
            settings = {
                name: value for name, value in settings.items() if name not in ("data", "out", "recipe", "init")
            }
            recipe = make_recipe(complete(settings))
            seeds[recipe.seed] = None
            names = [v if n == "objective.name" else f"{n}={v}" for n, v in values.items() if n != "seed"]
            name = (",".join(names) or recipe.objective.name).replace("/", "_")  # a folder
            variants.setdefault(name, {"recipe": recipe, "encoder": encoder})
        comparison = compare(data, out, variants, seeds=list(seeds))
        if is_rank_zero():
            Console().print(comparison.table())
            print(comparison.note, comparison.report or comparison.folder, sep="\n")
        if comparison.failed:
            raise InputError(f"failed, for the reasons above: {'; '.join(comparison.failed)}")

    return run


def add_views(parser: Parser, arguments: Sequence[str]) -> Run:
    from mec.pretraining.contact_sheet import contact_sheet
    from mec.pretraining.recipe_files import make_recipe

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


def _load_trained(name: str, source: str | None) -> Any:
    """Return the trained encoder of the option ``name``; None without one."""
    from mec.models import load_encoder

    if source is None:
        return None
    try:
        encoder = load_encoder(source)
    except InputError as error:
        raise InputError(f"{name}: {str(error).removeprefix('encoder: ')}") from error
    if encoder.untrained:
        import timm

        weights = timm.list_pretrained(f"{source}.*")[:3]
        advice = f"; trained weights of it: {', '.join(weights)}" if weights else ""
        advice += f"; without trained weights: --backbone {source}" if name == "init" else ""
        raise InputError(f"{name}: expected trained weights, got {source}, an architecture{advice}")
    return encoder


def _add_recipe(
    parser: Parser, group: argparse._ArgumentGroup, arguments: Sequence[str], with_init: bool = False
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Add all settings; those of the recipe in the arguments, or of the default for DATA, are the defaults. Return a
    function that completes the parsed settings: what the recipe says about its objective, teacher, backbone and
    optimizer does not apply to others, and a default distortion not to another form."""
    from mec.pretraining import Recipe, packaged_recipes
    from mec.pretraining.recipe_files import default_recipe, load_recipe

    if with_init:
        group.add_argument(
            "--init",
            help=f"trained weights to start from: {ENCODER_HELP}. They determine {', '.join(INIT_SETTINGS)}; the "
            "recipe is adapt unless another is chosen",
        )

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
    if "--init" in options and (typed := sorted({f"--{name}" for name in INIT_SETTINGS} & options.keys())):
        parser.error(f"{typed[0]}: expected none with --init, whose encoder determines it")
    by_weights = "adapt" if "--init" in options else "distill" if "--distill_from" in options else None
    defaults = load_recipe(recipe or by_weights or default_recipe("".join(positional[:1])))
    parser.set_defaults({name: value for name, value in defaults.as_dict().items() if name != "parts"})

    def given(name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of a dictionary that the command line sets: all by --NAME, or some by --NAME.ENTRY."""
        return values if f"--{name}" in options else {n: v for n, v in values.items() if f"--{name}.{n}" in options}

    def complete(settings: dict[str, Any]) -> dict[str, Any]:
        objective, optimizer = settings["objective"], settings["optimizer"]
        if settings["backbone"] != defaults.backbone:
            settings["backbone_options"] = given("backbone_options", settings["backbone_options"])
        if optimizer["name"] != defaults.optimizer.name:
            optimizer["options"] = given("optimizer.options", optimizer["options"])
        if "--objective.distortion" not in options and (
            defaults.objective.distortion is None or objective["form"] != defaults.objective.form
        ):
            objective["distortion"] = None  # that of the form
        if objective["name"] != defaults.objective.name:
            objective["options"] = given("objective.options", objective["options"])
            names = {name.split(".")[1] for name in options if name.startswith("--objective.")}
            settings = settings | {"objective": {name: objective[name] for name in names}}
            if "--teacher.enabled" not in options:
                settings["teacher"] = settings["teacher"] | {"enabled": False}
        return settings | {"parts": defaults.parts}

    return complete
