"""Questions of a run with several ranks: rank 0 asks, and all ranks get the refined labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..active import QuestionRounds
from ..distributed.world import SINGLE_PROCESS, World


class CollectiveQuestions:
    """Ask on the first rank, for all ranks.

    All methods but the state's are collective. A single process asks directly.

    Args:
        questions: The questions of the run. Only those of the first rank are asked; the other ranks
            may have None. None on all ranks if the run asks no questions.
        world: The ranks.
        watch: Called about once a second on the ranks that wait while the first asks; an exception
            from it ends the waiting.
    """

    def __init__(
        self,
        questions: QuestionRounds | None,
        world: World = SINGLE_PROCESS,
        watch: Callable[[], None] | None = None,
    ) -> None:
        self._questions = questions
        self._world = world
        self._watch = watch
        #: State of earlier questions, which a run without questions keeps for a later one that asks
        #: again.
        self._earlier: dict[str, Any] | None = None

    def asks_in(self, epoch: int) -> bool:
        """Whether questions are asked in an epoch, given by the number of completed epochs."""
        questions = self._questions
        return self._world.any_true(questions is not None and epoch >= questions.config.start)

    def cannot_links(self, epoch: int, features: Tensor) -> Tensor:
        """Return the pairs of images that the answers so far set apart, on all ranks.

        Args:
            epoch: Number of completed epochs.
            features: This rank's rows of (n, D).

        Returns:
            (m, 2) int64 rows; none in an epoch without questions.
        """
        if not self.asks_in(epoch):
            return torch.zeros((0, 2), dtype=torch.int64)
        features = self._world.gather_rows_to_first(features)

        def pairs() -> list[tuple[int, int]]:
            assert self._questions is not None
            return self._questions.cannot_links(epoch, features)

        found = self._world.compute_on_first(pairs, self._watch)
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)

    def must_links(self, epoch: int, features: Tensor, tracks: Tensor | None) -> Tensor | None:
        """Return the images that are one identity before they are clustered, on all ranks.

        Args:
            epoch: Number of completed epochs.
            features: This rank's rows of (n, D).
            tracks: (n,) int64 track of each image, -1 for none; None on all ranks where there are
                no tracks. The questions have the same.

        Returns:
            (n,) int64 as `QuestionRounds.must_links` returns it; the tracks in an epoch without
            questions.
        """
        if not self.asks_in(epoch):
            return tracks
        questions = self._questions
        before = questions is not None and questions.config.must_links == "before"
        if tracks is None and not self._world.any_true(before):
            return None
        features = self._world.gather_rows_to_first(features)

        def groups() -> Tensor | None:
            assert questions is not None
            return questions.must_links(epoch, features)

        return self._world.compute_on_first(groups, self._watch)

    def refine(
        self, epoch: int, features: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Refine the clusters of an epoch with the answers of one round.

        What the first rank raises, all raise.

        Args:
            epoch: Number of completed epochs.
            features: This rank's rows of (n, D). The first rank gathers all of them.
            labels: (n,) int64 cluster of each image, -1 outside every cluster, the same on all
                ranks.

        Returns:
            The refined labels (n,) int64, and metrics for the log.
        """
        start = time.perf_counter()
        features = self._world.gather_rows_to_first(features)

        def ask() -> tuple[Tensor, dict[str, float]]:
            assert self._questions is not None
            return self._questions.refine(epoch, features, labels)

        refined, metrics = self._world.compute_on_first(ask, self._watch)
        return refined, metrics | {"seconds_questions": time.perf_counter() - start}

    def state_dict(self) -> dict[str, Any] | None:
        """The state of the questions, which the first rank knows."""
        return self._earlier if self._questions is None else self._questions.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore what `state_dict` returned, or keep it if this run asks no questions."""
        self._earlier = state
        if self._questions is not None and state is not None:
            self._questions.load_state_dict(state)
