"""The page in Chromium: charts, selection, zoom, phone, dark mode, print, without JavaScript."""

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mec.report.page import render_page
from mec.report.watch import LiveReport, create_server
from tests.report import test_watch
from tests.report.runs import HOSTILE_NAMES, make_contents, metrics_row, write_metrics, write_run
from tests.report.test_page import write_hostile_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
TITLES = ("north east.jpg", *HOSTILE_NAMES, "last.jpg")
slow_calls = test_watch.slow_calls


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a healthy run and one with hostile names."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / "plain", objective={"form": "cross", "order": 4}),
        write_hostile_run(folder / "<img src=x onerror=alert(4)>"),
    ]
    path = folder / "report.html"
    path.write_bytes(render_page(make_contents(*runs, names=TITLES)))
    return path


@pytest.fixture(scope="module")
def events() -> list[str]:
    """Console messages, errors, dialogs and network requests of pages. A correct page causes none."""
    return []


@pytest.fixture(autouse=True)
def no_events(events: list[str]) -> Iterator[None]:
    yield
    assert events == []


def open_page(browser: Any, file: Path, events: list[str], **options: Any) -> Any:
    page = browser.new_page(**options)
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    local = ("data:", "blob:", file.as_uri())
    page.on("request", lambda request: request.url.startswith(local) or events.append(request.url))
    page.goto(file.as_uri())
    if options.get("java_script_enabled", True):
        wait_until_ready(page)
    return page


def wait_until_ready(page: Any) -> None:
    page.wait_for_selector("html[data-ready=true]", state="attached", timeout=30_000)


# one page for all tests: opening a page takes a second
@pytest.fixture(scope="module")
def desktop(browser: Any, file: Path, events: list[str]) -> Any:
    return open_page(browser, file, events)


@pytest.fixture(scope="module")
def phone(browser: Any, file: Path, events: list[str]) -> Any:
    return open_page(browser, file, events, has_touch=True, is_mobile=True, viewport={"width": 360, "height": 740})


def wait_until(page: Any, condition: str) -> None:
    """Poll a condition. Playwright's wait_for_function needs eval, which the page's policy forbids."""
    for _ in range(150):
        with contextlib.suppress(playwright.Error):  # the page is reloading
            if page.evaluate(condition):
                return
        page.wait_for_timeout(100)
    raise AssertionError(f"timed out: {condition}")


def colors(page: Any) -> list[str]:
    return page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, document.querySelector('#chart-loss .js-line').style.stroke,"
        " document.querySelector('#chart-loss .xtick text').style.fill]"
    )


def test_all_charts_and_maps_are_drawn(desktop: Any) -> None:
    page = desktop
    for section in ("results", "features", "training", "settings"):
        assert page.locator(f"section#{section} h2").is_visible()
    charts = page.locator("section#training .plot")
    assert charts.count() == 13  # ten columns of metrics.csv, two probes of one run and one of the other
    assert page.locator(".modebar").count() == 0  # its icons would cover the curves
    for index in range(charts.count()):
        assert charts.nth(index).locator(".js-line").count() in (1, 2)
    assert page.locator("#map-0 .point").count() == len(TITLES)
    assert page.locator("#chart-spectrum .scatterlayer .js-line").count() == 2
    assert page.locator("#error").is_hidden()
    assert "radius of convergence 1" in page.locator("#chart-spectral_norm").text_content()
    assert "<img src=x onerror=alert(4)>" in page.locator(".runs").text_content()


def test_hovering_selects_an_image(desktop: Any) -> None:
    page = desktop
    selected: list[str] = []
    title = page.locator("#card-0 strong")
    for index in range(len(TITLES)):
        point = page.locator("#map-0 .point").nth(index)
        point.scroll_into_view_if_needed()
        for _ in range(20):  # a busy machine may miss a mouse movement
            point.hover(force=True)
            page.wait_for_timeout(60)
            if page.locator("#card-0.selected strong").count() and title.text_content() not in selected:
                break
            page.mouse.move(0, 0)
        selected.append(title.text_content())
    assert {text.strip() for text in selected} == {text.strip() for text in TITLES}
    thumbnail, sprites = (page.locator(f"#card-0 {name}").bounding_box() for name in (".thumbnail", ".sprites"))
    assert sprites["width"] == pytest.approx(4 * thumbnail["width"])  # four columns of thumbnails
    assert page.locator("#card-0 .sprites").is_visible()
    assert "cluster" in page.locator("#card-0 figcaption").text_content()


def test_arrow_keys_move_the_selection(desktop: Any) -> None:
    page = desktop
    page.evaluate("delete document.getElementById('map-0').selectedImage")
    page.locator("#map-0").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#card-0 strong").text_content() == TITLES[0]  # the rightmost image
    page.keyboard.press("ArrowRight")
    assert page.locator("#card-0 strong").text_content() == TITLES[0]
    page.keyboard.press("ArrowUp")
    assert page.locator("#card-0 strong").text_content() != TITLES[0]


def test_no_button_uploads_a_chart(phone: Any) -> None:
    """Newer versions of plotly have one by default."""
    titles = phone.locator(".modebar-btn").evaluate_all("buttons => buttons.map(b => b.dataset.title)")
    assert {"Zoom in", "Zoom out"} <= set(titles)
    assert not [title for title in titles if "share" in title.lower() or "cloud" in title.lower()]


def test_tapping_selects_an_image(phone: Any) -> None:
    phone.locator("#map-1 .point").first.scroll_into_view_if_needed()
    phone.locator("#map-1 .point").first.tap(force=True)
    phone.wait_for_selector("#card-1.selected strong")


def test_map_is_colored_by_label_or_cluster(desktop: Any) -> None:
    page = desktop
    assert page.locator("#map-0 .legendtext").all_text_contents() == ["x", "y"]
    page.locator("input[data-map='0'][value=cluster]").focus()
    page.keyboard.press("Space")
    assert page.locator("#map-0 .legendtext").all_text_contents() == ["cluster 0", "cluster 1"]
    assert page.locator("#map-1 .legendtext").all_text_contents() == ["x", "y"]


def test_zooming_one_chart_zooms_all(desktop: Any) -> None:
    page = desktop
    page.locator("#chart-loss .nsewdrag").scroll_into_view_if_needed()
    box = page.locator("#chart-loss .nsewdrag").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, middle, steps=5)
    page.mouse.up()
    x_range = "id => document.getElementById(id)._fullLayout.xaxis.range"
    wait_until(page, "document.getElementById('chart-lr')._fullLayout.xaxis.range[1] < 25")
    assert page.evaluate(x_range, "chart-loss") == page.evaluate(x_range, "chart-lr") == pytest.approx([10, 20], abs=2)
    for _ in range(20):  # on a busy machine the two clicks may be too far apart for a double-click
        page.mouse.dblclick(box["x"] + 50, middle)
        page.wait_for_timeout(300)
        if was_reset := page.evaluate(x_range, "chart-lr")[1] > 35:
            break
    assert was_reset


def test_x_axis_in_epochs_and_hidden_runs(desktop: Any) -> None:
    page = desktop
    last = "document.getElementById('chart-loss').data.map(t => [Math.max(...t.x), t.visible])"
    assert page.evaluate(last) == [[39, True], [39, True]]
    page.locator("input[name=x-axis][value=epoch]").check(force=True)
    assert page.evaluate(last) == [[3.9, True], [3.9, True]]
    (button := page.locator("button[data-run='1']")).click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(last)[1][1] == "legendonly"
    assert page.locator("#chart-loss .js-line").count() == 1
    button.click()
    page.locator("input[name=x-axis][value=step]").check(force=True)
    assert page.evaluate(last) == [[39, True], [39, True]]


def test_the_link_to_the_settings_opens_them(desktop: Any) -> None:
    assert not desktop.locator("table.settings").is_visible()
    desktop.locator("nav a[href='#settings']").click()
    assert desktop.locator("table.settings").is_visible()
    desktop.locator(".all-settings > summary").click()


def test_page_never_scrolls_horizontally(phone: Any) -> None:
    page_width = "document.documentElement.scrollWidth"
    assert phone.evaluate(page_width) <= 360
    phone.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    for width in (320, 768):
        phone.set_viewport_size({"width": width, "height": 740})
        wait_until(phone, f"{page_width} <= {width}")  # charts are resized with a delay


def test_charts_follow_dark_mode_and_print_is_light_and_fits_the_paper(desktop: Any) -> None:
    page = desktop
    light = colors(page)
    page.emulate_media(color_scheme="dark")
    wait_until(page, "getComputedStyle(document.body).backgroundColor == 'rgb(20, 23, 27)'")
    page.wait_for_timeout(100)
    dark = colors(page)
    assert all(a != b for a, b in zip(dark, light, strict=True))
    page.set_viewport_size({"width": 720, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    wait_until(page, "document.querySelector('.recipe').open")
    page.wait_for_timeout(200)
    assert colors(page)[0] == light[0] == "rgb(251, 251, 249)"
    assert page.locator("nav").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    fits = "[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg').clientWidth <= p.clientWidth)"
    assert page.evaluate(fits)
    page.emulate_media(media="screen", color_scheme="light")
    wait_until(page, "!document.querySelector('.recipe').open")


def test_page_without_javascript_has_tables_images_and_summaries(browser: Any, file: Path, events: list[str]) -> None:
    page = open_page(browser, file, events, java_script_enabled=False)
    for shown in (
        "noscript",
        "table.ranking",
        "table.results",
        ".bars",
        "#chart-loss-summary",
        ".sprites",
        ".neighbors img",
    ):
        assert page.locator(shown).first.is_visible()
    assert "0.025 at step 39" in page.locator("#chart-loss-summary").text_content()  # 1 / (1 + 39)
    assert page.locator(".plot").first.is_hidden()
    page.close()


def test_an_old_browser_shows_an_error_and_injected_scripts_do_not_run(
    browser: Any, file: Path, tmp_path: Path
) -> None:
    injected = file.read_bytes().replace(b"<main>", b"<main><script>window.ran = 1</script>", 1)
    (tmp_path / "r.html").write_bytes(injected)
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto((tmp_path / "r.html").as_uri())
    wait_until_ready(page)
    assert page.evaluate("window.ran") is None
    assert "This browser cannot draw the charts" in page.locator("#error").text_content()
    assert page.locator("#error").is_visible()
    assert page.locator("#chart-loss-summary").is_visible()
    page.close()


def test_page_reloads_when_the_run_changes(browser: Any, slow_calls: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_steps=20, finished=False)
    messages: list[str] = []
    with create_server(LiveReport([run], None, 10), None) as server:
        thread = threading.Thread(target=http.server.HTTPServer.serve_forever, args=(server, 0.05))
        thread.start()
        page = browser.new_page()
        page.add_init_script(
            "const timer = setTimeout; window.setTimeout = (f, ms) => timer(f, ms === 3000 ? 200 : ms)"
        )
        page.on("console", lambda m: messages.append(m.text))
        page.goto(f"http://localhost:{server.server_port}/")
        wait_until_ready(page)
        page.locator("input[name=x-axis][value=epoch]").check(force=True)
        page.evaluate("scrollTo({top: 600, behavior: 'instant'})")
        write_metrics(run, [metrics_row(step) for step in range(30)])
        wait_until(page, "document.getElementById('settings').textContent.includes('30 steps')")
        wait_until_ready(page)
        assert page.evaluate("Math.max(...document.getElementById('chart-loss').data[0].x)") == 2.9
        assert page.evaluate("scrollY") == pytest.approx(600, abs=2)
        assert messages == []
        server.shutdown()
        thread.join()
        server.server_close()
        wait_until(page, "document.getElementById('live-status').textContent.includes('does not respond')")
        page.close()
