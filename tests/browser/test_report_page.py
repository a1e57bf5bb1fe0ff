"""The page of a report in a browser: accessible, readable on a phone, and without requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from fastreid_al.config import OracleConfig, QuestionConfig, ReportConfig
from fastreid_al.runs import run_training, train
from fastreid_al.runs.report import write_report
from tests.support.browser import RULES, chromium
from tests.support.run_fixtures import _cache
from tests.support.tiny import tiny_config

__all__ = ["_cache"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def files(_cache: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of one run and of two."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_curves", lambda *_: None)
        for seed in (0, 1):
            config = replace(
                tiny_config(folder / f"run{seed}"),
                epochs=2,
                seed=seed,
                ask="random",
                questions=QuestionConfig(start=1, per_epoch=40),
                oracle=OracleConfig(error=0.2, unsure=0.1),
            )
            run_training(config)
    one, two = folder / "one.html", folder / "two.html"
    # Few of each, because axe-core looks at every element; four, so that some are folded.
    few = ReportConfig(str(folder / "run0"), str(one), clusters=3, queries=4, questions=6)
    write_report(replace(few, anonymise=True))
    write_report(replace(few, out=str(two), other=str(folder / "run1")))
    return {"one": one, "two": two}


@pytest.fixture(params=["one", "two"])
def file(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    return files[request.param]


def opened(browser: Browser, file: Path, **options: Any) -> tuple[Page, list[str], list[str]]:
    """The page, what the console said, and what was requested beside the page itself."""
    page = browser.new_page(**options)
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    others = [url for url in requests if url != file.as_uri() and not url.startswith("data:")]
    return page, said, others


def open_details(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("one", 390, "dark"), ("two", 1280, "light")]
)
def test_axe_finds_nothing(
    browser: Browser, files: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    screen = {"width": width, "height": 900}
    page, said, requests = opened(browser, files[name], viewport=screen, color_scheme=scheme)
    open_details(page)
    options = {"runOnly": list(RULES), "resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    assert [(v["impact"], v["id"], v["nodes"][0]["html"][:200]) for v in found] == []
    assert said == []
    assert requests == []
    page.close()


@pytest.mark.parametrize("width", [1280, 320])
def test_nothing_is_wider_than_the_screen(browser: Browser, file: Path, width: int) -> None:
    page, _, _ = opened(browser, file, viewport={"width": width, "height": 900})
    open_details(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_every_crop_is_drawn_and_keeps_its_size(browser: Browser, file: Path) -> None:
    page, _, _ = opened(browser, file, viewport={"width": 1280, "height": 900})
    open_details(page)
    wrong = page.evaluate(
        """() => [...document.querySelectorAll('.crop')].filter(crop => {
            const style = getComputedStyle(crop), box = crop.getBoundingClientRect();
            const drawn = style.backgroundImage.startsWith('url("data:image/webp');
            return !drawn || box.width !== 48 || box.height !== 96;
        }).length"""
    )
    assert page.locator(".crop").count() > 50
    assert wrong == 0
    page.close()


def test_the_keyboard_reaches_the_content_and_opens_details(browser: Browser, file: Path) -> None:
    page, _, _ = opened(browser, file, viewport={"width": 1280, "height": 900})
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None
    page.close()


def test_a_page_is_readable_without_scripts_and_prints_what_is_folded(
    browser: Browser, file: Path
) -> None:
    page, _, _ = opened(browser, file, java_script_enabled=False)
    assert page.locator("h2").count() >= 9
    page.close()
    page, _, _ = opened(browser, file, viewport={"width": 1280, "height": 900})
    page.emulate_media(media="print")
    folded = page.locator("details table").first
    assert folded.bounding_box() is not None
    assert folded.bounding_box()["height"] > 0  # type: ignore[index]
    assert page.locator("nav").is_hidden()
    assert len(page.pdf()) > 10_000
    page.close()
