"""What the features say of two images, learnt from the answers."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..answers.asker import Asker
from ..answers.posterior import Prior
from ..answers.question import Verdict
from .calibration import Calibration

#: Prior of p(same) for two images that are asked about: log-odds at the mean similarity, and their
#: change over one standard deviation.
_SAME = (-1.0, [1.0])


def similarity_prior(features: Tensor, asker: Asker) -> Prior:
    """Return what the similarity of two images says of them, learnt from the answers so far.

    The log-odds of "same" are linear in the cosine similarity of the two images (`Calibration`).

    Args:
        features: (n, D) unit-norm.
        asker: Has the answers so far.
    """
    features = features.float().cpu()

    def similarity(i: int, j: int) -> float:
        return float(features[i] @ features[j])

    answers = asker.deciding_answers()
    calibration = Calibration(*_SAME)
    if answers:
        similarities = np.array([[similarity(a.left, a.right)] for a in answers])
        calibration.scale(similarities)
        calibration.learn_all(similarities, [a.verdict is Verdict.SAME for a in answers])

    def log_odds(i: int, j: int) -> float:
        if not answers:
            return _SAME[0]
        return float(calibration.log_odds(np.array([[similarity(i, j)]]))[0])

    return log_odds
