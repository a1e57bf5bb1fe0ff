"""The contact sheet: one picture of the two images of a question and of their groups."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..answers.question import Question
from ..data.pixels import to_rgb
from ..data.records import UNKNOWN, Record
from ..errors import UserError, printable
from ..files import make_folder, replacing

#: Most members of a group that are shown below its image.
MEMBERS = 10
#: Reasons of a question in words.
REASONS = {
    "split": "one cluster: should it be split?",
    "merge": "two clusters: should they be merged?",
}

#: Layout in pixels: margin, width of a side, gap between the sides.
_MARGIN = 24
_HALF = 540
_GAP = 48
#: Top of each line.
_TITLE = 18
_REASON = 60
_LETTER = 98
_IMAGE = 134
_CAMERA = 462
_COUNT = 500
_THUMBS = 528
#: Boxes of the large and the small images, and the cells of the latter.
_LARGE = (_HALF, 320)
_COLUMNS = 5
_CELL = (_HALF // _COLUMNS, 154)
_THUMB = (96, 120)
_SIZE = (2 * (_MARGIN + _HALF) + _GAP, _THUMBS + _CELL[1] * (MEMBERS // _COLUMNS) + _MARGIN // 2)
_INK = "#111111"
_PALE = "#555555"
_LINE = "#cccccc"
_MISSING = "#bbbbbb"


class _Side(NamedTuple):
    """One side of the sheet.

    Args:
        image: Row of the large image.
        members: Rows of the small images.
        images: Size of the group.
    """

    image: int
    members: list[int]
    images: int


def draw_sheet(
    question: Question, records: Sequence[Record], path: Path, number: int | None = None
) -> tuple[list[str], list[str]]:
    """Draw the two images of a question and members of their groups as a PNG.

    The file is replaced atomically.

    Args:
        question: The question.
        records: The images by row. Their identities are not used.
        path: The picture; an existing one is replaced.
        number: Number of the question, for the title.

    Returns:
        The paths shown on each side: the large image, then the small ones.

    Raises:
        UserError: The picture cannot be written.
    """
    sides = [_choose(question, side, records) for side in (0, 1)]
    sheet = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(sheet)
    title = "Same person?" if number is None else f"Question {number}. Same person?"
    _write(draw, title, _SIZE[0] // 2, _TITLE, 30, _SIZE[0])
    _write(
        draw,
        REASONS.get(question.reason, question.reason),
        _SIZE[0] // 2,
        _REASON,
        18,
        _SIZE[0],
        _PALE,
    )
    draw.line([(_SIZE[0] // 2, _LETTER), (_SIZE[0] // 2, _SIZE[1] - _MARGIN)], _LINE)
    for letter, left, side in zip("AB", (_MARGIN, _MARGIN + _HALF + _GAP), sides, strict=True):
        _draw_side(sheet, letter, left, side, records)
    _save(sheet, path)
    first, second = (
        [records[row].path.as_posix() for row in rows] for rows in shown_rows(question, records)
    )
    return first, second


def shown_rows(question: Question, records: Sequence[Record]) -> tuple[list[int], list[int]]:
    """Return the rows of the images that `draw_sheet` shows on each side: the large image, then the
    small ones.

    Args:
        question: The question.
        records: The images by row. Their identities are not used.
    """
    first, second = (
        [side.image, *side.members]
        for side in (_choose(question, side, records) for side in (0, 1))
    )
    return first, second


def camera_name(camera: int) -> str:
    """Return the name of a camera for people."""
    return "camera unknown" if camera == UNKNOWN else f"camera {camera}"


def describe_image(record: Record) -> str:
    """Return the camera and the caption of an image; never its name, which may be an identity."""
    caption = printable(record.caption)
    return f"{camera_name(record.camera)}, {caption}" if caption else camera_name(record.camera)


def _choose(question: Question, side: int, records: Sequence[Record]) -> _Side:
    image = question.images[side]
    others = [row for row in question.groups[side].tolist() if row != image]
    return _Side(image, _spread(others, records[image].camera, records), 1 + len(others))


def _spread(rows: list[int], camera: int, records: Sequence[Record]) -> list[int]:
    """Choose `MEMBERS` rows: the first, and one from each of equal stretches of the others.

    Of a stretch, the row is chosen whose camera was chosen least often so far, then the one with
    the rarest camera.

    Args:
        rows: Rows of the group without the large image, most central first.
        camera: Camera of the large image.
        records: The images by row.
    """
    if len(rows) <= MEMBERS:
        return rows
    chosen = rows[:1]
    rest = rows[1:]
    stretches = MEMBERS - 1
    seen = Counter([camera, records[rows[0]].camera])
    images = Counter(records[row].camera for row in rows)
    for i in range(stretches):
        stretch = rest[i * len(rest) // stretches : (i + 1) * len(rest) // stretches]
        row = min(stretch, key=lambda r: (seen[records[r].camera], images[records[r].camera]))
        seen[records[row].camera] += 1
        chosen.append(row)
    return chosen


def _draw_side(
    sheet: Image.Image, letter: str, left: int, side: _Side, records: Sequence[Record]
) -> None:
    draw = ImageDraw.Draw(sheet)
    middle = left + _HALF // 2
    _write(draw, letter, middle, _LETTER, 26, _HALF)
    _paste(sheet, records[side.image].path, middle, _IMAGE, _LARGE)
    _write(draw, describe_image(records[side.image]), middle, _CAMERA, 18, _HALF)
    shown = f"{1 + len(side.members):,} of {side.images:,} image{'s' if side.images > 1 else ''}"
    _write(draw, shown, middle, _COUNT, 16, _HALF, _PALE)
    for index, row in enumerate(side.members):
        line, column = divmod(index, _COLUMNS)
        in_line = min(_COLUMNS, len(side.members) - line * _COLUMNS)
        # A line that is not full is centred.
        centre = middle + round((column - (in_line - 1) / 2) * _CELL[0])
        top = _THUMBS + line * _CELL[1]
        _paste(sheet, records[row].path, centre, top, _THUMB)
        _write(
            draw,
            camera_name(records[row].camera),
            centre,
            top + _THUMB[1] + 6,
            13,
            _CELL[0] - 12,
            _PALE,
        )


def _paste(sheet: Image.Image, path: Path, centre: int, top: int, box: tuple[int, int]) -> None:
    """Paste an image into a box, as large as possible; a grey one if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns about unusual files; they are shown as they are.
            image = to_rgb(path.read_bytes())
    except Exception:  # Pillow raises a wide range of types on damaged files.
        image = _unreadable(box)
    scale = min(box[0] / image.width, box[1] / image.height)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    image = image.resize(size, Image.Resampling.BICUBIC)
    sheet.paste(image, (centre - size[0] // 2, top + (box[1] - size[1]) // 2))


def _unreadable(box: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", (min(box[0], box[1] // 2 + 40), box[1]), _MISSING)
    _write(
        ImageDraw.Draw(image),
        "unreadable",
        image.width // 2,
        image.height // 2 - 10,
        16,
        image.width - 4,
    )
    return image


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    centre: int,
    top: int,
    size: int,
    width: int,
    colour: str = _INK,
) -> None:
    """Write a centred line, in a smaller font if it is wider than `width`."""
    while size > 6 and _font(size).getlength(text) > width:
        size -= 1
    draw.text((centre, top), text, fill=colour, font=_font(size), anchor="ma")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # always, if a size is given
    return font


def _save(sheet: Image.Image, path: Path) -> None:
    """Replace the picture as a whole: a viewer that reloads never sees half of it."""
    try:
        make_folder(path.parent)
        with replacing(path, durable=False) as file:
            sheet.save(file, format="PNG")
    except OSError as error:
        raise UserError(
            f"could not write the contact sheet {path} ({error.strerror}); "
            "free disk space, or name another run folder"
        ) from error
