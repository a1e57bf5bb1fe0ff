"""Serves the annotation page of a run or of a ledger."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import sqlalchemy as sa

from ..annotators.terminal import login_name
from ..answers import Ledger
from ..answers.checks import Checks
from ..answers.database import IMAGES
from ..answers.people import parse_people
from ..answers.service import AnswerService
from ..answers.tasks import Person
from ..config import AnnotationConfig, RunConfig
from ..data.locate import existing_folder
from ..data.pixels import cache_folder
from ..data.records import Record
from ..engine.console import Reporter
from ..errors import LedgerError, SettingError, UserError, printable
from ..settings import validate
from .data import read_set
from .trained import config_of_run

if TYPE_CHECKING:
    from ..server.pictures import Pictures

_LEDGER_FILE = "answers.sqlite"


class Source(NamedTuple):
    """What people annotate.

    Args:
        ledger: Path of an SQLite file, or a URL.
        config: Configuration of the run, where it is known.
    """

    ledger: str
    config: RunConfig | None


def serve_annotation(options: AnnotationConfig, reporter: Reporter | None = None) -> None:
    """Serve the annotation page of a run until Ctrl-C.

    Args:
        options: The run, the address, and the people.
        reporter: Prints lines and progress.

    Raises:
        UserError: The run, the ledger or the images cannot be used, the port is taken, or a package
            is missing.
    """
    reporter = reporter or Reporter()
    validate(options)
    try:
        from ..server.serve import Address, serve, settling
    except ImportError as error:
        raise UserError(
            f"the annotation page needs {error.name}: pip install 'fastreid_al[web]'"
        ) from error
    from ..server.app import PageOptions, make_app
    from ..server.guards import is_loopback
    from ..server.roster import add_known_answers

    wanted = parse_people(options.people)
    _check_url(options.public_url)
    source = find_source(options)
    address = Address(options.host, options.port)
    with address:
        pictures = open_pictures(source, options, reporter)
        checks = Checks(
            options.gold_share,
            options.gold_share_unsure,
            options.second_votes,
            options.second_votes_unsure,
        )
        with AnswerService.open(source.ledger, checks=checks) as service:
            _check_images(source.ledger, pictures, reporter)
            links = _make_people(service, source.ledger, wanted, options.renew_links, reporter)
            local = _local_person(service, source.ledger, options)
            if options.gold is not None:
                added = add_known_answers(source.ledger, Path(options.gold))
                reporter.line(f"{added:,} questions with known answers were added")
            page = PageOptions(
                noun=options.noun.strip() or "person",
                show_similarity=options.show_similarity,
                host=options.host,
                port=address.port,
                public_url=options.public_url,
                local=local,
            )
            url = (options.public_url or address.url).rstrip("/")
            for line in _greeting(url, links, local, address.port, is_loopback(options.host)):
                reporter.line(line)

            def read_ledger() -> Ledger:
                return Ledger.open(source.ledger, write=False)

            with settling(service):
                serve(
                    lambda closing: make_app(service, pictures, page, read_ledger, closing),
                    address,
                    url if options.open else None,
                )
    reporter.line("the page was closed; every answer is kept")


def find_source(options: AnnotationConfig) -> Source:
    """Find the ledger that is annotated, and the configuration of its run.

    Args:
        options: Names a run or a ledger.

    Raises:
        UserError: There is none.
    """
    if "://" in options.run:
        return Source(options.run, None)
    path = Path(options.run)
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist; name the folder of a run, or its ledger")
        beside = path.parent / "config.json"
        is_of_run = path.name == _LEDGER_FILE and os.path.isfile(beside)
        return Source(str(path), config_of_run(beside) if is_of_run else None)
    saved = path / "config.json"
    if not os.path.isfile(saved):
        raise UserError(
            f"{path} is not the folder of a run: it has no config.json; name the folder that a "
            "training wrote into, or a ledger"
        )
    config = config_of_run(saved)
    ledger = config.questions.ledger or str(path / _LEDGER_FILE)
    if "://" not in ledger and not os.path.exists(ledger):
        raise LedgerError(f"there is no ledger {ledger}: the run has not asked a question yet")
    return Source(ledger, config)


def open_pictures(source: Source, options: AnnotationConfig, reporter: Reporter) -> Pictures:
    """Return the images of a run, or those below the folder that is named.

    Args:
        source: The ledger, and the configuration of the run where it is known.
        options: May name another folder of the images.
        reporter: Shows progress.

    Raises:
        UserError: The images cannot be found.
    """
    from ..server.pictures import Pictures, records_by_name

    if source.config is None:
        if options.data_root is None:
            raise UserError(
                f"{source.ledger} is a ledger without its run: name the folder of the images with "
                "`data_root`"
            )
        return Pictures(existing_folder(Path(options.data_root)))
    config = source.config
    if options.data_root is not None:
        config = replace(config, data_root=options.data_root)
    images = read_set(config, config.dataset, reporter)
    records: dict[str, Record] = records_by_name(images.root, images.train)
    return Pictures(images.root, records, cache_folder(config.image.cache))


def _check_images(name: str, pictures: Pictures, reporter: Reporter) -> None:
    """Say which images were moved or are missing, and refuse a ledger of other images.

    Raises:
        LedgerError: The ledger has images, and none of them is there.
    """
    with Ledger.open(name, write=False) as ledger, ledger.store.reading() as connection:
        rows = connection.execute(sa.select(IMAGES).order_by(IMAGES.c.id)).all()
        # Without the password of a server.
        shown = ledger.name
    missing = [row for row in rows if row.erased_at is None and not pictures.has(row.path)]
    if not missing:
        return
    with reporter.progress("looking for images that were moved", len(missing)) as update:
        found = pictures.find_moved({row.digest for row in missing}, update)
    gone = [row.path for row in missing if row.digest not in found]
    if len(gone) == len(rows):
        raise LedgerError(
            f"none of the {len(rows):,} images of {printable(shown)} was found, such as "
            f"{printable(gone[0])}; name the folder of the images with `data_root`, or another "
            "ledger"
        )
    if len(missing) > len(gone):
        count = len(missing) - len(gone)
        reporter.line(f"{count:,} of {len(rows):,} images have another name now, found by content")
    if gone:
        reporter.line(
            f"{len(gone):,} of {len(rows):,} images are missing, such as {printable(gone[0])}; "
            "questions about them show an empty frame"
        )


def _check_url(url: str | None) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    except ValueError:
        fits = False
    if not fits:
        raise SettingError("public_url", url, "an address such as https://labels.example.org")


def _make_people(
    service: AnswerService, ledger: str, wanted: dict[str, str], renew: bool, reporter: Reporter
) -> dict[str, str]:
    """Add the people that are new, and return the tokens that were made, by name."""
    from ..server.roster import renew_link

    known = {figures.name for figures in service.people()}
    tokens = {}
    for name, role in wanted.items():
        if name not in known:
            tokens[name] = service.add_person(name, role)[1]
        elif renew:
            tokens[name] = renew_link(ledger, name)
        else:
            reporter.line(f"{printable(name)} has a link already; `renew_links` makes a new one")
    return tokens


def _local_person(service: AnswerService, ledger: str, options: AnnotationConfig) -> Person | None:
    """Who answers without a link: whoever is logged in; None where people have links.

    Raises:
        SettingError: Other machines reach the page, and nobody has a link.
    """
    from ..server.guards import is_loopback
    from ..server.roster import have_links, make_admin

    if have_links(ledger):
        return None
    if options.public_url or not is_loopback(options.host):
        raise SettingError("people", options.people, "names", "other machines need personal links")
    name = service.person_named(login_name(), "admin").name
    make_admin(ledger, name)
    return service.person_named(name)


def _greeting(
    url: str, tokens: dict[str, str], local: Person | None, port: int, loopback: bool
) -> list[str]:
    lines = []
    if local is not None:
        lines.append(f"questions for {printable(local.name)}: {url}")
        lines.append("everybody with an account on this machine can open this page; see `people`")
    for name, token in tokens.items():
        lines.append(f"questions for {printable(name)}: {url}/link/{token}")
    if local is None and not tokens:
        lines.append(f"people use the links that they have, at {url}")
    if loopback:
        lines.append(f"from another machine: ssh -L {port}:localhost:{port} THIS_MACHINE")
    lines.append("Ctrl-C ends the page, and the run if it opened the page; every answer is kept")
    return lines
