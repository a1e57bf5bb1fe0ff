"""OSNet has the published size and parameter names."""

from __future__ import annotations

import json
from pathlib import Path

from fastreid_al.models import build_model


def test_osnet_has_the_published_size_and_names() -> None:
    names = json.loads((Path(__file__).parent / "osnet_names.json").read_text())
    backbone = build_model("osnet_x1_0", "none").backbone
    assert {
        k: list(v.shape)
        for k, v in backbone.state_dict().items()
        if not k.endswith("num_batches_tracked")
    } == names
    assert 2.1e6 < sum(p.numel() for p in backbone.parameters()) < 2.3e6
