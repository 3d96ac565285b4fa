"""The page as a file: what stands in it, how large it becomes, and that what is shown is never run."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mec.errors import InputError
from mec.report import page, write_report
from mec.report.schema import Missing, Published
from mec.report.tables import evaluations
from tests.report import folders
from tests.report.folders import NASTY, result, shown, write_run


class Tags(HTMLParser):
    """Every tag with its attributes, and all text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "title"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        self.text += "" if self.inside else data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def made(*runs: Path, **options: Any) -> Tags:
    return Tags(page.make_page(shown(*runs, **options)).decode())


def data_of(html: bytes) -> Any:
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html.decode())
    return json.loads(block)


def test_sections_settings_and_figures_of_two_runs(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=20, ended=False, backbone="vit_tiny", epochs=4)
    tags = made(a, b)
    assert [s["id"] for s in tags.of("section")] == ["run", "learning", "learned", "good"]
    assert len(tags.of("h1")) == 1
    assert {tag for tag, _ in tags.tags} >= {"main", "nav", "header", "footer", "noscript"}
    assert tags.of("html")[0]["lang"] == "en"
    before, _, after = tags.text.partition("The run")
    assert "Settings that differ" in before
    assert "vit_tiny" in before
    assert "epochs" not in before  # the same in both
    for words in ("40 steps, epoch 4 of 4", "20 steps, epoch 2 of 4", "not ended; last written 2", "torch 2.11.0"):
        assert words in after
    for words in ("91.2 / 99.0", "25.0", "weighted kNN", "0.87", "mec evaluate knn", "effective rank"):
        assert words in tags.text
    assert all(img.get("alt") for img in tags.of("img"))


def test_newest_results_side_by_side_with_baselines_and_published_figures(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    newer = result(figures={"encoder": {"k=20": 0.95, "k=20 std": 0.012}, "untrained": {"k=20": 0.4, "n": 7}})
    other = result("linear", protocol="another")
    with (b / "results.jsonl").open("a") as file:
        file.write(json.dumps(newer) + "\n" + json.dumps(other) + "\n")

    def published(result: Any) -> list[Published]:
        return [Published("ResNet-50", {"k=20": 0.671}, "Table 9")] if result["task"] == "knn" else []

    knn, linear = evaluations(page.read_records([a, b]), published)
    assert (knn.task, linear.task) == ("knn", "linear")
    assert knn.columns == ["k=20", "n"]
    assert [(line.kind, line.run, line.name, line.cells) for line in knn.lines] == [
        ("encoder", "a", "", ["91.2 / 99.0", "-"]),
        ("encoder", "b", "", ["95.0 ± 1.2", "-"]),
        ("baseline", "a", "untrained", ["50.0", "-"]),
        ("baseline", "a", "raw pixels", ["25.0", "-"]),
        ("baseline", "b", "untrained", ["40.0", "7"]),
        ("published", "", "ResNet-50", ["67.1", "-"]),
    ]
    assert [line.run for line in linear.lines] == ["b"] * 3


def test_same_baselines_stand_once_and_encoders_of_one_folder_apart(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (only,) = evaluations(page.read_records([a, b]), lambda _: [])
    assert [(line.run, line.name) for line in only.lines if line.kind == "baseline"] == [
        ("", "untrained"),
        ("", "raw pixels"),
    ]
    with (a / "results.jsonl").open("a") as file:
        file.write(json.dumps(result(encoder="resnet50")) + "\n")
    (only,) = evaluations(page.read_records([a]), lambda _: [])
    assert [line.run for line in only.lines if line.kind == "encoder"] == ["a: an encoder", "a: resnet50"]


def test_figures_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "results.jsonl").write_text('{"task":"t","protocol":"p","data":"d","encoder":"e","figures":{"encoder":')
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"AP":NaN,"n":3}}}\n')
    (only,) = evaluations(page.read_records([folder]), lambda _: [])
    assert only.lines[0].cells == ["3"]


def nasty_run(folder: Path) -> Path:
    """Every text that comes from outside is one of those that would do harm."""
    folder = write_run(folder, backbone=NASTY[0], **{NASTY[1]: NASTY[2]})
    about = dict(zip(("data", "platform", "command", "started", "precision", "python"), NASTY, strict=True))
    numbers = {"images": 640, "batch": 64, "devices": [NASTY[2]], "packages": {NASTY[0]: NASTY[1]}}
    (folder / "environment.json").write_text(json.dumps(about | numbers))
    figures = {"encoder": {NASTY[0]: 0.5}, NASTY[1]: {NASTY[0]: 0.25}}
    odd = result(NASTY[0], protocol=NASTY[1], data=NASTY[3], encoder=NASTY[4], figures=figures, command=NASTY[2])
    (folder / "results.jsonl").write_text(json.dumps(odd | {"broken": {NASTY[0]: NASTY[2]}}) + "\n")
    (folder / "probes.csv").write_text(f'epoch,step,"{NASTY[0]}",seconds\n1,10,0.5,1\n')
    return folder


def test_names_are_text_and_never_tags(tmp_path: Path) -> None:
    run = nasty_run(tmp_path / "<img src=x onerror=alert(3)>&")
    html = page.make_page(shown(run, names=NASTY))
    tags = Tags(html.decode())
    assert [s.get("type") for s in tags.of("script")] == ["application/json", "text/plain", None]
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert all((img["src"] or "").startswith("data:image/") for img in tags.of("img"))
    for name in NASTY:
        assert name.strip() in tags.text
    assert data_of(html)["maps"]["0"]["titles"] == list(NASTY)
    assert "\u2028" not in re.findall(r'id="data">(.*?)</script>', html.decode(), re.DOTALL)[0]
    assert "49" not in re.findall(r"<h1>.*?</h1>", html.decode())[0]


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    assert b"b\\udcff" in page.make_page(shown(run, names=["a", "b\udcff"]))  # in JSON; in HTML as a question mark


def test_policy_lets_only_the_pages_own_scripts_run_and_nothing_load(tmp_path: Path) -> None:
    tags = made(write_run(tmp_path / "a"))
    (policy,) = [m["content"] or "" for m in tags.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    assert rules["script-src"].count("sha256-") == 2
    assert "connect-src" not in rules
    assert not tags.of("iframe") + tags.of("form") + [link for link in tags.of("link") if link["rel"] != "icon"]


@pytest.mark.parametrize(("runs", "size"), [(1, 300_000), (3, 1_500_000), (40, 200_000)])
def test_page_stays_below_5_mb(tmp_path: Path, runs: int, size: int) -> None:
    name = "n" * 200
    for n in range(runs):
        write_run(tmp_path / f"{name}{n}", steps=3_000 if runs < 40 else 600, data="d" * 5_000)
    titles = ["t" * 3_000] * (1_000 // runs)
    html = page.make_page(shown(*sorted(tmp_path.iterdir()), names=titles, size=size))
    assert len(html) < 5_000_000
    assert (page.NO_ROOM in html.decode()) == (runs > 1)
    assert len(data_of(html)["curves"]["chart-loss"]["data"]) == runs


def test_more_runs_than_a_page_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LIMIT", 100_000)
    with pytest.raises(InputError, match="runs: the tables of 1 runs"):
        page.make_page(shown(write_run(tmp_path / "a")))


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing is looked at; with what it would have been."""
    asked: list[Any] = []

    def learned(*arguments: Any) -> Missing:
        asked.append(arguments[:3])
        return Missing("No checkpoint <yet>.")

    monkeypatch.setattr(page, "learned", learned)
    monkeypatch.setattr(page, "views", lambda *_: folders.views())
    monkeypatch.setattr(page, "gallery", lambda _: [])
    return asked


def test_report_is_written_beside_the_first_run(tmp_path: Path, unseen: Sequence[Any]) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    path = write_report([a, b], data="digits", images=100)
    assert path == a / "report.html"
    assert unseen == [(a, "digits", 50), (b, "digits", 50)]
    text = Tags(path.read_text()).text
    assert text.count("No checkpoint <yet>.") == 2
    assert sorted(p.name for p in a.iterdir()) == sorted([p.name for p in b.iterdir()] + ["report.html"])


def test_what_is_missing_says_why(tmp_path: Path, unseen: Sequence[Any]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "results.jsonl").write_text(json.dumps(result()) + "\n{")
    text = Tags(write_report([folder], tmp_path / "r.html").read_text()).text
    for words in ("evaluations only", "No run here has written metrics.csv", "there is no encoder", "line is not a"):
        assert words in text
    assert unseen == []
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "recipe.yaml").write_text("epochs: 1\n")
    text = Tags(write_report([bare]).read_text()).text
    assert "No evaluation is in results.jsonl yet" in text
    assert "No step has been written" in text


@pytest.mark.parametrize("out", ["", "report", "r.pdf"])
def test_where_no_page_can_be_written(tmp_path: Path, unseen: Sequence[Any], out: str) -> None:
    run = write_run(tmp_path / "a")
    with pytest.raises(InputError, match=r"out: expected a file that ends with \.html"):
        write_report([run], tmp_path / out)
    with pytest.raises(InputError, match="images: expected"):
        write_report([run], images=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out: .* cannot be written"):
        write_report([run], tmp_path / "file" / "r.html")
