"""The model card of an encoder: what it is, what it learned from, what was measured, how to load it. Nothing else."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from mec.errors import InputError
from mec.models.encoder import Encoder

Library = Literal["timm", "mec-ssl"]

METHOD = "[Maximum Entropy Coding](https://arxiv.org/abs/2210.11464)"
CITATION = """```bibtex
@inproceedings{liu2022mec,
  title     = {Self-Supervised Learning via Maximum Entropy Coding},
  author    = {Liu, Xin and Wang, Zhongdao and Li, Ya-Li and Wang, Shengjin},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}
```"""
SETTINGS = (
    "epochs", "batch_size", "image_size", "objective.form", "objective.distortion", "objective.order",
    "projector.hidden", "projector.outputs", "teacher.enabled", "optimizer.name", "optimizer.lr",
    "optimizer.weight_decay", "views", "seed",
)  # fmt: skip
"""Of the recipe, those in the table; all of it stands below."""

TIMM_CODE = """```python
import timm
import torch

model = timm.create_model({source}, pretrained=True).eval(){where}
settings = timm.data.resolve_model_data_config(model)
images = torch.rand(2, *settings["input_size"])  # of values in [0, 1]
mean, std = (torch.tensor(settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
features = model((images - mean) / std)  # (2, {features})
```"""
MEC_CODE = """```python
import mec
import torch

encoder = mec.load_encoder({source}){where}
images = torch.rand(2, {channels}, encoder.image_size, encoder.image_size)  # of values in [0, 1]
features = encoder(encoder.normalize(images))  # (2, {features})
```"""


def model_card(
    encoder: Encoder,
    library: Library,
    name: str,
    repository: str | None = None,
    run: Path | None = None,
    license: str | None = None,
) -> str:
    """The README.md of a model folder: Markdown after YAML.

    Args:
        encoder: what the folder holds.
        library: that the folder is laid out for.
        name: of the folder.
        repository: owner/name on the Hugging Face hub, where it goes there.
        run: the folder of the run that it comes from; without one, only what the encoder tells is told.
        license: of the weights.

    Raises:
        InputError: a file of the run is damaged.
    """
    recipe, environment, results = _read_run(run) if run else ({}, {}, [])
    data = str(environment.get("data", ""))
    front: dict[str, Any] = {"license": license or "unknown", "library_name": library}
    front["pipeline_tag"] = "image-feature-extraction"
    front["tags"] = ["image-feature-extraction", "self-supervised-learning", "maximum-entropy-coding"]
    if re.fullmatch(r"hf:[\w.-]+/[\w.-]+", data):
        front["datasets"] = [data.removeprefix("hf:")]
    sections = [
        f"# {_text((repository or name).split('/')[-1])}",
        _what_it_is(encoder, trained_here=run is not None),
        *(_training(recipe, environment, _last_row(run)) if run else []),
        "## Figures",
        *(_figures(results) or ["Nothing was measured with this encoder."]),
        "## Loading",
        *_loading(encoder, library, name, repository),
        "## Limits",
        _limits(encoder, results),
        "## License",
        f"The weights are under {_text(license)}." if license else
        "No license was chosen for these weights; ask those who made them before you use them.",
        "## Citation",
        CITATION,
    ]  # fmt: skip
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Recipe, environment and results; the last two may be absent."""

    def read(name: str, parse: Callable[[str], Any]) -> Any:
        path = run / name
        try:
            return parse(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"encoder: {path} cannot be read ({' '.join(str(error).split())})") from error

    def mapping(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError(f"expected values by name, got {type(value).__name__}")
        return value

    def results(text: str) -> list[dict[str, Any]]:
        found = [mapping(json.loads(line)) for line in text.splitlines() if line.strip()]
        _figures(found)
        return found

    recipe = read("recipe.yaml", lambda text: mapping(yaml.safe_load(text)))
    environment = read("environment.json", lambda text: mapping(json.loads(text)))
    return recipe, environment, list(read("results.jsonl", results))


def _last_row(run: Path | None) -> dict[str, str]:
    """Of metrics.csv."""
    path = run / "metrics.csv" if run else None
    if path is None or not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows[-1] if rows else {}


def _text(value: object) -> str:
    """As plain text inside Markdown: one line, no markup."""
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\`*_{}\[\]<>|#~&$!])", r"\\\1", " ".join(line.split()))


def without_folders(line: str) -> str:
    """Of an absolute path only the end: the folders of somebody's machine are nobody else's business."""
    return re.sub(r"(?:(?<=\s)|^)(?:~|[A-Za-z]:)?[\\/](?=\S).*[\\/](?=[^\\/\s])", "", line.rstrip("\\/"))


def _place(value: object) -> str:
    return _text(without_folders(str(value)))


def _rows(head: tuple[str, ...], rows: Iterable[Iterable[str]], align: str = "---") -> str:
    lines = [head, ("---", *[align] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _what_it_is(encoder: Encoder, trained_here: bool) -> str:
    spec = encoder.spec
    size = f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters"
    stem = ", small stem" if spec.small_stem else ""
    channels = "" if spec.channels == 3 else f" and {spec.channels} channel{'s' if spec.channels > 1 else ''}"
    what = (
        f"{_text(spec.backbone)} ({size}{stem}): {encoder.num_features} features of images of "
        f"{spec.image_size} x {spec.image_size} pixels{channels}."
    )
    if encoder.untrained:
        how = "**It is untrained**: the weights are random, good only to compare others with."
    elif trained_here:
        how = f"Learned from images without labels by {METHOD}, with mec-ssl."
    else:
        how = f"Its origin: {_place(encoder.origin)}." if encoder.origin else "How it was trained is not recorded."
    deep = ""
    if spec.value_range is not None:
        low, high = spec.value_range
        deep = f" The images had more than 8 bits: {low:g} is 0 and {high:g} is 1 before normalization."
    return f"{what} {how}{deep}"


def _training(recipe: dict[str, Any], environment: dict[str, Any], last: dict[str, str]) -> Iterable[str]:
    machine = {
        "data": _place(environment["data"]) if "data" in environment else None,
        "images": f"{environment['images']:,}" if isinstance(environment.get("images"), int) else None,
        "labels": "none used",
    }
    rows = machine | {name: _setting(recipe, name) for name in SETTINGS}
    devices = environment.get("devices")
    rows |= {
        "devices": _text(", ".join(map(str, devices)) or f"CPU, {environment.get('cores')} cores")
        if isinstance(devices, list)
        else None,
        "processes": _setting(environment, "processes"),
        "precision": _setting(environment, "precision"),
        "started": _setting(environment, "started"),
        "seconds": _text(last["seconds"]) if last.get("seconds") else None,
        "system": _text(environment["platform"]) if "platform" in environment else None,
    }
    packages = environment.get("packages")
    if isinstance(packages, dict):
        versions = {"python": environment.get("python", "?")} | packages
        rows["packages"] = ", ".join(_text(f"{name} {version}") for name, version in versions.items())
    yield "## Training"
    yield _rows(("", ""), ((_text(name), value) for name, value in rows.items() if value is not None))
    settings = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
    yield "The whole recipe, for `mec pretrain DATA --recipe recipe.yaml --out RUN`:"
    yield f"{fence}yaml\n{settings}{fence}"


def _setting(tree: dict[str, Any], name: str) -> str | None:
    value: Any = tree
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return _text("null" if value is None else str(value).lower() if isinstance(value, bool) else value)


def _figures(results: list[dict[str, Any]]) -> list[str]:
    return [
        part
        for result in results
        for part in (f"### {_text(result['task'])}: {_place(result['data'])}", _table(result))
    ]


def _table(result: dict[str, Any]) -> str:
    """Accuracies in percent, ± their spread and / top-5, baselines below the encoder; then how it was measured."""
    figures: dict[str, dict[str, float]] = result["figures"]
    found = dict.fromkeys(column for values in figures.values() for column in values)
    columns = [c for c in found if not (c.endswith((" std", " top-5")) and c.rsplit(" ", 1)[0] in found)]
    if not columns:
        raise ValueError("a result without figures")

    def cell(values: dict[str, float], column: str) -> str:
        parts = (("", column), (" ± ", f"{column} std"), (" / ", f"{column} top-5"))
        return "".join(f"{sign}{100 * values[name]:.1f}" for sign, name in parts if name in values) or "-"

    rows = ((_text(row), *(cell(values, c) for c in columns)) for row, values in figures.items())
    table = _rows(("features", *map(_text, columns)), rows, "---:")
    return f"{table}\n\n{_text(result['protocol'])}; measured: {_place(result['encoder'])}, {_text(result['time'])}."


def _loading(encoder: Encoder, library: Library, name: str, repository: str | None) -> Iterable[str]:
    known: dict[str, Any] = {"features": encoder.num_features, "channels": encoder.spec.channels}
    known["where"] = "" if repository else "  # the path of this folder"
    if library == "timm":
        yield "With [timm](https://github.com/huggingface/pytorch-image-models):"
        source = f"hf-hub:{repository}" if repository else f"local-dir:{name}"
        yield TIMM_CODE.format(source=json.dumps(source), **known)
        yield "With mec (`pip install mec-ssl`):"
        source = f"hf:{repository}" if repository else name
    else:
        yield "With mec (`pip install mec-ssl`); timm has no such architecture:"
        source = repository.split("/")[1] if repository else name
        if repository:
            yield f"```sh\nhf download {repository} --local-dir {source}\n```"
    yield MEC_CODE.format(source=json.dumps(source), **known)


def _limits(encoder: Encoder, results: list[dict[str, Any]]) -> str:
    tasks = ", ".join(sorted({_text(result["task"]) for result in results}))
    measured = (
        f"Only what stands under Figures was measured ({tasks}): no other task or images, no robustness, and no bias "
        "that the training images may carry."
        if results
        else "Nothing was measured: no task, no robustness, and no bias that the training images may carry."
    )
    return (
        f"{measured} It gives features, not classes; what is built on them has to be measured itself. "
        f"Transparent images were laid on {_text(encoder.spec.background)}."
    )
