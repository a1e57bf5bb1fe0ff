"""The annotation page in a browser: people, keys, sheets, outages, accessibility."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, expect

from fastreid_al.answers.database import LEASES, QUESTIONS
from fastreid_al.answers.ledger import Ledger
from tests.answers.conftest import running_postgres
from tests.support.browser import RULES, chromium
from tests.support.labelling import Running, Site, pairs, serving

pytestmark = pytest.mark.slow

#: Seconds for which a database is away.
OUTAGE = float(os.environ.get("FASTREID_AL_OUTAGE", "8"))

#: A question about groups of images, a sheet of three, and ten questions about pairs.
TASKS = [
    [([0, *range(20, 32)], [1, 32, 33])],
    [([2, 34], [3]), ([2, 34], [4, 35]), ([2, 34], [5])],
    *pairs(7, 6),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


class Window:
    """A page of a person, and what its console said.

    Args:
        context: The browser's profile.
        url: The address to open.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.said: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(url)

    def task(self) -> str:
        """Wait until a question with its images is there; return what is shown."""
        self.page.wait_for_function(
            """() => {
                const kind = document.body.dataset.kind;
                if (kind !== 'pair' && kind !== 'sheet') return false;
                return [...document.querySelectorAll(`#${kind} .frame img`)].every(
                    (img) => img.complete && img.naturalWidth > 0);
            }"""
        )
        return str(self.page.locator(".frame img:visible").first.get_attribute("src"))

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 15) -> None:
        for _ in range(int(seconds * 20)):
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"not within {seconds} s; the console said {self.said}")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture
def make(
    browser: Browser, tmp_path: Path
) -> Iterator[Callable[..., tuple[Site, Running, Callable[..., Window]]]]:
    """Serve tasks, and return what opens windows of people."""
    contexts: list[BrowserContext] = []
    closing: list[Any] = []

    def build(tasks: Any = TASKS, **options: Any) -> Any:
        site = Site(tmp_path, tasks, **options)
        served = serving(site)
        running = served.__enter__()
        closing.append(served)

        def open_window(path: str = "/", **screen: Any) -> Window:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **screen})
            contexts.append(context)
            return Window(context, running.url + path)

        return site, running, open_window

    yield build
    for context in contexts:
        context.close()
    for served in closing:
        served.__exit__(None, None, None)


def answers(site: Site) -> list[Any]:
    return [event for event in site.events() if event.kind == "answer"]


def leases(site: Site) -> int:
    """Questions that somebody has on the screen, or loaded beforehand."""
    with site.read_ledger() as ledger, ledger.store.reading() as connection:
        return len(connection.execute(LEASES.select()).all())


def test_two_people_answer_everything_by_keys_and_nothing_twice(make: Any) -> None:
    site, _, open_window = make(pairs(16))
    windows = [open_window(f"/link/{site.person(name)[1]}") for name in ("anna", "ben")]
    for turn in range(8):
        for window, key in zip(windows, "sd", strict=True):
            before = len(answers(site))
            window.task()
            window.press(key if turn else "u")
            window.wait_for(lambda n=before: len(answers(site)) == n + 1)
    given = answers(site)
    assert len(given) == len({event.question for event in given}) == 16
    said = {name: [e.verdict for e in given if e.annotator == name] for name in ("anna", "ben")}
    assert said["anna"] == ["unsure"] + ["same"] * 7
    assert said["ben"] == ["unsure"] + ["different"] * 7
    for window in windows:
        expect(window.page.locator("#waiting")).to_be_visible()
        assert window.said == []


def test_marks_confirmations_and_comments_are_sent_with_the_answer(make: Any) -> None:
    site, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    assert window.page.locator('.side[data-side="left"] .thumb').count() == 9
    assert "about 39 pairs of images" in window.text("#count")
    window.press("2")
    window.press("ArrowRight")
    window.press("1")
    window.press("Shift+Enter")
    window.press("c")
    window.page.locator("#comment-text").fill("too dark")
    window.page.locator('[name=tag][value="mixed"]').check()
    window.page.get_by_role("button", name="Keep").click()
    assert "2 images marked" in window.text("#noted")
    window.press("d")
    window.wait_for(lambda: len(answers(site)) > 0)
    first, *members = answers(site)
    assert (first.verdict, first.comment, first.tags) == ("different", "too dark", "mixed")
    odd = {e.right for e in members if e.verdict == "different"}
    assert odd == {"021.jpg", "032.jpg"}
    # Nine thumbnails of the left side were on the screen, and both of the right one.
    assert len(members) == 9 + 2
    assert window.said == []


def test_both_sides_are_next_to_each_other_at_the_same_size(make: Any) -> None:
    _, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    left, right = (
        window.page.locator(f'[data-side="{side}"] .frame').bounding_box()
        for side in ("left", "right")
    )
    assert left is not None and right is not None
    assert left["x"] + left["width"] <= right["x"]
    assert (left["y"], left["width"], left["height"]) == (
        right["y"],
        right["width"],
        right["height"],
    )


def test_the_page_asks_no_other_server(make: Any) -> None:
    site, running, open_window = make(local="anna")
    window = open_window("/mine")
    asked: list[str] = []
    window.page.on("request", lambda request: asked.append(request.url))
    # As on a machine without a network: whatever is not this machine fails.
    window.page.context.route(
        lambda url: not url.startswith((running.url, "data:")), lambda route: route.abort()
    )
    for path in ("/mine", "/people", "/contradictions", "/"):
        window.page.goto(running.url + path)
    window.task()
    window.press("s")
    window.wait_for(lambda: len(answers(site)) == 1)
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((f"{running.url}/", "data:"))] == []
    assert window.said == []


def test_a_sheet_is_answered_with_digits_and_enter(make: Any) -> None:
    site, _, open_window = make(TASKS[1:2], local="anna")
    window = open_window()
    window.task()
    assert "Which are the same person?" in window.text("h1")
    window.press("2")
    window.press("Shift+3")
    assert "1 same, 1 different, 1 unsure" in window.text("#submit")
    window.press("Enter")
    window.wait_for(lambda: len(answers(site)) == 3)
    assert [event.verdict for event in answers(site)] == ["different", "same", "unsure"]
    assert len({event.gesture for event in answers(site)}) == 1


def test_the_next_question_is_there_at_once(make: Any) -> None:
    site, _, open_window = make(pairs(20), local="anna")
    window = open_window()
    times = []
    for number in range(12):
        window.task()
        window.page.wait_for_timeout(350)
        times.append(
            window.page.evaluate(
                """() => new Promise((done) => {
                    const picture = document.querySelector('[data-side="left"] .frame img');
                    const before = picture.src, start = performance.now();
                    dispatchEvent(new KeyboardEvent('keydown', {key: 's', code: 'KeyS'}));
                    const look = () => {
                        if (picture.src !== before && picture.complete && picture.naturalWidth)
                            requestAnimationFrame(() => done(performance.now() - start));
                        else requestAnimationFrame(look);
                    };
                    look();
                })"""
            )
        )
        window.wait_for(lambda n=number: len(answers(site)) == n + 1)
    print(f"key to next: median {statistics.median(times):.0f} ms, most {max(times):.0f} ms")


def test_undo_shows_the_last_question_again_also_after_a_reload(make: Any) -> None:
    site, _, open_window = make(pairs(3), local="anna")
    window = open_window()
    first = window.task()
    window.press("s")
    window.wait_for(lambda: len(answers(site)) == 1)
    window.page.reload()
    assert window.task() != first
    window.press("z")
    window.wait_for(lambda: window.task() == first)
    assert "taken back" in window.text("#said")
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 2)
    assert [event.kind for event in site.events()] == ["answer", "undo", "answer"]
    assert window.said == []


def test_answers_wait_in_the_page_while_the_server_is_away(make: Any) -> None:
    site, running, open_window = make(pairs(6), local="anna")
    window = open_window()
    window.task()
    window.page.wait_for_timeout(500)
    running.stop()
    window.press("s")
    window.task()
    window.press("d")
    expect(window.page.locator("#away")).to_contain_text("2 answers are kept", timeout=15_000)
    assert answers(site) == []
    # They outlast the page.
    stored = window.page.evaluate("localStorage.getItem('fastreid_al.outbox.anna')")
    assert stored.count("token") == 2
    running.start()
    window.wait_for(lambda: len(answers(site)) == 2, 30)
    assert [event.verdict for event in answers(site)] == ["same", "different"]
    expect(window.page.locator("#away")).to_be_hidden(timeout=15_000)
    window.task()


def test_answers_that_a_closed_page_kept_are_sent_by_the_next_one(make: Any) -> None:
    site, running, open_window = make(pairs(6), local="anna")
    window = open_window()
    window.task()
    window.page.wait_for_timeout(500)
    running.stop()
    window.press("s")
    expect(window.page.locator("#away")).to_contain_text("1 answer is kept", timeout=15_000)
    context = window.page.context
    window.page.close()
    running.start()
    assert answers(site) == []
    window = Window(context, running.url)
    window.wait_for(lambda: len(answers(site)) == 1)
    assert [event.verdict for event in answers(site)] == ["same"]
    window.task()
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 2)
    assert len({event.question for event in answers(site)}) == 2


def test_a_closed_browser_gives_its_questions_to_others(make: Any) -> None:
    site, _, open_window = make(pairs(2))
    first, second = (open_window(f"/link/{site.person(name)[1]}") for name in ("anna", "ben"))
    # Anna has one question on the screen, and the other one is loaded beforehand.
    first.task()
    expect(second.page.locator("#waiting")).to_be_visible()
    first.wait_for(lambda: leases(site) == 2)
    first.page.close(run_before_unload=True)
    for number in range(2):
        second.task()
        second.press("s")
        second.wait_for(lambda n=number: len(answers(site)) == n + 1)
    assert {event.annotator for event in answers(site)} == {"ben"}


def test_a_question_whose_image_is_gone_can_be_answered_or_skipped(make: Any) -> None:
    site, _, open_window = make(pairs(2), local="anna")
    site.records[0].path.unlink()
    window = open_window()
    broken = window.page.locator('[data-side="left"] .frame img.broken')
    expect(broken).to_be_attached()
    window.press("Space")
    assert "/image/2" in window.task()
    window.press("s")
    expect(broken).to_be_attached()
    window.press("x")
    window.wait_for(lambda: len(answers(site)) == 2)
    assert [event.verdict for event in answers(site)] == ["same", "not comparable"]


def test_an_answer_to_a_question_that_was_withdrawn_is_kept_as_a_late_one(make: Any) -> None:
    site, _, open_window = make(pairs(2), local="anna")
    window = open_window()
    window.task()
    with Ledger.open(site.url) as trainer, trainer.store.writing() as connection:
        first = QUESTIONS.c.id == 1
        connection.execute(QUESTIONS.update().where(first), {"status": "withdrawn"})
    window.press("s")
    expect(window.page.locator("#said")).to_contain_text("Kept as a second opinion")
    window.task()
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 2)
    assert [(event.question, event.verdict) for event in answers(site)] == [
        (1, "same"),
        (2, "different"),
    ]


def test_answers_wait_in_the_page_while_postgresql_is_away(make: Any) -> None:
    with running_postgres() as postgres:
        site, _, open_window = make(pairs(8), local="anna", url=postgres.url)
        window = open_window()
        window.task()
        # The next question is loaded beforehand.
        window.page.wait_for_timeout(500)
        postgres.stop()
        window.press("s")
        window.task()
        window.press("d")
        expect(window.page.locator("#away")).to_contain_text("2 answers are kept", timeout=15_000)
        window.page.wait_for_timeout(1000 * OUTAGE)
        assert "2 answers are kept" in window.text("#away")
        postgres.start()
        window.wait_for(lambda: len(answers(site)) == 2, 60)
        expect(window.page.locator("#away")).to_be_hidden(timeout=15_000)
        for number in range(2, 8):
            window.task()
            window.press("u")
            window.wait_for(lambda n=number: len(answers(site)) == n + 1)
        given = answers(site)
        assert [event.verdict for event in given] == ["same", "different"] + ["unsure"] * 6
        assert len({event.question for event in given}) == 8
        site.close()


def test_an_answer_that_was_not_sent_can_be_taken_back(make: Any) -> None:
    site, running, open_window = make(pairs(6), local="anna")
    window = open_window()
    window.task()
    window.page.wait_for_timeout(500)
    running.stop()
    window.press("s")
    second = window.task()
    window.press("d")
    expect(window.page.locator("#away")).to_contain_text("2 answers are kept", timeout=15_000)
    window.press("z")
    assert window.task() == second
    window.press("u")
    running.start()
    window.wait_for(lambda: len(answers(site)) == 2, 30)
    assert [event.verdict for event in answers(site)] == ["same", "unsure"]


def test_time_in_which_nobody_looks_is_idle(make: Any) -> None:
    site, _, open_window = make(pairs(2), local="anna")
    window = open_window()
    window.page.clock.install()
    window.page.reload()
    window.task()
    window.page.clock.fast_forward(60_000)
    window.press("s")
    window.wait_for(lambda: len(answers(site)) == 1)
    (event,) = answers(site)
    assert 19 < event.answered_at - event.asked_at < 25
    assert 35 < event.idle < 45


def test_keys_can_be_changed_and_switched_off(make: Any) -> None:
    site, _, open_window = make(pairs(4), local="anna")
    window = open_window()
    window.task()
    window.page.locator("#open-keys").click()
    window.page.get_by_role("button", name="Change the key of Same").click()
    window.press("j")
    window.press("Escape")
    window.press("s")
    window.press("j")
    window.wait_for(lambda: len(answers(site)) == 1)
    assert [event.verdict for event in answers(site)] == ["same"]
    window.task()
    window.page.locator("#open-keys").click()
    window.page.locator("#keys-on").uncheck()
    window.press("Escape")
    window.page.reload()
    window.task()
    window.press("d")
    window.page.wait_for_timeout(300)
    assert len(answers(site)) == 1
    window.page.get_by_role("button", name="Different").click()
    window.wait_for(lambda: len(answers(site)) == 2)


def test_a_contradiction_is_told_and_resolved_in_place(make: Any) -> None:
    tasks = [[([0], [1])], [([1], [2])], [([0], [2])]]
    site, _, open_window = make(tasks, local="anna")
    window = open_window()
    for number, key in enumerate("ssd"):
        window.task()
        window.press(key)
        window.wait_for(lambda n=number: len(answers(site)) == n + 1)
    expect(window.page.locator("#said")).to_contain_text("contradicts answers 1, 2")
    window.page.get_by_role("link", name="Look at it").click()
    expect(window.page.locator(".step")).to_have_count(3)
    for step in window.page.locator(".step").all():
        assert "anna" in step.inner_text() and "epoch 3" in step.inner_text()
        pictures = step.locator("img").evaluate_all(
            "async (all) => { await Promise.all(all.map((img) => img.decode()));"
            " return all.map((img) => img.naturalWidth); }"
        )
        assert len(pictures) == 2 and all(pictures)
    expect(window.page.locator(".suspect").first).to_be_visible()
    check_axe(window)
    window.page.get_by_role("button", name="Take back and ask again").last.click()
    expect(window.page.locator("#list .step")).to_have_count(0)
    assert [event.kind for event in site.events()][-1] == "undo"
    assert window.said == []


def check_axe(window: Window) -> None:
    options = {"runOnly": list(RULES), "resultTypes": ["violations"]}
    found = Axe().run(window.page, options=options).response["violations"]
    assert [(v["impact"], v["id"], v["nodes"][0]["html"][:200]) for v in found] == []


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(make: Any, width: int) -> None:
    _, running, open_window = make(local="anna")
    window = open_window(viewport={"width": width, "height": 844}, has_touch=width < 400)

    def check() -> None:
        check_axe(window)
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width
        small = window.page.evaluate(
            """() => [...document.querySelectorAll('button')].filter((b) => {
                const box = b.getBoundingClientRect();
                return box.width && !b.closest('.thumbs') && (box.width < 44 || box.height < 44);
            }).map((b) => b.outerHTML)"""
        )
        assert small == []

    window.task()
    check()
    window.press("1")
    window.press("s")
    window.wait_for(lambda: window.page.evaluate("document.body.dataset.kind") == "sheet")
    window.task()
    window.press("1")
    check()
    for button, dialog in (("Help", "#help-dialog"), ("Keys", "#keys-dialog")):
        window.page.get_by_role("button", name=button, exact=True).click()
        expect(window.page.locator(dialog)).to_be_visible()
        check()
        window.press("Escape")
    window.press("c")
    check()
    window.press("Escape")
    for path in ("/mine", "/people", "/contradictions"):
        window.page.goto(running.url + path)
        expect(window.page.locator("#said")).not_to_have_text("Loading…")
        check()
    assert window.said == []


def test_at_200_percent_zoom_every_answer_can_be_reached(make: Any) -> None:
    _, _, open_window = make(local="anna")
    window = open_window(viewport={"width": 640, "height": 400})
    window.task()
    assert window.page.evaluate("document.documentElement.scrollWidth") <= 640
    button = window.page.get_by_role("button", name="Same", exact=True)
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    assert box is not None and box["y"] + box["height"] <= 400


def test_space_presses_the_button_that_the_keyboard_chose_and_else_skips(make: Any) -> None:
    site, _, open_window = make(pairs(3), local="anna")
    window = open_window()
    first = window.task()
    window.page.get_by_role("button", name="Unsure").focus()
    window.press("Space")
    window.wait_for(lambda: len(answers(site)) == 1)
    second = window.task()
    assert second != first
    # A click leaves no button behind that Space would press.
    window.page.get_by_role("button", name="Pixels").click()
    window.press("Space")
    window.wait_for(lambda: window.task() not in (first, second))
    assert len(answers(site)) == 1


@pytest.mark.parametrize(
    "selector", ['[data-side="left"] .thumb', '[data-side="left"] [data-zoom="in"]', "#open-keys"]
)
def test_space_skips_after_a_click_of_the_mouse(make: Any, selector: str) -> None:
    site, _, open_window = make([TASKS[0], *pairs(2, 6)], local="anna")
    window = open_window()
    first = window.task()
    window.page.locator(selector).first.click()
    window.press("Escape")
    window.press("Space")
    window.wait_for(lambda: window.task() != first)
    assert answers(site) == []


def test_enter_submits_a_sheet_after_a_click_of_the_mouse(make: Any) -> None:
    site, _, open_window = make(TASKS[1:2], local="anna")
    window = open_window()
    window.task()
    window.page.locator(".choice").nth(1).click()
    window.press("Enter")
    window.wait_for(lambda: len(answers(site)) == 3)
    assert [event.verdict for event in answers(site)] == ["different", "same", "different"]


def test_undo_brings_back_marks_and_comment(make: Any) -> None:
    site, _, open_window = make(TASKS[:2], local="anna")
    window = open_window()
    window.task()
    window.press("2")
    window.press("Shift+Enter")
    window.press("c")
    window.page.locator("#comment-text").fill("hat")
    window.page.get_by_role("button", name="Keep").click()
    window.press("s")
    window.wait_for(lambda: len(answers(site)) > 0)
    window.task()
    window.press("z")
    expect(window.page.locator("#noted")).to_contain_text("1 image marked")
    expect(window.page.locator("#noted")).to_contain_text("comment: hat")
    window.press("d")
    window.wait_for(lambda: answers(site)[-1].verdict != "same" or len(answers(site)) > 12)
    window.task()
    window.press("1")
    window.press("Shift+3")
    window.press("Enter")
    window.wait_for(lambda: len(answers(site)) == 2 * 12 + 3)
    window.press("z")
    expect(window.page.locator("#submit")).to_contain_text("1 same, 1 different, 1 unsure")
    assert window.said == []


def test_marked_images_do_not_return_with_their_group(make: Any) -> None:
    group = [0, 20, 21]
    site, _, open_window = make([[(group, [1])], [(group, [2])]], local="anna")
    window = open_window()
    window.task()
    window.press("1")
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 2)
    # The next question was loaded before the answer.
    window.page.reload()
    window.task()
    shown = window.page.locator('[data-side="left"] .thumb')
    expect(shown).to_have_count(1)


def test_on_a_phone_confirmed_images_come_into_view(make: Any) -> None:
    _, _, open_window = make(TASKS[:1], local="anna")
    window = open_window(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    window.task()
    last = window.page.locator('[data-side="left"] .thumb').nth(8)
    expect(last).not_to_be_in_viewport()
    window.page.get_by_role("button", name="All of these too").tap()
    expect(last).to_be_in_viewport(ratio=0.9)


def test_zoom_by_wheel_and_buttons(make: Any) -> None:
    _, _, open_window = make(local="anna")
    window = open_window()
    window.task()
    frame = window.page.locator('[data-side="left"] .frame')
    frame.hover()
    window.page.mouse.wheel(0, -400)
    expect(frame).to_have_class("frame zoomed")
    frame.dblclick(position={"x": 20, "y": 20})
    expect(frame).to_have_class("frame")
    window.page.get_by_role("button", name="Zoom into A").click()
    expect(frame).to_have_class("frame zoomed")
