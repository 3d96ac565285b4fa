"""Write the model card of an encoder: architecture, training, metrics, loading code, limits."""

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
from mec.results import RESULTS, Result, cells, titles

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
    "projector.hidden_dim", "projector.output_dim", "teacher.enabled", "optimizer.name", "optimizer.lr",
    "optimizer.weight_decay", "views", "seed",
)  # fmt: skip
"""Recipe settings in the training table; the whole recipe follows it."""

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
    """Return the README.md of a model folder: YAML front matter, then Markdown.

    Args:
        encoder: the exported encoder.
        library: library that loads the folder.
        name: name of the folder.
        repository: owner/name on the Hugging Face hub, where it is pushed there.
        run: run folder that the encoder comes from; None: training and metrics are left out.
        license: license of the weights.

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
        "## Metrics",
        *(_metrics(results) or ["Nothing was measured with this encoder."]),
        "## Loading",
        *_loading(encoder, library, name, repository),
        "## Limits",
        _limits(encoder, results),
        "## License",
        f"The weights are under {_text(license)}." if license else
        "No license was chosen for these weights; ask their authors before you use them.",
        "## Citation",
        CITATION,
    ]  # fmt: skip
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(sections) + "\n"


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any], list[Result]]:
    """Recipe, environment and results of a run folder; each is empty where its file is absent."""

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

    def results(text: str) -> list[Result]:
        return [Result.from_dict(mapping(json.loads(line))) for line in text.splitlines() if line.strip()]

    recipe = read("recipe.yaml", lambda text: mapping(yaml.safe_load(text)))
    environment = read("environment.json", lambda text: mapping(json.loads(text)))
    return recipe, environment, list(read(RESULTS, results))


def _last_row(run: Path | None) -> dict[str, str]:
    """Last row of metrics.csv; empty without the file."""
    path = run / "metrics.csv" if run else None
    if path is None or not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows[-1] if rows else {}


def _text(value: object) -> str:
    """Escape a value as one line of plain text in Markdown."""
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return re.sub(r"([\\`*_{}\[\]<>|#~&$!])", r"\\\1", " ".join(line.split()))


def without_folders(line: str) -> str:
    """Cut absolute paths in a line to their last part: folders of a private machine do not belong in a public card."""
    return re.sub(r"(?:(?<=\s)|^)(?:~|[A-Za-z]:)?[\\/](?=\S).*[\\/](?=[^\\/\s])", "", line.rstrip("\\/"))


def _without_folders(value: object) -> str:
    return _text(without_folders(str(value)))


def _markdown_table(head: tuple[str, ...], rows: Iterable[Iterable[str]], align: str = "---") -> str:
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
        how = "**Untrained**: the weights are random, a baseline for comparison."
    elif trained_here:
        how = f"Learned from images without labels by {METHOD}, with mec-ssl."
    else:
        how = f"Origin: {_without_folders(encoder.origin)}." if encoder.origin else "Its training is not recorded."
    deep = ""
    if spec.value_range is not None:
        low, high = spec.value_range
        deep = f" The images had more than 8 bits: {low:g} is 0 and {high:g} is 1 before normalization."
    return f"{what} {how}{deep}"


def _training(recipe: dict[str, Any], environment: dict[str, Any], last: dict[str, str]) -> Iterable[str]:
    machine = {
        "data": _without_folders(environment["data"]) if "data" in environment else None,
        "images": f"{environment['images']:,}" if isinstance(environment.get("images"), int) else None,
        "labels": "none used",
    }
    rows = machine | {name: _setting(recipe, name) for name in SETTINGS}
    devices = environment.get("gpus")
    rows |= {
        "devices": _text(", ".join(map(str, devices)) or f"CPU, {environment.get('cpu_cores')} cores")
        if isinstance(devices, list)
        else None,
        "world size": _setting(environment, "world_size"),
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
    yield _markdown_table(("", ""), ((_text(name), value) for name, value in rows.items() if value is not None))
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


def _metrics(results: list[Result]) -> list[str]:
    return [
        section
        for result in results
        for section in (f"### {_text(result.task)}: {_without_folders(str(result.dataset))}", _table(result))
    ]


def _table(result: Result) -> str:
    """Metrics of the encoder and of the baselines, then the protocol."""
    columns = titles(result.rows.values())
    rows = ((_text(name), *map(_text, cells(row, columns))) for name, row in result.rows.items())
    table = _markdown_table(("features", *map(_text, columns.values())), rows, "---:")
    return f"{table}\n\n{_text(result.footnote)}; measured: {_without_folders(result.encoder)}, {_text(result.time)}."


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


def _limits(encoder: Encoder, results: list[Result]) -> str:
    tasks = ", ".join(sorted({_text(result.task) for result in results}))
    measured = (
        f"Only the metrics above were measured ({tasks}): no other task or images, no robustness, no bias of the "
        "training images."
        if results
        else "Nothing was measured: no task, no robustness, no bias of the training images."
    )
    return (
        f"{measured} The encoder gives features, not classes: measure what you build on them. "
        f"Transparent images were composited on {_text(encoder.spec.background)}."
    )
