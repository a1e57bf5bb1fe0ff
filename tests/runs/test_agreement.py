"""Ranks that were started differently, or read different images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastreid_al.distributed.world import World
from fastreid_al.errors import UserError
from fastreid_al.runs.agreement import check_same_images
from tests.support.process_pool import Pool
from tests.support.rank_runs import configured, refused


def other_images(world: World) -> str:
    data = (
        {"a.jpg": "1", "b.jpg": "2"}
        if world.rank < 2
        else {"a.jpg": "1", "b.jpg": "3", "c.jpg": "4"}
    )
    with pytest.raises(UserError) as raised:
        check_same_images(world, data)
    return str(raised.value)


def test_all_ranks_refuse_different_images_and_name_the_first(
    pool: Pool,
) -> None:
    for said in pool.run(other_images, 3):
        assert (
            "rank 2 reads other images than rank 0: 1 new (first: c.jpg), 1 changed (first: b.jpg)"
            in said
        )


def test_all_ranks_refuse_different_settings_and_name_them(pool: Pool, tmp_path: Path) -> None:
    config = configured(tmp_path / "run", "instance memory")
    for said in pool.run(refused, 2, config, {"seed": 5}):
        assert "rank 1 was started with `seed` 5, rank 0 with `seed` 0" in said
    for said in pool.run(refused, 4, replace(config, batch=replace(config.batch, size=24)), {}):
        assert (
            "`batch.size`: got 24, expected a size that divides into 4 ranks of groups of "
            "`network.bn_group` 4, such as 16 or 32" in said
        )
