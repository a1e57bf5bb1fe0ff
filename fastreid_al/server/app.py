"""The routes of the annotation server: pages, images, and what the page sends and asks."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..answers.ledger import Ledger
from ..answers.service import AnswerService
from ..answers.tasks import TAGS, Person
from ..errors import LedgerError, UserError, one_line
from .access import Access
from .guards import Guards
from .messages import (
    number_in,
    numbers_in,
    parse_number,
    parse_object,
    parse_submission,
    seconds_in,
    text_in,
)
from .pictures import Pictures, UnshownError
from .problems import ProblemError
from .wording import Wording

T = TypeVar("T")
_Handler = Callable[[Request, Person], Awaitable[Response]]

#: Longest time that a request waits for a question, in seconds.
LONGEST_WAIT = 20.0
#: Shortest and longest pause between two looks for a task, in seconds. The first is that after an
#: answer, from which the trainer makes the next question within some ten milliseconds.
_SHORTEST_LOOK = 0.03
_LONGEST_LOOK = 1.0
#: A pause is this share of the time for which the page waits already.
_LOOK_SHARE = 0.25
#: Seconds between two messages about the progress.
_PROGRESS_EVERY = 2.0
#: Decisions that a person's list shows.
_MINE = 50
#: Tasks that one person may hold at a time.
_MOST_AHEAD = 8
#: Version of the requests below `/api/v1`, which docs/annotate.md states.
VERSION = 1
#: Seconds without an act that are counted at most.
_MOST_IDLE = 24 * 3600.0
#: Pages whose tasks are remembered.
_MOST_PAGES = 10_000
_STATIC = Path(__file__).parent / "static"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageOptions:
    """What the page looks like.

    Args:
        noun: What the images show, such as "person".
        show_similarity: Whether the similarity and the reason of a question are shown.
        host: Host that the server listens on.
        port: Its port.
        public_url: Address under which people reach it behind a proxy.
        local: The person of requests without a personal link; None where a link is required.
    """

    noun: str = "person"
    show_similarity: bool = False
    host: str = "127.0.0.1"
    port: int = 8765
    public_url: str | None = None
    local: Person | None = None


class Closing:
    """Whether the server is about to end: what waits and what streams then stops."""

    def __init__(self) -> None:
        self.closed = False


class _Holders:
    """Which page of a person has a task: the one that got it last."""

    def __init__(self) -> None:
        self._pages: OrderedDict[tuple[int, int], str] = OrderedDict()

    def give(self, person: Person, task: int, page: str) -> None:
        """Note that a page has a task."""
        self._pages[person.id, task] = page
        self._pages.move_to_end((person.id, task))
        if len(self._pages) > _MOST_PAGES:
            self._pages.popitem(last=False)

    def is_with(self, person: Person, task: int, page: str) -> bool:
        """Return whether a page has a task, as far as it is known."""
        return not page or self._pages.get((person.id, task), page) == page


class _Files(StaticFiles):
    """Scripts and styles, which a browser asks for again after an update."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def make_app(
    service: AnswerService,
    pictures: Pictures,
    options: PageOptions,
    read_ledger: Callable[[], Ledger],
    closing: Closing | None = None,
) -> Starlette:
    """Return the application.

    Args:
        service: Hands out the questions and takes the answers.
        pictures: The images.
        options: What the page looks like, and who may use it.
        read_ledger: Opens the ledger for reading, beside the service.
        closing: Says when the server is about to end.
    """
    routes = _Routes(service, pictures, options, read_ledger, closing or Closing())
    return Starlette(
        routes=routes.table(),
        middleware=[Middleware(Guards, host=options.host, public_url=options.public_url)],
        exception_handlers={
            ProblemError: _on_problem,
            HTTPException: _on_http_error,
            Exception: _on_error,
        },
    )


class _Routes:
    """The routes, each of which answers one kind of request."""

    def __init__(
        self,
        service: AnswerService,
        pictures: Pictures,
        options: PageOptions,
        read_ledger: Callable[[], Ledger],
        closing: Closing,
    ) -> None:
        self._service = service
        self._pictures = pictures
        self._options = options
        self._closing = closing
        self._holders = _Holders()
        secure = (options.public_url or "").lower().startswith("https:")
        self._access = Access(service, options.port, options.local, secure)
        self._wording = Wording(service, pictures, options.show_similarity, read_ledger)
        self._pages = Environment(
            loader=PackageLoader("fastreid_al.server"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def table(self) -> list[Route | Mount]:
        """Return every route.

        What the page asks is also there for programs, below the version of the requests.
        """
        get: dict[str, _Handler] = {
            "/api/next": self.next,
            "/api/mine": self.mine,
            "/api/prospects": self.prospects,
            "/api/proof": self.proof,
            "/api/contradictions": self.contradictions,
            "/api/people": self.people,
            "/api/progress": self.progress,
            "/image/{id}": self.image,
        }
        post: dict[str, _Handler] = {
            "/api/answers": self.answer,
            "/api/heartbeat": self.heartbeat,
            "/api/skip": self.skip,
            "/api/release": self.release,
            "/api/undo": self.undo,
            "/api/erase": self.erase,
        }
        pages = {"/": "annotate", "/mine": "mine", "/people": "people"}
        pages |= {"/contradictions": "contradictions", "/why": "why"}
        asked = [(path, f, "GET") for path, f in get.items()]
        asked += [(path, f, "POST") for path, f in post.items()]
        return [
            *(Route(path, self._page(name), methods=["GET"]) for path, name in pages.items()),
            *(Route(path, self._known(f), methods=[method]) for path, f, method in asked),
            *(Route(_stated(path), self._known(f), methods=[m]) for path, f, m in asked),
            Route("/api/v{version}/{rest:path}", self.unknown, methods=["GET", "POST"]),
            Route("/link/{token}", self.link, methods=["GET"]),
            Route("/healthz", self.health, methods=["GET"]),
            Mount("/static", _Files(directory=_STATIC)),
        ]

    # Pages.

    def _page(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """A page; who has no link is told how to get one."""

        async def show(request: Request) -> Response:
            try:
                person = await self._call(self._access.person, request)
            except ProblemError as problem:
                page = self._render("problem", error=problem.error)
                return HTMLResponse(page, problem.status)
            return HTMLResponse(self._render(name, person=person, tags=TAGS))

        return show

    def _render(self, name: str, **values: Any) -> str:
        return self._pages.get_template(f"{name}.html").render(noun=self._options.noun, **values)

    async def link(self, request: Request) -> Response:
        """Remember a person by the link, and go to the page."""
        token = request.path_params["token"]
        try:
            await self._call(self._access.of_link, token, request)
        except ProblemError as problem:
            page = self._render("problem", error=problem.error)
            return HTMLResponse(page, problem.status)
        # A redirection would still count as a request of the site that the link stood on, and the
        # browser would not send a strict cookie with it.
        response = HTMLResponse(self._render("link"))
        self._access.remember(response, token)
        return response

    async def unknown(self, request: Request) -> Response:
        """Say which version of the requests this server knows."""
        # A text: Python does not convert numbers of more than 4,300 digits.
        version, rest = request.path_params["version"][:20], request.path_params["rest"]
        if version == str(VERSION):
            raise ProblemError(404, f"version {VERSION} has no {request.method} /{rest[:200]}")
        raise ProblemError(
            404,
            f"got version {version} of the requests, this server knows version {VERSION}: "
            f"/api/v{VERSION}/...",
        )

    async def health(self, request: Request) -> Response:
        """Say that the server is up."""
        return JSONResponse({"status": "ok"})

    # What the page asks.

    def _known(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        """A route for people who are known."""

        async def answer(request: Request) -> Response:
            person = await self._call(self._access.person, request)
            return await handler(request, person)

        return answer

    async def next(self, request: Request, person: Person) -> Response:
        """Return the next task; wait for one while there is none."""
        query = request.query_params
        ahead = min(parse_number("ahead", query.get("ahead", "0")), _MOST_AHEAD)
        wait = parse_number("wait", query.get("wait", str(int(LONGEST_WAIT))))
        idle = parse_number("idle", query.get("idle", "0"))
        page = query.get("page", "")
        since = time.monotonic()
        until = since + min(wait, LONGEST_WAIT)
        while True:
            unused = min(idle + time.monotonic() - since, _MOST_IDLE)
            task = await self._call(self._service.next_task, person, ahead, unused)
            if task is not None:
                self._holders.give(person, task.id, page)
                return JSONResponse({"task": await self._call(self._wording.task, task)})
            now = time.monotonic()
            if now >= until or self._closing.closed or await request.is_disconnected():
                return JSONResponse({"task": None})
            pause = min(max(_LOOK_SHARE * (now - since), _SHORTEST_LOOK), _LONGEST_LOOK)
            await anyio.sleep(min(pause, until - now))

    async def answer(self, request: Request, person: Person) -> Response:
        """Write the answer to a task; the same token is written once."""
        submission = parse_submission(await _body(request))
        outcome = await self._call(self._service.submit, person, submission)
        return JSONResponse(await self._call(self._wording.outcome, outcome))

    async def heartbeat(self, request: Request, person: Person) -> Response:
        """Renew the leases of the tasks that a page shows or holds."""
        body = await _body(request)
        idle = seconds_in(body, "idle")
        lost = [
            task
            for task in numbers_in(body, "tasks")[: _MOST_AHEAD + 1]
            if not await self._call(self._service.heartbeat, person, task, idle)
        ]
        return JSONResponse({"lost": lost})

    async def skip(self, request: Request, person: Person) -> Response:
        """Put a task behind all others of this person."""
        await self._call(self._service.skip, person, number_in(await _body(request), "task"))
        return JSONResponse({})

    async def release(self, request: Request, person: Person) -> Response:
        """Give tasks back that a page held when it was closed."""
        body = await _body(request)
        page = text_in(body, "page")
        # The last one first: a page that is loaded anew meanwhile gets the one that was shown.
        for task in reversed(numbers_in(body, "tasks")[: _MOST_AHEAD + 1]):
            # Where a page is loaded anew, the old one may say so after the new one has the task.
            if self._holders.is_with(person, task, page):
                await self._call(self._service.release, person, task)
        return JSONResponse({})

    async def undo(self, request: Request, person: Person) -> Response:
        """Take back the person's last decision, or the answer that an admin names."""
        body = await _body(request)
        if "event" in body:
            event = number_in(body, "event")
            await self._call(self._service.undo, person, event)
            return JSONResponse({"task": None, "undone": True})
        task = await self._call(self._service.undo, person)
        if task is not None:
            self._holders.give(person, task.id, text_in(body, "page"))
        shown = None if task is None else await self._call(self._wording.task, task)
        return JSONResponse({"task": shown, "undone": task is not None})

    async def erase(self, request: Request, person: Person) -> Response:
        """Erase an image: it is not shown any more."""
        if person.role != "admin":
            raise ProblemError(403, "only a person with the role admin may erase an image")
        body = await _body(request)
        image = number_in(body, "image")
        entry = await self._call(self._service.image, image)
        await self._call(self._service.erase, image, person, text_in(body, "reason"))
        await to_thread.run_sync(self._pictures.forget, entry.path, entry.digest)
        return JSONResponse({}, headers={"Clear-Site-Data": '"cache"'})

    async def mine(self, request: Request, person: Person) -> Response:
        """Return the person's last decisions."""
        found = await self._call(self._service.mine, person, _MINE)
        return JSONResponse({"decisions": await self._call(self._wording.decisions, found)})

    async def prospects(self, request: Request, person: Person) -> Response:
        """Return what each answer to a question would change."""
        question = parse_number("question", request.query_params.get("question"))
        return JSONResponse(await self._call(self._wording.prospects, question))

    async def proof(self, request: Request, person: Person) -> Response:
        """Return the answers that decide about two images, by their numbers or their paths."""
        a, b = [await self._image_in(request, name) for name in "ab"]
        if await self._call(self._service.is_asked, person, a, b):
            raise ProblemError(409, "you have a question about these images: answer it first")
        return JSONResponse(await self._call(self._wording.proof, a, b))

    async def _image_in(self, request: Request, name: str) -> int:
        """The number of the image that a query names."""
        query = request.query_params
        if name not in query and f"path_{name}" in query:
            path = text_in(query, f"path_{name}")
            return (await self._call(self._service.image_at, path)).id
        number = parse_number(name, query.get(name))
        return (await self._call(self._wording.entry, number)).id

    async def contradictions(self, request: Request, person: Person) -> Response:
        """Return the answers that contradict each other, with those that are likely wrong."""
        return JSONResponse({"contradictions": await self._call(self._wording.contradictions)})

    async def people(self, request: Request, person: Person) -> Response:
        """Return figures of all people to an admin, and the own ones to others."""
        figures = await self._call(self._service.people)
        if person.role != "admin":
            figures = [figure for figure in figures if figure.name == person.name]
        return JSONResponse({"people": [self._wording.person(figure) for figure in figures]})

    async def progress(self, request: Request, person: Person) -> Response:
        """Stream the progress as server-sent events, until the page is closed."""
        if "once" in request.query_params:
            return JSONResponse(await self._progress(person))

        async def stream() -> AsyncIterator[str]:
            while not self._closing.closed:
                try:
                    found = await self._progress(person)
                    yield f"data: {json.dumps(found)}\n\n"
                except ProblemError as problem:
                    yield f"event: problem\ndata: {json.dumps({'error': problem.error})}\n\n"
                for _ in range(int(_PROGRESS_EVERY / 0.2)):
                    if self._closing.closed:
                        return
                    await anyio.sleep(0.2)

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _progress(self, person: Person) -> dict[str, Any]:
        return self._wording.progress(await self._call(self._service.progress, person))

    async def image(self, request: Request, person: Person) -> Response:
        """Return an image as a picture of at most the height that is asked for."""
        number = parse_number("id", request.path_params["id"])
        height = request.query_params.get("h")
        wanted = None if height is None else parse_number("h", height)
        entry = await self._call(self._service.image, number)
        if entry is None:
            raise ProblemError(404, f"there is no image {number}")
        if entry.erased:
            raise ProblemError(410, f"image {number} was erased")
        # A browser may keep the image, and asks each time whether it may still show it.
        headers = {"Cache-Control": "private, no-cache"}
        if entry.digest:
            headers["ETag"] = f'"{entry.digest[:16]}-{wanted or 0}"'
            if headers["ETag"] in request.headers.get("if-none-match", "").split(", "):
                return Response(status_code=304, headers=headers)
        try:
            picture = await to_thread.run_sync(
                self._pictures.picture, entry.path, entry.digest, wanted
            )
        except UnshownError as error:
            raise ProblemError(404, f"image {number}: {error}") from error
        return Response(picture.content, media_type=picture.media_type, headers=headers)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that may wait for the database, in a thread.

        Raises:
            ProblemError: The ledger refuses it (409), or cannot be reached (503).
        """
        try:
            return await to_thread.run_sync(lambda: function(*arguments))
        except LedgerError as error:
            # The page sends again what the database failed to write, but not what was refused. The
            # service connects again by itself, so that the database may be back by now.
            failed = isinstance(error.__cause__, SQLAlchemyError)
            away = failed or not await to_thread.run_sync(self._wording.is_reachable)
            raise ProblemError(503 if away else 409, str(error)) from error
        except UserError as error:
            raise ProblemError(409, str(error)) from error


def _stated(path: str) -> str:
    """The address of a request for programs, which names the version."""
    return f"/api/v{VERSION}/{path.removeprefix('/api/').removeprefix('/')}"


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.body()
    except ClientDisconnect as error:
        # A browser that is closed meanwhile is no error of the server.
        raise ProblemError(400, "the request was broken off") from error
    return parse_object(body)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    return JSONResponse({"error": error.error}, error.status, headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": one_line(error.detail)}, error.status_code)


async def _on_error(request: Request, error: Exception) -> Response:
    _log.exception("request failed", exc_info=error)
    return JSONResponse({"error": "the server has an error; its terminal shows it"}, 500)
