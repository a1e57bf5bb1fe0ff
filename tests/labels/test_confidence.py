"""The confidence is a probability where something is known, and says so where nothing is."""

from __future__ import annotations

import numpy as np
import torch

from fastreid_al.answers import Answer, Verdict
from fastreid_al.labels.confidence import (
    LEAST_EXAMPLES,
    NO_EXAMPLES,
    Examples,
    examples_of_answers,
    examples_of_identities,
    probabilities,
    with_answers,
)
from fastreid_al.labels.margins import Margins
from fastreid_al.synthetic.features import planted_partition

SAME, DIFFERENT = Verdict.SAME, Verdict.DIFFERENT


def test_without_examples_it_is_the_softmax_of_the_loss() -> None:
    margins = np.array([-0.1, 0.0, 0.1, np.nan])
    expected = 1 / (1 + np.exp(-margins / 0.05))
    np.testing.assert_allclose(probabilities(margins, NO_EXAMPLES, 0.05), expected)
    few = Examples(margins[:3], np.ones(3), "answers")
    np.testing.assert_allclose(probabilities(margins, few, 0.05), expected)


def test_examples_calibrate_it() -> None:
    draw = np.random.default_rng(0)
    margins = draw.normal(0.1, 0.1, 2000)
    true = 1 / (1 + np.exp(-(20 * margins - 3)))
    same = (draw.random(2000) < true).astype(float)
    examples = Examples(margins[:400], same[:400], "answers")

    def error(values: np.ndarray) -> float:
        return float(np.abs(values - true)[400:].mean())

    learnt = probabilities(margins, examples, 0.05)
    assert error(learnt) < 0.05 < 0.2 < error(probabilities(margins, NO_EXAMPLES, 0.05))
    assert (np.diff(learnt[np.argsort(margins)]) >= 0).all()


def test_an_answer_is_an_example_for_each_of_its_images() -> None:
    features, identities, _ = planted_partition(60, 16, sizes=(5, 12), seed=0)
    clusters = identities.clone()
    clusters[:10] = -1
    margins = Margins(features, clusters)
    inside = (clusters >= 0).nonzero()[:, 0].tolist()
    a, b = inside[0], inside[1]
    examples = examples_of_answers(
        margins, [Answer(1, a, b, SAME), Answer(2, 0, a, DIFFERENT), Answer(3, 1, 2, SAME)]
    )
    assert examples.same.tolist() == [1.0, 0.0, 1.0]  # a to b, 0 to a, b to a
    assert examples.margins[0] == margins.towards(torch.tensor([a]), torch.tensor([b]))[0]
    assert examples_of_answers(margins, []) is NO_EXAMPLES


def test_known_identities_are_shares_of_the_other_images() -> None:
    clusters = torch.tensor([0, 0, 0, 0, 1, 1, -1, 2, 2])
    known = torch.tensor([5, 5, 7, -1, 3, 3, 5, -1, 4])
    examples = examples_of_identities(Margins(torch.eye(9), clusters), known)
    assert examples.same.tolist() == [0.5, 0.5, 0.0, 1.0, 1.0]
    none = examples_of_identities(Margins(torch.eye(9), clusters), torch.full((9,), -1))
    assert not none.usable and LEAST_EXAMPLES > 0


def test_what_is_answered_is_certain_but_for_wrong_answers() -> None:
    by_margin = np.array([0.3, 0.3, 0.3, np.nan])
    sizes = np.array([3, 3, 3, 2])
    known = np.array([1, 2, 3, 2])
    np.testing.assert_allclose(
        with_answers(by_margin, sizes, known, 0.1), [0.3, 0.5 * 0.9 + 0.5 * 0.3, 0.9, 0.9]
    )
