"""Looks of identities differ between train and test; twins differ in one visible trait."""

from __future__ import annotations

from dataclasses import asdict

from fastreid_al.config import MSMT17_SIZE, SyntheticConfig
from fastreid_al.synthetic import traits
from fastreid_al.synthetic.traits import CLOTH_COLOURS, TWIN_TRAITS, traits_of, twin_of


def test_train_and_test_show_different_people() -> None:
    config = SyntheticConfig()
    train = {traits_of(config, "train", identity) for identity in range(64)}
    test = {traits_of(config, "test", identity) for identity in range(64)}
    assert len(train) == len(test) == 64 and not train & test


def test_a_twin_differs_from_its_original_in_one_visible_trait() -> None:
    twins = [
        (identity, twin_of(identity)) for identity in range(700) if twin_of(identity) is not None
    ]
    assert 0.12 < len(twins) / 700 < 0.18
    for identity, original in twins:
        new, old = (asdict(traits_of(MSMT17_SIZE, "test", who)) for who in (identity, original))
        changed = [name for name in new if new[name] != old[name]]
        assert len(changed) == 1 and changed[0] in TWIN_TRAITS


def test_every_pair_of_garment_colours_leaves_a_twin_a_third_one() -> None:
    assert all(traits._different_colours(a, b) for a in CLOTH_COLOURS for b in CLOTH_COLOURS)
