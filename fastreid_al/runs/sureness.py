"""How sure a search is, learnt from what is known of the images of its run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch import Tensor

from ..answers import Ledger, Verdict
from ..config import EngineConfig
from ..data import ImageSet
from ..data.listing import Listing
from ..data.pixels import BadImage
from ..data.records import UNKNOWN, Record
from ..data.walk import relative
from ..engine.console import Reporter
from ..engine.network import Network
from ..errors import DataError, UserError, printable
from ..retrieval.feature_file import FeatureTable, new_feature_file, read_table
from ..retrieval.open_set import UnknownThreshold
from ..retrieval.probability import MatchProbability, fit_probability
from ..retrieval.reference import learn_sureness, matches_per_query, sample_images
from .extract import add_features
from .feature_stream import describe_features, stream_features
from .questions import LEDGER_FILE
from .trained import RunFiles, Trained, images_of_run

#: Features of the images of the run by which the sureness is learnt.
REFERENCE_FILE = "reference.safetensors"
#: Answers from which the probability is learnt, at most; their images are extracted every time.
MOST_ANSWERS = 2000


@dataclass(frozen=True)
class SearchSureness:
    """How sure the hits of a search are.

    Args:
        probability: Of a match, by similarity; None where nothing is known.
        matches: Matches that a query is taken to have in the gallery, on average.
        others: Other images of the gallery.
        threshold: When a query is unknown; None where it cannot be chosen.
        source: What it was learnt from.
    """

    probability: MatchProbability | None = None
    matches: float = 0.0
    others: float = 0.0
    threshold: UnknownThreshold | None = None
    source: str = "nothing"


@dataclass(frozen=True)
class SurenessLearner:
    """Learns how sure a search is from the images of a run.

    Args:
        run: The run.
        trained: How features are computed.
        network: The network as the engine runs it.
        engine: How features are extracted.
        reporter: Prints what it was learnt from.
    """

    run: RunFiles
    trained: Trained
    network: Network
    engine: EngineConfig
    reporter: Reporter

    def learn(
        self, gallery_size: int, false_match_rate: float, matches: float | None = None
    ) -> SearchSureness:
        """Learn from test images, from training images, or from answers.

        Test images of known identity come first, because the network was not trained on them; then
        training images of known identity; then the answers in the ledger of the run, from which
        only the probability can be learnt. Features of up to 4,000 images are kept in the run's
        folder, 33 MB for D = 2,048.

        Args:
            gallery_size: Images of the gallery that is searched.
            false_match_rate: The share of unknown queries that may be taken for known ones.
            matches: Images of the gallery that show a query's identity, on average; None where
                this is not known.
        """
        try:
            images = images_of_run(self.run, self.reporter)
            test = [r for r in (*images.query, *images.gallery) if r.identity != UNKNOWN]
            training = [r for r in images.train if r.identity != UNKNOWN]
            if test or training:
                which = "test" if test else "training"
                known = test or training
                learnt = self._from_identities(
                    images, known, which, gallery_size, false_match_rate, matches
                )
            else:
                learnt = self._from_answers(images, gallery_size)
                if matches is not None and learnt.probability is not None:
                    self.reporter.warn(
                        "`matches` is not used: how many matches the answered pairs come from is "
                        "not known"
                    )
        except UserError as error:
            self.reporter.warn(f"the probability of a match cannot be learnt ({error})")
            learnt = SearchSureness()
        if learnt.probability is None:
            self.reporter.line(
                "the probability of a match is not known: too few identities of the run's images "
                "are known, and too few answers"
            )
        if learnt.threshold is None:
            self.reporter.line(
                "no query is marked as unknown: too few identities of the run's images are known"
            )
        return learnt

    def _from_identities(
        self,
        images: ImageSet,
        known: Sequence[Record],
        which: str,
        gallery_size: int,
        false_match_rate: float,
        stated: float | None,
    ) -> SearchSureness:
        same_camera = self.run.config.evaluation.same_camera == "include"
        table = self._reference(images, [known[row] for row in sample_images(known)])
        assert table.identities is not None
        learnt = learn_sureness(
            table.features,
            table.identities,
            table.cameras,
            gallery_size,
            false_match_rate,
            same_camera=same_camera,
        )
        # A small gallery is taken to have the same share of matches, a large one the same number.
        share = min(1.0, gallery_size / len(known))
        matches = share * matches_per_query(known, same_camera)
        if stated is not None:
            matches = min(stated, float(gallery_size))
        source = f"{len(table):,} {which} images of {learnt.identities:,} identities"
        if learnt.probability is not None:
            assert learnt.error is not None
            self.reporter.line(
                f"probability of a match: from {learnt.pairs:,} pairs of {source}, calibration "
                f"error {100 * learnt.error:.1f} %; it holds if a query has {matches:.2g} matches "
                f"among {gallery_size:,} gallery images on average"
            )
        if which == "training":
            self.reporter.warn(
                "the network was trained on these images: on others, matches are less similar, "
                "and error rates are higher"
            )
        # At least one, so that a gallery of the query's identity alone has finite odds.
        others = max(1.0, gallery_size - matches)
        return SearchSureness(learnt.probability, matches, others, learnt.threshold, source)

    def _reference(self, images: ImageSet, chosen: list[Record]) -> FeatureTable:
        """The features of a sample, as the run's folder has them, or extracted now."""
        path = self.run.folder / REFERENCE_FILE
        names = [relative(record.path, images.root).as_posix() for record in chosen]
        about = describe_features(self.trained, self.network, self.engine)
        labels = [(n, r.identity, r.camera) for n, r in zip(names, chosen, strict=True)]
        about["sample"] = hashlib.sha256(json.dumps(labels).encode()).hexdigest()
        if os.path.isfile(path):
            try:
                table = read_table(path)
                same = (table.about.get(key) == about[key] for key in ("model_digest", "sample"))
                if all(same) and table.identities is not None:
                    return table
            except DataError:
                self.reporter.warn(f"{path} is damaged and is written anew")
        listed = Listing(images.root, chosen, names)
        try:
            return self._write_reference(path, about, listed)
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise
        self.reporter.line(
            f"{printable(path)} cannot be written: every search extracts these images again"
        )
        # The features stay mapped when the file is gone.
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            return self._write_reference(Path(folder) / REFERENCE_FILE, about, listed)

    def _write_reference(
        self, path: Path, about: Mapping[str, str], listed: Listing
    ) -> FeatureTable:
        """Extract the features of a sample into a file, and map it."""
        with new_feature_file(path, about, ("cameras", "identities"), key="run") as writer:
            args = (writer, self.trained, self.network, listed, self.engine, self.reporter)
            if not add_features(*args, "reference"):
                raise DataError(f"{listed.root} holds no readable image")
            writer.end_split()
        return read_table(path)

    def _from_answers(self, images: ImageSet, gallery_size: int) -> SearchSureness:
        """Learn the probability from the pairs that people have judged, 2,000 at most."""
        records = {relative(r.path, images.root).as_posix(): r for r in images.train}
        answers = [a for a in _answers(self.run) if {a.left.name, a.right.name} <= records.keys()]
        answers = answers[:: -(-len(answers) // MOST_ANSWERS) or 1]
        features = self._features_of(
            {image.name: records[image.name] for a in answers for image in (a.left, a.right)}
        )
        similarity, same = [], []
        for answer in answers:
            sides = [_feature_of(image, features) for image in (answer.left, answer.right)]
            if sides[0] is not None and sides[1] is not None:
                similarity.append(float(sides[0] @ sides[1]))
                same.append(answer.same)
        # How many matches an image has is not known: the odds change with the gallery's size alone.
        others = float(max(1, len(images.train)))
        probability = fit_probability(similarity, same, 1.0, others)
        source = f"{len(same):,} answers about training images"
        if probability is not None:
            self.reporter.line(
                f"probability of a match: from {source}; it holds if a query has as many matches "
                "in the gallery as an image has in the training set, on average"
            )
        matches = min(1.0, gallery_size / others)
        return SearchSureness(probability, matches, float(gallery_size), None, source)

    def _features_of(self, records: Mapping[str, Record]) -> dict[str, tuple[str, Tensor]]:
        """Digest and feature of each image that can be read, by name."""
        names = sorted(records)
        paths = [records[name].path for name in names]
        bad: list[BadImage] = []
        features: dict[str, tuple[str, Tensor]] = {}
        with self.reporter.progress("extracting answered images", len(paths)) as update:
            args = (self.trained, self.network, paths, self.engine, bad, update)
            for part in stream_features(*args):
                for row, *found in zip(part.rows, part.digests, part.features, strict=True):
                    features[names[row]] = found[0], found[1]
        self.reporter.bad_images("answered", bad)
        return features


class _Image(NamedTuple):
    """An image of an answer: its path, and the digest of its content, empty where unknown."""

    name: str
    digest: str


class _Answer(NamedTuple):
    """An answer: two images, and whether they show the same identity."""

    left: _Image
    right: _Image
    same: bool


def _feature_of(image: _Image, features: Mapping[str, tuple[str, Tensor]]) -> Tensor | None:
    """The feature of an image of an answer; None where its content is another or cannot be read."""
    digest, feature = features.get(image.name, ("", None))
    return None if image.digest not in ("", digest) else feature


def _answers(run: RunFiles) -> list[_Answer]:
    """The pairs of images that the run's ledger calls same or different."""
    url = run.config.questions.ledger or str(run.folder / LEDGER_FILE)
    if "://" not in url and not os.path.exists(url):
        return []
    verdicts = {Verdict.SAME.value: True, Verdict.DIFFERENT.value: False}
    with Ledger.open(url, write=False) as ledger:
        return [
            _Answer(
                _Image(event.left, event.left_digest or ""),
                _Image(event.right, event.right_digest or ""),
                verdicts[event.verdict],
            )
            for event in ledger.events()
            if event.undone_by is None
            and event.verdict in verdicts
            and event.left is not None
            and event.right is not None
        ]
