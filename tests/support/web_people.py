"""People who answer on the annotation page of a run, by its requests, from the true identities."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import httpx

from fastreid_al.answers.ledger import Ledger
from fastreid_al.errors import LedgerError


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def server_process(ledger: Path) -> int | None:
    """The process that serves the page of a ledger, None without one."""
    with contextlib.suppress(OSError, ValueError):
        process = int(ledger.with_name(ledger.name + ".server.lock").read_text())
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        return process if b"fastreid_al.annotate" in command else None
    return None


def end_server(ledger: Path) -> None:
    process = server_process(ledger)
    if process is not None:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


class WebPerson(threading.Thread):
    """A person with a page, who keeps answers until they are acknowledged.

    Args:
        port: Port of the page.
        ledger: The ledger, from which the paths of the images are read.
        identity_of: True identity by path.
        seed: Of the order in which the person decides.
    """

    def __init__(self, port: int, ledger: Path, identity_of: dict[str, int], seed: int) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.given: list[int] = []
        self._url = f"http://localhost:{port}"
        self._ledger = ledger
        self._identity_of = identity_of
        self._draw = random.Random(seed)
        self._seed = seed
        self._paths: dict[int, str] = {}
        self._done = threading.Event()

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        headers = {"Origin": self._url}
        with httpx.Client(base_url=self._url, headers=headers, timeout=10) as client:
            while not self._done.is_set():
                try:
                    self._step(client)
                except (httpx.HTTPError, LedgerError):
                    time.sleep(0.05)

    def _step(self, client: httpx.Client) -> None:
        found = client.get("/api/next?ahead=0&wait=1")
        task = found.json()["task"] if found.status_code == 200 else None
        if task is None:
            time.sleep(0.02)
            return
        self.given.append(task["id"])
        verdicts = {}
        for question, left, right in self._pairs(task["id"]):
            verdicts[str(question)] = "same" if left == right else "different"
        token = f"{self._seed}-{task['id']}-{self._draw.getrandbits(40)}"
        body = {"task": task["id"], "token": token, "verdicts": verdicts, "active_seconds": 1.0}
        while not self._done.is_set():
            with contextlib.suppress(httpx.HTTPError):
                answer = client.post("/api/answers", json=body)
                if answer.status_code == 200:
                    for question, verdict in verdicts.items():
                        self.acknowledged[f"{token}/{question}"] = int(question), verdict
                    return
                if answer.status_code < 500:
                    # The server was killed, and the task is somebody else's since.
                    return
            time.sleep(0.05)

    def _pairs(self, task: int) -> list[tuple[int, int, int]]:
        """Question and true identities of each pair of a task."""
        from fastreid_al.answers.database import QUESTIONS

        with Ledger.open(str(self._ledger), write=False) as ledger:
            self._paths = ledger.images()
            with ledger.store.reading() as connection:
                wanted = (QUESTIONS.c.id == task) | (QUESTIONS.c.sheet == task)
                rows = connection.execute(QUESTIONS.select().where(wanted)).all()
        identity = self._identity_of
        paths = self._paths
        return [
            (row.id, identity[paths[row.left_id]], identity[paths[row.right_id]]) for row in rows
        ]
