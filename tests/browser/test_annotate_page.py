"""The annotation page in a browser: people, keys, sheets, outages, accessibility."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Request, expect

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
    for path in ("/mine", "/people", "/contradictions", "/why?a=0&b=1", "/"):
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


@pytest.mark.parametrize(
    "screen",
    [{"width": 390, "height": 844}, {"width": 640, "height": 400}, {"width": 1366, "height": 680}],
)
def test_a_sheet_is_not_submitted_before_all_candidates_were_on_the_screen(
    make: Any, screen: dict[str, int]
) -> None:
    sheet = [([2, *range(20, 32)], [right, 34, 35]) for right in range(3, 11)]
    site, _, open_window = make([sheet], local="anna")
    window = open_window(viewport=screen)
    window.task()
    window.page.wait_for_timeout(100)
    said = window.page.locator("#said")
    presses = 0
    while not answers(site):
        assert presses < 8
        window.press("Enter")
        presses += 1
        # The page scrolls to candidates that were not seen, and the image to compare with stays.
        window.page.wait_for_timeout(400)
        if not answers(site):
            expect(said).to_contain_text("first: then submit")
            expect(window.page.locator("#sheet .side .frame")).to_be_in_viewport()
    assert presses > 1
    assert len(answers(site)) == 8
    expect(said).not_to_contain_text("first")


def test_nothing_of_the_last_question_stays_when_no_other_is_open(make: Any) -> None:
    site, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    window.press("1")
    assert "1 image marked" in window.text("#noted")
    window.press("d")
    window.wait_for(lambda: len(answers(site)) >= 1)
    expect(window.page.locator("#waiting")).to_be_visible()
    expect(window.page.locator("#noted")).to_have_text("")


def test_a_candidate_of_a_sheet_says_what_its_answer_would_change(make: Any) -> None:
    _, _, open_window = make([[([0], [1])], [([1], [2]), ([1], [3]), ([1], [4])]], local="anna")
    window = open_window()
    window.task()
    window.press("s")
    expect(window.page.locator("#count")).to_contain_text("Sheet with 3 questions")
    said = window.page.locator(".candidate .would")
    expect(said).to_have_text(["separates 2 pairs"] * 3)
    window.press("2")
    window.press("Shift+3")
    joins = "joins 2 + 1 answered images"
    expect(said).to_have_text(["separates 2 pairs", joins, ""])


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
    first = open_window(f"/link/{site.person('anna')[1]}")
    # Anna has one question on the screen, and the other one is loaded beforehand.
    first.task()
    first.wait_for(lambda: leases(site) == 2)
    second = open_window(f"/link/{site.person('ben')[1]}")
    expect(second.page.locator("#waiting")).to_be_visible()
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
    # The server limits the time by its own clock.
    site.ahead += 60
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
    if width < 400:
        window.page.get_by_role("button", name="Menu").tap()
        check()
    window.press("1")
    window.press("Shift+2")
    window.press("e")
    expect(window.page.locator("#view-dialog")).to_be_visible()
    check()
    window.press("Escape")
    check()
    window.press("Shift+2")
    window.press("s")
    window.wait_for(lambda: window.page.evaluate("document.body.dataset.kind") == "sheet")
    window.task()
    window.press("1")
    check()
    window.page.get_by_role("button", name="Enlarge the images of the group of candidate 2").click()
    check()
    window.press("Escape")
    for button, dialog in (("Help", "#help-dialog"), ("Keys", "#keys-dialog")):
        window.page.get_by_role("button", name=button, exact=True).click()
        expect(window.page.locator(dialog)).to_be_visible()
        check()
        window.press("Escape")
    window.press("c")
    check()
    window.press("Escape")
    for path in ("/mine", "/people", "/contradictions", "/why", "/why?a=0&b=1", "/why?a=0&b=9"):
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


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def members(site: Site) -> set[tuple[str, str, str]]:
    """What was said of small images: large image, small image, verdict."""
    return {(e.left, e.right, e.verdict) for e in answers(site) if e.reason == "member"}


def test_small_images_are_enlarged_and_marked_by_keys(make: Any) -> None:
    site, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    window.press("e")
    title = window.page.locator("#view-title")
    expect(title).to_have_text("Image 1 of 12 of the group of A")
    for _ in range(15):
        window.press("ArrowRight")
    expect(title).to_have_text("Image 12 of 12 of the group of A")
    for _ in range(2):
        window.press("ArrowLeft")
    expect(title).to_have_text("Image 10 of 12 of the group of A")
    assert "/image/29?h=768" in str(window.page.locator("#view-dialog img").get_attribute("src"))
    # No key of an answer reaches the question behind.
    for key in "sm":
        window.press(key)
    expect(window.page.get_by_role("button", name="Not A")).to_have_attribute(
        "aria-pressed", "true"
    )
    window.press("Escape")
    expect(window.page.locator("#view-dialog")).to_be_hidden()
    # The page of small images is the one of the image that was shown last.
    expect(window.page.locator('[data-side="left"] .page')).to_have_text("2 of 2")
    expect(window.page.locator(".thumb.odd")).to_have_count(1)
    assert answers(site) == []
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 2)
    assert members(site) == {("000.jpg", "029.jpg", "different")}
    assert window.said == []


def test_a_double_click_enlarges_a_small_image_and_marks_nothing(make: Any) -> None:
    _, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    window.page.locator('[data-side="right"] .thumb').nth(1).dblclick()
    expect(window.page.locator("#view-title")).to_have_text("Image 2 of 2 of the group of B")
    window.page.get_by_role("button", name="Close").click()
    expect(window.page.locator("#view-dialog")).to_be_hidden()
    expect(window.page.locator("#noted")).to_have_text("")
    window.press("Space")
    expect(window.page.locator("#said")).to_contain_text("Skipped")


def test_all_small_images_of_a_side_that_were_seen_are_marked_at_once(make: Any) -> None:
    site, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    button = window.page.get_by_role("button", name="Mark all small images of A")
    window.press("a")
    expect(button).to_have_attribute("aria-pressed", "true")
    assert "9 images marked" in window.text("#noted")
    button.click()
    assert window.text("#noted") == ""
    window.press("a")
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 10)
    assert members(site) == {("000.jpg", f"{i:03d}.jpg", "different") for i in range(20, 29)}


def test_an_image_of_the_other_side_is_marked_and_taken_back_with_the_answer(make: Any) -> None:
    site, _, open_window = make(TASKS[:1], local="anna")
    window = open_window()
    window.task()
    window.press("Shift+2")
    assert "1 image marked as that of the other side" in window.text("#noted")
    # It cannot show the other side's person only, if both sides show one person.
    window.press("s")
    assert "take the mark back" in window.text("#said")
    assert answers(site) == []
    window.press("d")
    window.wait_for(lambda: len(answers(site)) == 3)
    assert members(site) == {("000.jpg", "021.jpg", "different"), ("001.jpg", "021.jpg", "same")}
    window.press("z")
    expect(window.page.locator("#said")).to_contain_text("taken back")
    expect(window.page.locator("#noted")).to_contain_text("1 image marked as that of the other")
    assert [event.kind for event in site.events()] == ["answer"] * 3 + ["undo"] * 3
    # A digit marks it as not belonging, and once more takes the mark back.
    window.press("2")
    assert window.text("#noted") == "1 image marked as not belonging"
    window.press("2")
    assert window.text("#noted") == ""
    assert window.said == []


def test_a_finger_opens_a_small_image_and_marks_it_there(make: Any) -> None:
    site, _, open_window = make(TASKS[:1], local="anna")
    window = open_window(**PHONE)
    window.task()
    window.page.locator('[data-side="left"] .thumb').first.tap()
    expect(window.page.locator("#view-title")).to_have_text("Image 1 of 12 of the group of A")
    frame = window.page.locator("#view-dialog .frame").bounding_box()
    assert frame is not None and frame["height"] > 844 / 2
    window.page.get_by_role("button", name="Next image").tap()
    window.page.get_by_role("button", name="Shows B").tap()
    window.page.get_by_role("button", name="Close").tap()
    window.page.get_by_role("button", name="Different", exact=True).tap()
    window.wait_for(lambda: len(answers(site)) == 3)
    assert ("001.jpg", "021.jpg", "same") in members(site)
    assert window.said == []


def test_on_a_phone_nothing_covers_the_images_and_no_key_is_named(make: Any) -> None:
    _, _, open_window = make(TASKS[:1], local="anna")
    window = open_window(**PHONE)
    window.task()
    page = window.page
    for side in ("left", "right"):
        frame = page.locator(f'[data-side="{side}"] .frame').bounding_box()
        zoom = page.locator(f'[data-side="{side}"] .zoom').bounding_box()
        assert frame is not None and zoom is not None
        assert zoom["y"] >= frame["y"] + frame["height"]
        assert frame["height"] > 844 / 3
    header = page.locator("header").bounding_box()
    assert header is not None and header["height"] <= 844 / 14
    named = page.locator("kbd:visible, .key:visible, .digits:visible, #open-keys:visible")
    assert named.count() == 0
    menu = page.get_by_role("button", name="Menu")
    expect(page.get_by_role("link", name="People")).to_be_hidden()
    menu.tap()
    expect(menu).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("link", name="People")).to_be_in_viewport()
    page.get_by_role("button", name="Help").tap()
    expect(page.locator("#help-dialog")).to_be_visible()
    assert "1 to 9" not in page.locator("#help-dialog").inner_text()
    page.get_by_role("button", name="Close").tap()
    # Whoever connects a keyboard sees its keys.
    page.keyboard.press("p")
    expect(page.locator("#open-keys")).to_be_visible()


def test_two_fingers_zoom_and_one_drags(make: Any) -> None:
    _, _, open_window = make(TASKS[:1], local="anna")
    window = open_window(**PHONE)
    window.task()
    frame = window.page.locator('[data-side="left"] .frame')
    box = frame.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = window.page.context.new_cdp_session(window.page)

    def move(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    def transform() -> list[float]:
        """Scale, and shift in x and y."""
        found = window.page.evaluate(
            """() => { const m = new DOMMatrix(getComputedStyle(
                document.querySelector('[data-side="left"] .frame img')).transform);
                return [m.a, m.e, m.f]; }"""
        )
        return [float(number) for number in found]

    assert transform() == [1, 0, 0]
    move("touchStart", (x - 20, y), (x + 20, y))
    for apart in (30, 40, 60):
        move("touchMove", (x + 9 - apart, y - 6), (x + 9 + apart, y - 6))
    move("touchEnd")
    scale, dx, dy = transform()
    assert scale == pytest.approx(3, rel=0.05)
    # What lay between the fingers is still there.
    assert (dx, dy) == pytest.approx((9, -6), abs=2)
    expect(frame).to_have_class("frame zoomed")
    # The page itself is not zoomed.
    assert window.page.evaluate("visualViewport.scale") == 1
    move("touchStart", (x, y))
    for by in (10, 30):
        move("touchMove", (x + by, y + 5))
    move("touchEnd")
    assert transform()[1] == pytest.approx(dx + 30, abs=3)
    assert window.said == []


def test_an_admin_erases_an_image_after_choosing_it(make: Any) -> None:
    site, running, open_window = make([TASKS[0], *pairs(2, 6)], local="anna")
    window = open_window()
    first = window.task()
    page = window.page
    page.get_by_role("button", name="Erase an image").click()
    dialog = page.locator("#erase-dialog")
    # The two large images and the small ones that were on the screen.
    expect(dialog.locator("[name=erase]")).to_have_count(2 + 9 + 2)
    check_axe(window)
    # Without a choice, and after Cancel, nothing happens.
    dialog.get_by_role("button", name="Erase").click()
    expect(dialog).to_be_hidden()
    for leave in (
        lambda: window.press("Escape"),
        dialog.get_by_role("button", name="Cancel").click,
    ):
        page.get_by_role("button", name="Erase an image").click()
        dialog.locator('[value="1"]').check()
        leave()
        expect(dialog).to_be_hidden()
    page.wait_for_timeout(300)
    assert site.events() == []
    page.get_by_role("button", name="Erase an image").click()
    # What was chosen before counts no more.
    expect(dialog.locator("[name=erase]:checked")).to_have_count(0)
    dialog.locator('[value="1"]').check()
    dialog.locator("#erase-reason").fill("asked to")
    dialog.get_by_role("button", name="Erase").click()
    expect(page.locator("#said")).to_have_text("The image was erased.")
    (event,) = site.events()
    assert (event.kind, event.comment) == ("erase", "asked to")
    # The question about it is gone.
    assert window.task() != first
    status = "(url) => fetch(url).then((reply) => reply.status)"
    assert page.evaluate(status, f"{running.url}/image/1?h=768") == 410
    assert [line for line in window.said if "410" not in line and "Clear-Site" not in line] == []


def test_no_other_browser_shows_an_erased_image_from_its_cache(make: Any) -> None:
    site, _, open_window = make(TASKS[:1])
    boss, _ = site.person("boss", "admin")
    window = open_window(f"/link/{site.person('anna')[1]}")
    window.task()
    small = str(window.page.locator('[data-side="left"] .thumb img').first.get_attribute("src"))
    number = int(small.split("/")[2].split("?")[0])
    sizes: list[int] = []

    def note(request: Request) -> None:
        if small in request.url:
            sizes.append(request.sizes()["responseBodySize"])

    window.page.on("requestfinished", note)
    window.page.goto(window.page.url)
    window.task()
    # The browser has the image, and asks whether it may show it.
    window.wait_for(lambda: len(sizes) == 1)
    assert sizes == [0]
    site.service.erase(number, boss, "asked to")
    loads = """(url) => new Promise((done) => { const image = new Image();
        image.onload = () => done(true); image.onerror = () => done(false); image.src = url; })"""
    window.page.goto(window.page.url)
    window.task()
    assert window.page.evaluate(loads, small) is False
    shown = window.page.locator(f'.thumb[data-image="{number}"]')
    expect(shown).to_have_count(0)


def test_before_an_answer_the_page_says_what_it_would_change(make: Any) -> None:
    chain = [[([0], [1])], [([1], [2])], [([0], [2])]]
    site, _, open_window = make(chain, local="anna")
    window = open_window()
    same, different = (window.page.locator(f"#would-{name}") for name in ("same", "different"))
    window.task()
    # Of the two images alone, nothing needs to be said.
    expect(same).to_have_text("")
    expect(different).to_have_text("")
    # The next question is loaded before the answer, and told again after it.
    window.page.wait_for_timeout(500)
    window.press("s")
    expect(same).to_have_text("joins 2 + 1 answered images")
    expect(different).to_have_text("separates 2 pairs")
    window.wait_for(lambda: len(answers(site)) == 1)
    window.press("s")
    window.wait_for(lambda: len(answers(site)) == 2)
    window.task()
    # The answers before imply that these are the same, which is not told before the answer.
    expect(window.page.locator("#count")).to_contain_text("Question 3")
    expect(same).to_have_text("joins 2 + 1 answered images")
    button = window.page.get_by_role("button", name="Same", exact=True)
    expect(button).to_have_accessible_description("joins 2 + 1 answered images")
    window.press("d")
    expect(window.page.locator("#said")).to_contain_text("contradicts answers 1, 2")


def test_the_page_why_shows_the_chain_of_answers_of_any_pair(make: Any) -> None:
    chain = [[([0], [1])], [([1], [2])], [([2], [3])]]
    site, running, open_window = make(chain, local="anna")
    window = open_window()
    for number, key in enumerate("ssd"):
        window.task()
        window.press(key)
        window.wait_for(lambda n=number: len(answers(site)) == n + 1)
    window.page.goto(running.url + "/mine")
    window.page.get_by_role("link", name="Why? (images 0 and 1)").click()
    said = window.page.locator("#said")
    expect(said).to_have_text("One answer says that these images are the same.")
    # By number and by path; pairs that nobody was asked about too.
    window.page.get_by_label("First image").fill("0")
    window.page.get_by_label("Second image").fill("003.jpg")
    window.press("Enter")
    expect(said).to_have_text("3 answers together say that these images are different.")
    steps = window.page.locator(".step")
    expect(steps).to_have_count(3)
    for step, sign in zip(steps.all(), ("= same", "= same", "≠ different"), strict=True):
        text = step.inner_text()
        assert sign in text and "anna" in text and "epoch 3" in text
    check_axe(window)
    window.page.goto(running.url + "/why?a=0&b=9")
    expect(said).to_contain_text("No answers say")
    window.page.goto(running.url + "/why?a=0&b=nothing.jpg")
    expect(said).to_contain_text("the ledger has no image nothing.jpg")


def test_a_page_that_nobody_uses_says_so_to_the_server(make: Any) -> None:
    _, _, open_window = make(pairs(2), local="anna")
    window = open_window()
    window.page.clock.install()
    window.page.reload()
    window.task()
    idle: list[int] = []

    def note(request: Request) -> None:
        if request.url.endswith("/api/heartbeat"):
            idle.append((request.post_data_json or {})["idle"])

    window.page.on("request", note)
    window.page.clock.run_for(61_000)
    window.wait_for(lambda: len(idle) >= 3)
    assert idle[-1] >= 59
    window.press("p")
    window.page.clock.run_for(20_000)
    window.wait_for(lambda: idle[-1] < 30)
