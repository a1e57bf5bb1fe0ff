"""The questions of a run: one round per epoch, with one asker."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..answers.asker import Asker
from ..answers.closure import Closure
from ..answers.question import Verdict
from ..arguments import as_features, as_instance, as_integer, as_labels
from ..config import QuestionConfig
from .prior import similarity_prior
from .refine import refine
from .strategies import Strategy, load_strategy


class QuestionRounds:
    """Asks one round of questions in each epoch from `config.start` on.

    Args:
        asker: Asks the annotator and records the answers.
        strategy: Which pairs to ask about: a function, or the name of one.
        config: When and how much to ask, and the constants of the strategies.
    """

    def __init__(self, asker: Asker, strategy: Strategy | str, config: QuestionConfig) -> None:
        self.asker = as_instance("asker", asker, Asker)
        load_strategy(strategy)
        self.strategy = strategy
        self.config = as_instance("config", config, QuestionConfig)

    def refine(
        self, epoch: int, features: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Ask the round of an epoch; before epoch `config.start` nothing is asked.

        Args:
            epoch: The epoch, from 0.
            features: (n, D) unit-norm.
            labels: (n,) int64 cluster of each image, -1 outside every cluster.

        Returns:
            The refined labels (n,), and the costs for the log. `share` is Eq. 7: answered pairs
            over all pairs.
        """
        epoch = as_integer("epoch", epoch, 0)
        features = as_features("features", features)
        labels = as_labels("labels", labels, len(features))
        if epoch < self.config.start:
            return labels, {}
        refined, spent = refine(features, labels, self.asker, self.strategy, self.config, epoch + 1)
        pairs = len(labels) * (len(labels) - 1) / 2
        costs: dict[str, float] = {
            "questions": spent.questions,
            "questions_total": self.asker.asked,
            "share": spent.questions / pairs,
            "share_total": self.asker.asked / pairs,
            "answering_seconds": spent.seconds,
            "answering_seconds_total": self.asker.seconds,
            "remembered": spent.remembered,
            "contradictions": spent.contradictions,
            "doubted": spent.doubted,
            "gestures": spent.gestures,
        }
        if spent.members:
            costs["judged_members"] = spent.members
        if self.asker.queue is not None:
            costs["last_event"] = self.asker.position
        outlook = self.asker.outlook
        if outlook is not None:
            changed = "next_changed" if outlook.counts == "pairs" else "next_merged"
            costs["next_questions"] = outlook.questions
            costs[changed] = outlook.changed
            costs["next_share"] = outlook.share
        for verdict in Verdict:
            costs[f"answered_{verdict.name.lower()}"] = spent.verdicts[verdict.value]
        return refined, costs

    def cannot_links(self, epoch: int, features: Tensor) -> list[tuple[int, int]]:
        """Return the pairs of images that the answers before the round of an epoch set apart.

        Args:
            epoch: The epoch, from 0.
            features: (n, D) unit-norm, by which answers are weighed if they may be wrong.
        """
        return self._constraints(epoch, features).cannot_linked_images()

    def must_links(self, epoch: int, features: Tensor) -> Tensor | None:
        """Return the images that are one identity before the images are clustered.

        Args:
            epoch: The epoch, from 0.
            features: (n, D) unit-norm, by which answers are weighed if they may be wrong.

        Returns:
            (n,) int64, images of one number are the same, -1 for any other image: those of a track,
            and with `questions.must_links` before those of a component of answers. Images that the
            answers set apart have different numbers. None where there are none.
        """
        tracks = self.asker.tracks
        before = self.config.must_links == "before"
        if tracks is None and not before:
            return None
        numbers: dict[object, int] = {}
        groups = torch.full((len(features),), -1)
        if tracks is not None and len(tracks) != len(features):
            raise ValueError(f"tracks: got {len(tracks)}, expected {len(features)}, one per image")
        tracks_of = groups.tolist() if tracks is None else tracks.tolist()
        for root, images in self._constraints(epoch, features).components().items():
            for image in images:
                track = tracks_of[image]
                if before or track >= 0:
                    key = root if before else (root, track)
                    groups[image] = numbers.setdefault(key, len(numbers))
        return groups

    def _constraints(self, epoch: int, features: Tensor) -> Closure:
        """What the answers before the round of an epoch say of the images."""
        self.asker.begin(as_integer("epoch", epoch, 0) + 1, self.config.per_epoch)
        if self.asker.expected_error != 0:
            self.asker.weigh(similarity_prior(features, self.asker))
        return self.asker.constraints()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the ledger, and the costs so far."""
        return self.asker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.asker.load_state_dict(state)
