"""Write the model card of an encoder: architecture, training, metrics, loading code, limits."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mec.errors import InputError
from mec.models.encoder import Encoder, registering_module
from mec.results import RESULTS, Result, cells, titles

Library = Literal["timm", "mec-ssl"]

SETTINGS = (
    "epochs", "steps", "minutes", "batch_size", "image_size", "objective.form", "objective.distortion",
    "objective.order", "projector.hidden_dim", "projector.output_dim", "teacher.enabled", "optimizer.name",
    "optimizer.lr", "optimizer.weight_decay", "views", "seed",
)  # fmt: skip
"""Recipe settings in the training table; the whole recipe follows it."""
TASK = "image-feature-extraction"
TEMPLATE = Path(__file__).with_name("model_card.md")


def model_card(
    encoder: Encoder,
    library: Library,
    name: str,
    repository: str | None = None,
    run: Path | None = None,
    license: str | None = None,
) -> str:
    """Return the README.md of a model folder ``name``, with training and metrics of the run folder ``run``, if any."""
    recipe, environment, results, seconds = _read_run(run) if run else ({}, {}, [], None)
    data = str(environment.get("data", ""))
    title = (repository or name).split("/")[-1]
    card_data = ModelCardData(
        license=license or "unknown",
        library_name=library,
        pipeline_tag=TASK,
        tags=[TASK, "self-supervised-learning", "maximum-entropy-coding"],
        datasets=[data.removeprefix("hf:")] if re.fullmatch(r"hf:[\w.-]+/[\w.-]+", data) else None,
        model_name=title,
        eval_results=[
            EvalResult(TASK, dataset, dataset, m.name, m.value, metric_name=f"{result.task}: {m.title}")
            for result in results
            for dataset in [without_folders(str(result.dataset))]
            for m in result.rows.get("encoder", [])
            if math.isfinite(m.value)
        ]
        or None,
    )
    settings = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    hub_source = f"hf:{repository}" if library == "timm" else str(repository).split("/")[-1]
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=_text(title),
        trained_here=run is not None,
        training=_training(recipe, environment, seconds) if run else "",
        recipe=settings,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0)),
        results=results,
        table=_metrics_table,
        text=_text,
        without_folders=without_folders,
        library=library,
        repository=repository,
        timm_source=f"hf-hub:{repository}" if repository else f"local-dir:{name}",
        mec_source=hub_source if repository else name,
        where="" if repository else "  # the path of this folder",
        encoder=encoder,
        registers="" if encoder.spec.is_module else registering_module(encoder.spec.backbone),
        spec=encoder.spec,
        parameters=sum(p.numel() for p in encoder.parameters()),
        license=_text(license) if license else "",
    )
    return str(card)


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any], list[Result], str | None]:
    """Return recipe, environment, results and training seconds of a run folder; each is empty if its file is absent."""
    path = run
    try:
        contents = {}
        for file, parse in (("recipe.yaml", yaml.safe_load), ("environment.json", json.loads)):
            path = run / file
            contents[file] = parse(path.read_text(encoding="utf-8")) if path.exists() else {}
            if not isinstance(contents[file], dict):
                raise ValueError(f"expected values by name, got {type(contents[file]).__name__}")
        path = run / RESULTS
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        results = [Result.from_dict(json.loads(line)) for line in lines if line.strip()]
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"encoder: {path} cannot be read ({' '.join(str(error).split())})") from error
    path = run / "metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return contents["recipe.yaml"], contents["environment.json"], results, rows[-1].get("seconds") if rows else None


def _text(value: object) -> str:
    """Escape a value as one line of plain text in Markdown."""
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\`*_{}\[\]<>|#~&$!])", r"\\\1", " ".join(line.split()))


def without_folders(line: str) -> str:
    """Cut absolute paths in a line to their last part: folders of a private machine do not belong in a public card."""
    return re.sub(r"(?:(?<=\s)|^)(?:~|[A-Za-z]:)?[\\/](?=\S).*[\\/](?=[^\\/\s])", "", line.rstrip("\\/"))


def _markdown_table(head: tuple[str, ...], rows: Iterable[Iterable[str]], align: str = "---") -> str:
    lines = [head, ("---", *[align] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _training(recipe: dict[str, Any], environment: dict[str, Any], seconds: str | None) -> str:
    """Return the table of data, settings and machine; values that are not recorded are left out."""
    rows: dict[str, Any] = {}
    if "data" in environment:
        rows["data"] = without_folders(str(environment["data"]))
    if isinstance(environment.get("images"), int):
        rows["images"] = f"{environment['images']:,}"
    rows["labels"] = "none used"
    # steps replace epochs, and are those of the minutes
    unused = {"steps", "minutes"} if recipe.get("steps") is None else {"epochs"}
    unused |= {"minutes"} if recipe.get("minutes") is None else set()
    for name in SETTINGS:
        if name in unused:
            continue
        *sections, last = name.split(".")
        section: Any = recipe
        for key in sections:
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict) and last in section:
            rows[name] = section[last] if isinstance(section[last], str) else json.dumps(section[last])
    if isinstance(devices := environment.get("gpus"), list):
        rows["devices"] = ", ".join(map(str, devices)) or f"CPU, {environment.get('cpu_cores')} cores"
    environment = environment | {"world size": environment.get("world_size"), "seconds": seconds}
    rows |= {
        name: environment[name] for name in ("world size", "precision", "started", "seconds") if environment.get(name)
    }
    if isinstance(packages := environment.get("packages"), dict):
        versions = {"python": environment.get("python", "?")} | packages
        rows["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return _markdown_table(("", ""), ((_text(name), _text(value)) for name, value in rows.items()))


def _metrics_table(result: Result) -> str:
    columns = titles(result.rows.values())
    rows = ((_text(name), *map(_text, cells(row, columns))) for name, row in result.rows.items())
    return _markdown_table(("features", *map(_text, columns.values())), rows, "---:")
