"""A ledger with images and questions, and the annotation server on it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from PIL import Image, ImageDraw
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fastreid_al.answers.database import IMAGES, QUESTIONS
from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.service import AnswerService, Person
from fastreid_al.data.cache import digest_of
from fastreid_al.data.records import Record
from fastreid_al.server.app import Closing, PageOptions, make_app
from fastreid_al.server.pictures import Pictures, records_by_name

#: Address that the client of the tests uses; the host allow-list knows it.
BASE = "http://localhost:8765"


def draw_images(folder: Path, count: int = 40) -> list[Record]:
    """Write small JPEG files, each of another colour, with a number in it."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i in range(count):
        image = Image.new("RGB", (64, 128), ((37 * i) % 256, (91 * i) % 256, (53 * i) % 256))
        ImageDraw.Draw(image).text((8, 8), str(i), fill="white")
        path = folder / f"{i:03d}.jpg"
        image.save(path)
        records.append(Record(path, -1, i % 3, f"12:{i:02d}, track {i // 4}"))
    return records


def fill_ledger(
    url: str,
    records: Sequence[Record],
    root: Path,
    tasks: Sequence[Sequence[tuple[list[int], list[int]]]],
    **more: Any,
) -> None:
    """Write images and tasks as a trainer does.

    Args:
        url: The ledger.
        records: The images; their numbers are their places.
        root: Folder of the images.
        tasks: For each task its questions: both groups, the large image first. Several make a
            sheet.
        more: Other columns of the questions.
    """
    with Ledger.open(url) as ledger, ledger.store.writing() as connection:
        for number, record in enumerate(records):
            path = record.path.relative_to(root).as_posix()
            digest = digest_of(record.path.read_bytes())
            connection.execute(IMAGES.insert(), {"id": number, "path": path, "digest": digest})
        for task in tasks:
            first = None
            for left, right in task:
                values = {
                    **{"run": "run", "epoch": 3, "left_id": left[0], "right_id": right[0]},
                    **{"left_images": json.dumps(left), "right_images": json.dumps(right)},
                    **{"reason": "merge", "score": 1.0, "similarity": 0.5, "probability": 0.6},
                    **{"known_event": 0, "status": "open", "made_at": 0.0, "sheet": first, **more},
                }
                key = connection.execute(QUESTIONS.insert(), values).inserted_primary_key
                assert key is not None
                if len(task) > 1 and first is None:
                    first = key[0]
                    chosen = QUESTIONS.c.id == first
                    connection.execute(QUESTIONS.update().where(chosen), {"sheet": first})


class Site:
    """A ledger with its service and its application.

    Args:
        folder: Where images and ledger are written.
        tasks: The tasks, see `fill_ledger`.
        images: Number of images.
        records: Images to use in place of drawn ones, below `root`.
        url: The ledger; a file in the folder when not given.
        options: Fields of `PageOptions`; `local` may be the name of a person.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Sequence[tuple[list[int], list[int]]]],
        images: int = 40,
        records: Sequence[Record] | None = None,
        root: Path | None = None,
        url: str | None = None,
        **options: Any,
    ) -> None:
        root = root or folder / "images"
        self.records = draw_images(root, images) if records is None else list(records)
        self.url = url or str(folder / "answers.sqlite")
        fill_ledger(self.url, self.records, root, tasks)
        #: Seconds by which the clock of the server is ahead.
        self.ahead = 0.0
        # Tests that count answers must not meet questions whose answers are known.
        self.service = AnswerService.open(self.url, gold_share=0.0, clock=self._now)
        self.pictures = Pictures(root, records_by_name(root, self.records))
        if isinstance(options.get("local"), str):
            options["local"] = self.service.person_named(options["local"], "admin")
        self.options = PageOptions(**options)
        self.closing = Closing()

    def _now(self) -> float:
        return time.time() + self.ahead

    def person(self, name: str, role: str = "annotate") -> tuple[Person, str]:
        return self.service.add_person(name, role)

    def app(self) -> Starlette:
        return make_app(self.service, self.pictures, self.options, self.read_ledger, self.closing)

    def read_ledger(self) -> Ledger:
        return Ledger.open(self.url, write=False)

    def client(self, token: str | None = None) -> TestClient:
        client = TestClient(self.app(), base_url=BASE, raise_server_exceptions=True)
        if token is not None:
            assert client.get(f"/link/{token}").status_code == 200
        return client

    def events(self) -> list[Any]:
        with self.read_ledger() as ledger:
            return list(ledger.events())

    def close(self) -> None:
        self.service.close()


def pairs(count: int, start: int = 0) -> list[list[tuple[list[int], list[int]]]]:
    """Tasks of one question about two images each."""
    return [[([start + 2 * i], [start + 2 * i + 1])] for i in range(count)]


class Running:
    """An application that is served on a port of this machine; it can be stopped and started."""

    def __init__(self, make: Callable[[], Starlette]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://localhost:{self.port}"
        self._make = make
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        config = uvicorn.Config(
            self._make(),
            host="127.0.0.1",
            port=self.port,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        for _ in range(100):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        assert self._server is not None and self._thread is not None
        self._server.should_exit = True
        self._thread.join(10)


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Running]:
    """Serve a site in a thread."""
    running = Running(site.app)
    running.start()
    try:
        yield running
    finally:
        site.closing.closed = True
        running.stop()
        site.close()
