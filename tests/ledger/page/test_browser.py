"""The page in a real Chromium, without a network."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledgers import make_ledger, write_hostile

from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run, read_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SMALLEST = 11.0
"""Pixels of a letter's size, below which nobody reads on a phone."""

pytestmark = pytest.mark.slow


def chromium() -> str | None:
    """Find a Chromium: the variable CHROMIUM, or one on the path."""
    found = [os.environ.get("CHROMIUM", ""), *map(shutil.which, BROWSERS)]
    return next((path for path in found if path), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    path = chromium()
    if path is None:
        if os.environ.get("FLWR_AUTOFLIP_NEEDS_CHROMIUM"):
            pytest.fail("no Chromium, though FLWR_AUTOFLIP_NEEDS_CHROMIUM is set.")
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to one.")
    with api.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of one run, of several and of a stranger's, on disk."""
    folder = tmp_path_factory.mktemp("pages")
    run = Run("one", make_ledger(None, 30, 12, faults=True).rows)
    old = Run("older", make_ledger(None, 20, 12, ratio=0.5, old=True).rows)
    dense = Run("a-run-with-a-long-name", make_ledger(None, 30, 12, ratio=1.0).rows)
    (hostile,) = read_runs([write_hostile(folder)])
    pages = {"one": [run], "several": [run, old, dense], "hostile": [hostile]}
    for name, runs in pages.items():
        (folder / f"{name}.html").write_text(render_page(runs))
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(params=["one", "several"])
def page(
    browser: Any, files: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[Any]:
    """A page at a phone's width; requests and errors are noted."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("dialog", lambda dialog: page.faults.append(dialog.message))
    page.goto(files[request.param].as_uri())
    yield page
    page.close()


def test_it_opens_from_disk_and_asks_for_nothing(page: Any) -> None:
    page.wait_for_load_state("networkidle")

    asked = [url for url in page.asked if not url.startswith("data:")]
    assert asked == [page.url]
    assert page.url.startswith("file:")
    assert page.faults == []


MARKS = """() => [...document.querySelectorAll("svg.chart")].map((chart) => {
  const frame = chart.getBoundingClientRect();
  return [...chart.querySelectorAll("path[style*='--s']")].filter((mark) => {
    const box = mark.getBoundingClientRect();
    return box.width + box.height > 3 && box.left >= frame.left - 2 &&
      box.right <= frame.right + 2 && box.bottom <= frame.bottom + 2;
  }).length;
})"""
STRIPS = """() => [...document.querySelectorAll("img.strip")].map((strip) =>
  strip.complete && strip.naturalWidth > 1 && strip.clientWidth > 100 && strip.alt)"""


def test_every_chart_has_marks_inside_it(page: Any) -> None:
    charts, strips = page.evaluate(MARKS), page.evaluate(STRIPS)

    assert len(charts) in (5 + 2, 5 + 6)
    assert len(strips) in (6, 15)
    assert all(charts), charts
    assert all(strips), strips


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SIZES = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility() &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((e) => {
    const scale = e.ownerSVGElement ? e.getScreenCTM().a : 1;
    return [parseFloat(getComputedStyle(e).fontSize) * scale, e.textContent];
  })"""
TEXTS = """() => [...document.querySelectorAll("svg.chart")].flatMap((chart) => {
  const texts = [...chart.querySelectorAll("text")];
  const boxes = texts.map((t) => t.getBoundingClientRect());
  const frame = chart.closest(".card").getBoundingClientRect();
  const clashes = [];
  boxes.forEach((a, i) => {
    if (a.left < frame.left || a.right > frame.right) {
      clashes.push("outside: " + texts[i].textContent);
    }
    boxes.slice(i + 1).forEach((b, j) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 &&
          a.top < b.bottom - 2 && b.top < a.bottom - 2) {
        clashes.push(texts[i].textContent + " / " + texts[i + 1 + j].textContent);
      }
    });
  });
  return clashes;
})"""


@pytest.mark.parametrize("width", [360, 390, 700, 1200])
def test_it_is_legible_at_every_width(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 740})

    sizes = page.evaluate(SIZES)

    assert page.evaluate(OVERFLOW) == 0
    assert len(sizes) > 50
    assert [found for found in sizes if found[0] < SMALLEST] == []
    assert page.evaluate(TEXTS) == []


COLOURS = """() => {
  const paint = document.createElement("canvas").getContext("2d");
  const numbers = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const found = numbers(getComputedStyle(e).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const shown = (query, property) => [...document.querySelectorAll(query)]
    .filter((e) => e.checkVisibility())
    .map((e) => [numbers(getComputedStyle(e)[property]), ground(e.parentElement),
      e.textContent || e.getAttribute("style")]);
  const words = "h1, h2, h3, p, dt, dd, td, th button, li, footer, summary, span";
  return {
    texts: [...shown(words, "color"), ...shown("text", "fill")],
    marks: [...shown("path[style*='stroke: var(--s']:not([style*=opacity])", "stroke"),
      ...shown("path[style*='fill: var(--s'][style*='--s0'], " +
        "path[style*='fill: var(--s2)']", "fill"),
      ...shown("i.key:not(.line)", "backgroundColor")],
  };
}"""


def luminance(colour: list[int]) -> float:
    """WCAG 2's relative luminance of sRGB."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in colour[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2's contrast, 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_marks_stand_out(page: Any, scheme: str) -> None:
    """WCAG 2 AA: 4.5 for texts, 3 for what a chart draws."""
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)
    page.emulate_media(color_scheme=scheme)

    found = page.evaluate(COLOURS)

    grounds = {round(luminance(ground)) for _, ground, _ in found["texts"]}
    assert grounds == ({0} if scheme == "dark" else {1})
    assert len(found["texts"]) > 50
    assert len(found["marks"]) > 12
    assert [t for t in found["texts"] if contrast(t[0], t[1]) < 4.5] == []
    assert [m for m in found["marks"] if contrast(m[0], m[1]) < 3] == []


def cells(page: Any, place: int) -> list[str]:
    """What the first table's column is sorted by, from above."""
    script = """(place) => [...document.querySelector("table.sortable").tBodies[0].rows]
      .map((row) => row.cells[place].dataset.value ?? row.cells[place].textContent)"""
    found: list[str] = page.evaluate(script, place)
    return found


def test_tables_sort_when_a_head_is_clicked(page: Any) -> None:
    heads = page.locator("table.sortable").first.locator("th button")
    names = heads.all_text_contents()
    place = names.index("bytes down" if "bytes down" in names else "bytes moved")
    before = cells(page, place)

    heads.nth(place).click()
    falling = cells(page, place)
    heads.nth(place).click()
    rising = cells(page, place)
    heads.nth(0).click()
    by_name = cells(page, 0)

    assert len(set(before)) > 1
    assert falling == sorted(before, key=float, reverse=True)
    assert rising == sorted(before, key=float)
    whole = all(name.isdecimal() for name in by_name)
    assert by_name == sorted(by_name, key=int if whole else None, reverse=True)
    sorts = [head.get_attribute("aria-sort") for head in page.locator("th").all()]
    assert sorts.count("descending") == 1
    assert sorts.count("ascending") == 0


@pytest.mark.parametrize("page", ["several"], indirect=True)
def test_figures_nobody_took_sort_last(page: Any) -> None:
    heads = page.locator("table.sortable").first.locator("th button")
    place = heads.all_text_contents().index("bytes saved")  # unknown in the older one

    for _ in range(2):
        heads.nth(place).click()
        assert cells(page, place)[-1] == ""


@pytest.mark.parametrize("page", ["hostile"], indirect=True)
def test_a_strangers_names_run_nothing(page: Any) -> None:
    page.locator("table.sortable").first.locator("th button").first.click()

    assert page.faults == []
    assert page.locator("script").count() == 1
    assert page.evaluate(OVERFLOW) == 0
    assert "</script><script>alert(1)</script>" in page.inner_text("main")
