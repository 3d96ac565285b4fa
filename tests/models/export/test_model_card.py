import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mec.errors import InputError
from mec.models import save_encoder, untrained
from mec.models.export import export
from mec.results import DatasetSummary, Metric, Protocol, Result, to_metrics
from tests.models.perturbed import NARROW, perturbed_encoder

MARKUP = "a|b `c` <script>\n# *d* [e](f) é"
RECIPE = {
    "backbone": "resnet18", "image_size": 96, "epochs": 20, "batch_size": 64, "seed": 3,
    "objective": {"form": "pooled", "distortion": 0.03125, "order": None},
    "optimizer": {"name": "adamw", "lr": 0.002}, "background": "``` # not: [the end",
}  # fmt: skip
ENVIRONMENT = {
    "data": "/home/jane doe/photos", "images": 12345, "python": "3.11.2", "platform": "Linux-6.1", "cpu_cores": 8,
    "gpus": ["Accelerator X"], "world_size": 1, "precision": "32-true", "started": "2026-01-02T03:04:05+00:00",
    "packages": {"mec-ssl": "0.1.0", "torch": "2.11.0"},
}  # fmt: skip
RESULTS = [
    Result(
        task="few-shot",
        protocol=Protocol("few-shot", {"classifier": "nearest class mean", "trials": 20}),
        dataset=DatasetSummary("/home/jane doe/pets", {"train": 900, "test": 100, "classes": 3}),
        encoder="/home/jane doe/run",
        rows={
            "encoder": [Metric("1 shot", 0.8125, std=0.0312, n=20)],
            "untrained": [Metric("1 shot", 0.4, std=0.05, n=20)],
            "raw pixels": [Metric("1 shot", 0.3, std=0.01, n=20)],
        },
        seconds=3.0,
        command="mec evaluate few-shot /home/jane",
        time="2026-01-02T04:00:00+00:00",
    ),
    Result(
        task="knn",
        protocol=Protocol(MARKUP, {}),
        dataset=DatasetSummary(MARKUP, {"test": 1}),
        encoder="run",
        rows={
            "encoder": to_metrics({"k=20": 0.9, "k=20 top-5": 0.99, "k=50": 0.8}),
            "raw pixels": to_metrics({"k=20": 0.5}),
        },
        seconds=1.0,
        command="mec",
        time="2026-01-02T05:00:00+00:00",
    ),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_encoder(perturbed_encoder("resnet18", 96, options=NARROW), folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "metrics.csv").write_text("step,loss,seconds\n10,-1.0,12.5\n20,-2.0,321.5\n")
    for result in RESULTS:
        result.append_to(folder)
    return folder


def card_of(source, out: Path, **settings) -> ModelCard:
    return ModelCard.load(export(source, "huggingface", out, **settings) / "README.md")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_card_describes_the_run(run: Path, tmp_path: Path) -> None:
    card = card_of(run, tmp_path / "photographs", license="Apache-2.0")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "maximum-entropy-coding" in card.data.tags
    few_shot, knn = card.data.eval_results[0], card.data.eval_results[1:]
    assert (few_shot.metric_name, few_shot.metric_value) == ("few-shot: 1 shot (%)", 0.8125)
    assert few_shot.dataset_name == "pets (900 train, 100 test, 3 classes)"
    assert [result.metric_value for result in knn] == [0.9, 0.99, 0.8]
    text = card.text
    assert "# photographs\n" in text
    for row in (
        "| data | photos |",
        "| images | 12,345 |",
        "| epochs | 20 |",
        "| objective.order | null |",
        "| optimizer.lr | 0.002 |",
        "| devices | Accelerator X |",
        "| seconds | 321.5 |",
        "| packages | python 3.11.2, mec-ssl 0.1.0, torch 2.11.0 |",
        "| features | 1 shot (%) |\n| --- | ---: |\n| encoder | 81.2 ± 3.1 |\n| untrained | 40.0 ± 5.0 |\n| raw",
    ):
        assert row in text
    assert "few-shot: pets (900 train, 100 test, 3 classes)" in text
    assert "liu2022mec" in text
    assert "apache-2.0" in text
    assert "few-shot, knn" in text.split("## Limits")[1]
    # the recipe reads back equal, whatever it holds
    fence, body = re.search(r"\n(`{4,})yaml\n(.*?)\n\1\n", text, re.DOTALL).groups()
    assert yaml.safe_load(body) == RECIPE
    assert fence == "````"
    assert "/home" not in text
    assert "jane" not in text


def test_text_of_the_run_is_escaped(run: Path, tmp_path: Path) -> None:
    text = card_of(run, tmp_path / "e").text
    escaped = "a\\|b \\`c\\` \\<script\\> \\# \\*d\\* \\[e\\](f) é"
    assert f"### knn: {escaped} (1 test)\n" in text
    assert f"\n{escaped}; measured: run" in text
    rows = (
        "| features | k=20 (%) | k=50 (%) |",
        "| --- | ---: | ---: |",
        "| encoder | 90.0 / 99.0 | 80.0 |",
        "| raw pixels | 50.0 | - |",
    )
    assert "\n".join(rows) in text


def test_code_of_the_card_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = perturbed_encoder("resnet18", 32, 2, options=NARROW)
    for source, name, blocks in ((run, "a b", 2), (small, "small", 1)):
        card = card_of(source, tmp_path / name)
        monkeypatch.chdir(tmp_path)
        code = python_blocks(card.text)
        assert len(code) == blocks
        for block in code:
            names: dict = {}
            exec(compile(block, "card", "exec"), names)
            assert names["features"].shape == (2, 16)
        assert card.data.library_name == ("timm" if blocks == 2 else "mec-ssl")


def test_card_of_an_encoder_without_a_run(tmp_path: Path) -> None:
    encoder = perturbed_encoder("resnet18", 96, 1, options=NARROW, value_range=(0, 4095))
    card = card_of(encoder, tmp_path / "a")
    assert card.data.license == "unknown"
    assert "No license was chosen" in card.text
    assert "Its training is not recorded." in card.text
    assert "Nothing was measured" in card.text
    assert "0 is 0 and 4095 is 1" in card.text
    assert "1 channel." in card.text
    assert "## Training" not in card.text
    encoder.origin = "DINO's teacher of /home/jane/dino.pth"
    assert "Origin: DINO's teacher of dino.pth." in card_of(encoder, tmp_path / "b").text
    assert "**Untrained**" in card_of(untrained(encoder), tmp_path / "c").text


def test_card_of_a_run_without_results(run: Path, tmp_path: Path) -> None:
    for name in ("results.jsonl", "metrics.csv", "environment.json"):
        (run / name).unlink()
    text = card_of(run / "encoder.safetensors", tmp_path / "e").text
    assert "Nothing was measured with this encoder." in text
    assert "| epochs | 20 |" in text


def test_hub_dataset_is_linked(run: Path, tmp_path: Path) -> None:
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT | {"data": "hf:owner/flowers"}))
    assert card_of(run, tmp_path / "e").data.datasets == ["owner/flowers"]


def test_damaged_files_of_the_run_are_an_error(run: Path, tmp_path: Path) -> None:
    for name, content in (
        ("results.jsonl", "[1]"),
        ("results.jsonl", '{"task": "knn", "rows": {}}'),
        ("environment.json", "{"),
        ("recipe.yaml", "text"),
        ("recipe.yaml", "a: [b"),
    ):  # in the reverse of the order in which they are read
        (run / name).write_text(content)
        with pytest.raises(InputError, match=rf"encoder: .*{name}") as caught:
            card_of(run, tmp_path / "e")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("length", "shown"),
    [
        ({"steps": None, "minutes": None}, {"epochs": "20"}),
        ({"steps": 700}, {"steps": "700"}),
        ({"steps": 700, "minutes": 5.0}, {"steps": "700", "minutes": "5.0"}),
    ],
)
def test_the_length_of_the_run_is_that_it_had(run: Path, length: dict, shown: dict, tmp_path: Path) -> None:
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | length))
    card = (export(run, "huggingface", tmp_path / "card") / "README.md").read_text()
    rows = dict(re.findall(r"^\| (epochs|steps|minutes) \| (\S+) \|$", card, re.M))
    assert rows == shown
