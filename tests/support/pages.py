"""Read the page of a report as a browser without scripts would."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The parts of a page that tests look at.

    Args:
        text: The HTML.
    """

    #: Elements without an end tag.
    EMPTY = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.headings: list[tuple[int, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.EMPTY and not self._in_picture():
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        if self._in_picture() and tag != "svg":
            return
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            level, text = self.headings.pop()
            self.headings.append((level, text + data))
        if "style" not in self._open:
            self.words.append(data)

    def _in_picture(self) -> bool:
        return "svg" in self._open

    @property
    def text(self) -> str:
        """What a reader sees, on one line."""
        return " ".join(" ".join(self.words).split())

    def section(self, heading: str) -> str:
        """The text from a heading of the second level to the next one."""
        parts = re.split(r"<h2[^>]*>", self.source)
        (found,) = [part for part in parts if part.startswith(f"{heading}</h2>")]
        return Page(
            f"<main>{found[: found.rindex('</section>')]}</main>".replace(
                f"{heading}</h2>", f"<h2>{heading}</h2>", 1
            )
        ).text
