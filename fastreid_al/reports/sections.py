"""The sections of the page of one run: what a template prints of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from ..answers import Verdict
from ..config import ReportConfig
from ..data.records import UNKNOWN, Record
from ..data.walk import relative
from ..engine.console import percent
from ..errors import printable
from .charts import Chart, histogram, number, run_charts
from .clusters import Clusters, divided_clusters, gather_clusters, near_clusters
from .crops import Crops
from .queries import Ranked, average_precisions, choose_queries, show_query
from .questions import QuestionPages
from .results import RunResults, default_settings

#: Images of a cluster, and of a group, that are shown.
MEMBERS = 8
_GROUP = 6
#: Suspects of each kind that are shown.
SUSPECTS = 20
#: Implied pairs that are shown.
IMPLIED = 20
#: Scores of the table of results, by their keys in metrics.jsonl, and their names.
SCORES = {
    "mAP": "mAP",
    "mINP": "mINP",
    "rank1": "rank-1",
    "rank5": "rank-5",
    "rank10": "rank-10",
}
#: Columns of the table of costs: title, key in metrics.jsonl, and how a value is written.
_COST = (
    ("questions", "questions", "count"),
    ("in all", "questions_total", "count"),
    ("share of pairs, %", "share_total", "share"),
    ("seconds", "answering_seconds", "count"),
    *((v.value, f"answered_{v.name.lower()}", "count") for v in Verdict),
    ("answered before", "remembered", "count"),
    ("contradictions", "contradictions", "count"),
    ("doubted", "doubted", "count"),
)


@dataclass(frozen=True)
class Table:
    """A table with heads of columns; the first cell of each row is its head.

    Args:
        title: What it shows.
        columns: Heads.
        rows: Cells.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Member:
    """An image of a cluster.

    Args:
        crop: The picture.
        caption: What stands below it.
        kind: "right", "wrong" or empty where the true identity is not known.
        sign: A sign that says the same without colour.
    """

    crop: Markup
    caption: str
    kind: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Group:
    """Images that are shown side by side.

    Args:
        title: What they are.
        members: The images.
        more: Images of the group that are not shown.
    """

    title: str
    members: Sequence[Member]
    more: int


@dataclass(frozen=True)
class Card:
    """One or two groups of images with a title.

    Args:
        title: What is shown.
        facts: Figures in words.
        verdict: What the true identities say; empty where they are not known.
        kind: "wrong" or "right", by the verdict.
        groups: The images.
    """

    title: str
    facts: Sequence[str]
    verdict: str
    kind: str
    groups: Sequence[Group]


class RunSections:
    """The sections of a page about one run.

    Args:
        results: The results of the run.
        options: How much is shown.
        crops: Makes the pictures.
    """

    def __init__(self, results: RunResults, options: ReportConfig, crops: Crops) -> None:
        self.results = results
        self._options = options
        self._crops = crops
        self._by_path: dict[str, Record] | None = None
        self._labelled = results.identities_known
        self._clusters: Clusters | None = None
        if results.features is not None and results.labels is not None:
            self._clusters = gather_clusters(results.features, results.labels)
        self.questions: QuestionPages | None = None
        if results.answers is not None:
            self.questions = QuestionPages(
                results.answers, self._find, crops, options.anonymise, self._identity
            )

    def summary(self) -> list[tuple[str, str]]:
        """Name and value of the facts that a reader looks for first."""
        config, history = self.results.config, self.results.history
        done = max((r["epoch"] for r in history if isinstance(r.get("epoch"), int)), default=0)
        facts = [
            ("method", config.method),
            ("network", f"{printable(config.model)}, {config.image.height} x {config.image.width}"),
            ("image set", printable(config.dataset)),
            ("epochs", f"{done:,} of {config.epochs:,}"),
            ("seed", f"{config.seed}"),
        ]
        images = self.results.images
        if images is not None:
            counts = [f"{len(records):,} {name}" for name, records in images.splits.items()]
            facts.insert(3, ("images", ", ".join(counts)))
        if self._clusters is not None:
            others = len(self.results.records) - int(self._clusters.sizes.sum())
            alone = f"; {others:,} images in none of them" if others else ""
            facts.append(("clusters", f"{len(self._clusters):,} of two or more images{alone}"))
        return [*facts, *self._asked()]

    def _asked(self) -> list[tuple[str, str]]:
        """What the questions cost."""
        asked = [r for r in self.results.history if r.get("questions_total") is not None]
        if not asked:
            return [("questions", "none")]
        last = asked[-1]
        strategy = printable(self.results.config.ask)
        share, seconds = last.get("share_total"), last.get("answering_seconds_total")
        facts = [f"{last['questions_total']:,}, strategy {strategy}"]
        if isinstance(share, float):
            facts.append(f"{100 * share:.4f} % of all pairs")
        if isinstance(seconds, int | float):
            facts.append(f"{seconds:,.0f} s of answering")
        return [("questions", "; ".join(facts))]

    def scores(self) -> Table | None:
        """Scores of the untrained, the last and the best network; None without an evaluation."""
        evaluated = [r for r in self.results.history if "mAP" in r]
        trained = [r for r in evaluated if r.get("epoch")]
        rows = [("untrained", r) for r in evaluated if r.get("epoch") == 0][:1]
        if trained:
            rows.append((f"last, epoch {trained[-1]['epoch']}", trained[-1]))
            scored = [r for r in trained if isinstance(r["mAP"], int | float)]
            if scored:
                best = max(scored, key=lambda r: r["mAP"])
                rows.append((f"best, epoch {best['epoch']}", best))
        cells = [[name, *(percent(r.get(key)) for key in SCORES)] for name, r in rows]
        return (
            Table("Scores of the test images, %", ["network", *SCORES.values()], cells)
            if rows
            else None
        )

    def charts(self) -> list[Chart]:
        """Curves over epochs."""
        return run_charts(self.results.history)

    def cost(self) -> Table | None:
        """Questions and answers of each epoch; None for a run without questions."""
        asked = [r for r in self.results.history if "questions" in r]
        columns = [c for c in _COST if any(r.get(c[1]) is not None for r in asked)]
        rows = [
            [number(r["epoch"]), *(_cell(r.get(key), how) for _, key, how in columns)]
            for r in asked
        ]
        return (
            Table("Answers by epoch", ["epoch", *(c[0] for c in columns)], rows) if rows else None
        )

    def people(self) -> Table | None:
        """Answers of each annotator; None without answers."""
        if self.questions is None or not (rows := self.questions.people()):
            return None
        columns = ["annotator", "answers", *(v.value for v in Verdict), "seconds"]
        return Table("Answers by annotator", columns, rows)

    def cluster_cards(self) -> list[Card]:
        """Contact sheets of the least coherent clusters, the least coherent first."""
        if self._clusters is None:
            return []
        coherence = self._clusters.coherence()
        order = coherence.argsort(stable=True)[: self._options.clusters].tolist()
        return [self._cluster_card(cluster, float(coherence[cluster])) for cluster in order]

    @property
    def cluster_count(self) -> int:
        """Number of clusters of two or more images."""
        return 0 if self._clusters is None else len(self._clusters)

    def _cluster_card(self, cluster: int, coherence: float) -> Card:
        assert self._clusters is not None
        images = self._clusters.images(cluster)
        similarities = self._clusters.similarities(cluster)
        cameras = {self.results.records[i].camera for i in images.tolist()} - {UNKNOWN}
        facts = [
            _images(len(images)),
            f"coherence {coherence:.3f}",
            f"lowest {float(similarities[-1]):.3f}",
        ]
        if cameras:
            facts.append(f"{len(cameras)} {'camera' if len(cameras) == 1 else 'cameras'}")
        positions = list(range(len(images)))
        if len(positions) > MEMBERS:
            # The centre says what the cluster is, the end what may not belong to it.
            positions = [*positions[: MEMBERS // 2], *positions[-MEMBERS // 2 :]]
        group = self._group("", images, positions, self._main_identity(images), similarities)
        verdict, kind = self._mixture(images)
        label = int(self._clusters.labels[cluster])
        return Card(f"Cluster {label}", facts, verdict, kind, [group])

    def _group(
        self,
        title: str,
        images: Tensor,
        positions: Sequence[int],
        main: int | None,
        similarities: Tensor | None = None,
    ) -> Group:
        """Some images of a group, marked by whether they have an identity.

        Args:
            title: What the group is.
            images: Rows of its images.
            positions: Which of them are shown.
            main: The identity; None where identities are not known.
            similarities: Similarity of each image to its centroid, shown where given.
        """
        members = []
        for position in positions:
            record = self.results.records[int(images[position])]
            caption = "" if similarities is None else f"{float(similarities[position]):.2f}"
            kind = "" if main is None else "right" if record.identity == main else "wrong"
            sign = {"right": "\u2713", "wrong": "\u2717"}.get(kind, "")
            text = f"{kind}: {self._name(record)}" if kind else self._name(record)
            members.append(Member(self._crops.show(record.path, text), caption, kind, sign))
        return Group(title, members, len(images) - len(positions))

    def _first_images(self, title: str, images: Tensor, main: int | None) -> Group:
        """The most central images of a group."""
        return self._group(title, images, range(min(len(images), _GROUP)), main)

    def _main_identity(self, images: Tensor) -> int | None:
        """The most frequent identity of some images; None where identities are not known."""
        if not self._labelled:
            return None
        counts = Counter(self.results.records[i].identity for i in images.tolist())
        return max(counts, key=lambda identity: (counts[identity], -identity))

    def _mixture(self, images: Tensor) -> tuple[str, str]:
        """How many identities a cluster holds, in words, and which kind that is."""
        if not self._labelled:
            return "", ""
        counts = Counter(self.results.records[i].identity for i in images.tolist())
        if len(counts) == 1:
            return "\u2713 one identity", "right"
        largest = max(counts.values())
        return f"\u2717 {len(counts)} identities, {largest:,} images of the largest", "wrong"

    def mixed_clusters(self) -> str:
        """How many clusters hold several identities, in words; empty where that is not known."""
        if self._clusters is None or not self._labelled or not len(self._clusters):
            return ""
        mixed = sum(
            self._mixture(self._clusters.images(c))[1] == "wrong"
            for c in range(len(self._clusters))
        )
        return f"By the true identities {mixed:,} of {len(self._clusters):,} clusters mix people."

    def suspected_merges(self) -> list[Card]:
        """Clusters that fall apart into two groups, the most likely false merge first."""
        if self._clusters is None or self.results.features is None:
            return []
        cards = []
        for division in divided_clusters(self.results.features, self._clusters, SUSPECTS):
            main = self._main_identity(self._clusters.images(division.cluster))
            groups = [
                self._first_images(_images(len(images)), images, main)
                for images in (division.first, division.second)
            ]
            verdict, kind = self._mixture(self._clusters.images(division.cluster))
            if kind:
                verdict += ": a real false merge" if kind == "wrong" else ": no false merge"
            label = int(self._clusters.labels[division.cluster])
            facts = [f"similarity of the two groups {division.between:.3f}"]
            if len(self._clusters) > 1:
                facts.append(f"of one of them to another cluster {division.other:.3f}")
            cards.append(Card(f"Cluster {label}", facts, verdict, kind, groups))
        return cards

    def suspected_splits(self) -> list[Card]:
        """Pairs of clusters that are nearest to each other and not known to be different."""
        if self._clusters is None:
            return []
        cards = []
        for pair in near_clusters(self._clusters, self._known_apart(), SUSPECTS):
            sides = [self._clusters.images(cluster) for cluster in (pair.first, pair.second)]
            labels = [int(self._clusters.labels[c]) for c in (pair.first, pair.second)]
            main = [self._main_identity(images) for images in sides]
            titles = [
                f"cluster {label}, {_images(len(images))}"
                for label, images in zip(labels, sides, strict=True)
            ]
            groups = list(map(self._first_images, titles, sides, main))
            verdict = kind = ""
            if main[0] is not None:
                real = main[0] == main[1]
                kind = "wrong" if real else "right"
                verdict = (
                    "\u2717 one identity: a real split"
                    if real
                    else "\u2713 two identities: no split"
                )
            facts = [f"similarity of the centroids {pair.similarity:.3f}"]
            title = f"Clusters {labels[0]} and {labels[1]}"
            cards.append(Card(title, facts, verdict, kind, groups))
        return cards

    def _known_apart(self) -> set[tuple[int, int]]:
        """Pairs of clusters of which the answers say that they are different people."""
        answers, clusters = self.results.answers, self._clusters
        if answers is None or clusters is None:
            return set()
        cluster_of = torch.full((len(self.results.records),), -1)
        of_rows = torch.arange(len(clusters)).repeat_interleave(clusters.sizes)
        cluster_of[clusters.rows] = of_rows
        rows = {self._name(record): row for row, record in enumerate(self.results.records)}
        numbers = {
            image: int(cluster_of[rows[name]])
            for image, path in answers.paths.items()
            if (name := printable(path)) in rows
        }
        apart = set()
        components = answers.closure.components()
        of_root = {
            root: {numbers.get(image, -1) for image in images} - {-1}
            for root, images in components.items()
        }
        for root, found in of_root.items():
            for other in answers.closure.cannot_links(root):
                apart |= {(min(a, b), max(a, b)) for a in found for b in of_root[other] if a != b}
        return apart

    def precision_chart(self) -> Chart | None:
        """Histogram of average precision over queries; None without rankings."""
        if self.results.ranked is None:
            return None
        values = average_precisions(self.results.ranked.scores)
        return histogram("average precision of a query, %", values) if values else None

    def query_groups(self) -> list[tuple[str, list[Any]]]:
        """The worst, median and best queries with their lists."""
        ranked = self.results.ranked
        if ranked is None:
            return []
        chosen = choose_queries(ranked.scores, self._options.queries)
        return [
            (title, [show_query(ranked, query, self._crops) for query in queries])
            for title, queries in chosen.items()
            if queries
        ]

    def ranking_facts(self) -> str:
        """How many queries were ranked and skipped, in words."""
        ranked: Ranked | None = self.results.ranked
        if ranked is None:
            return ""
        count = int(ranked.scores.ranked.sum())
        skipped = len(ranked.queries) - count
        text = f"{count:,} queries, {len(ranked.gallery):,} gallery images."
        return f"{text} {skipped:,} queries have no match and are left out." if skipped else text

    def question_groups(self) -> list[tuple[str, list[Any]]]:
        """The shown questions by epoch."""
        if self.questions is None:
            return []
        groups: dict[str, list[Any]] = {}
        for event in self.questions.chosen(self._options.questions):
            title = "Outside a run" if event.epoch is None else f"Epoch {event.epoch}"
            groups.setdefault(title, []).append(self.questions.show(event))
        return list(groups.items())

    def marked_questions(self) -> list[Any]:
        """The questions whose answers are unusual, as far as they are shown."""
        if self.questions is None:
            return []
        chosen = self.questions.chosen(self._options.questions)
        return [self.questions.show(e) for e in chosen if self.questions.is_marked(e)]

    def implied(self) -> list[Any]:
        """Pairs that follow from the answers, with their proof."""
        most = min(IMPLIED, self._options.questions)
        return [] if self.questions is None else self.questions.implied(most)

    def settings(self) -> Table:
        """Every setting, its value and its default, changed ones first."""
        default = default_settings()
        rows = [
            [key, value, default.get(key, "none")]
            for key, value in self.results.settings(self._options.anonymise).items()
        ]
        rows.sort(key=lambda row: row[1] == row[2])
        return Table("Settings", ["setting", "value", "default"], rows)

    def versions(self) -> Table:
        """Versions of the software."""
        rows = [[printable(name), printable(str(v))] for name, v in self.results.versions.items()]
        return Table("Versions", ["software", "version"], rows)

    def _name(self, record: Record) -> str:
        """Path of an image relative to the folder of the set, as a page shows it."""
        images = self.results.images
        path = record.path if images is None else relative(record.path, images.root)
        return printable(path.as_posix())

    def _find(self, path: str) -> Path | None:
        """The file of a training image; a ledger may name any file, and only those are shown."""
        record = self._record(path)
        return None if record is None else record.path

    def _identity(self, path: str) -> int | None:
        """The true identity of a training image, None where it is not known."""
        record = self._record(path)
        return None if record is None or record.identity == UNKNOWN else record.identity

    def _record(self, path: str) -> Record | None:
        """The training image of a path that is relative to the folder of the set."""
        images = self.results.images
        if images is None:
            return None
        if self._by_path is None:
            self._by_path = {relative(r.path, images.root).as_posix(): r for r in images.train}
        return self._by_path.get(path)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _cell(value: Any, how: str) -> str:
    """A value of the table of costs."""
    if not isinstance(value, int | float):
        return "-"
    return f"{100 * value:.4f}" if how == "share" else number(round(value, 1))
