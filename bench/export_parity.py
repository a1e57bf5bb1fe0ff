"""Compare exported files with their network on test images: `python bench/export_parity.py RUN`.

Prints one row for each form: how far its features are from PyTorch's, and the scores of each. The
images are all test images of the first identities, until there are 500.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fastreid_al.config import NetworkForm, TestFeatures
from fastreid_al.data import ImageSet
from fastreid_al.data.records import Record
from fastreid_al.engine.console import Reporter
from fastreid_al.engine.extract import decode_records, identities_and_cameras
from fastreid_al.exports import SUFFIXES, Reference, describe, open_file, write_form
from fastreid_al.metrics import rank_gallery
from fastreid_al.metrics.parity import compare_features
from fastreid_al.runs.trained import Trained, find_run, images_of_run, load_trained

#: Images that are compared.
IMAGES = 500
#: Images that are run together.
BATCH = 50
#: Rows of the table: form, stage, and whether weights are in half precision.
ROWS: tuple[tuple[NetworkForm, TestFeatures, bool], ...] = (
    ("onnx", "bn", False),
    ("openvino", "bn", False),
    ("openvino", "bn", True),
    ("torchscript", "bn", False),
    ("torch-export", "bn", False),
    ("torchreid", "pool5", False),
)


def choose(images: ImageSet) -> tuple[list[Record], list[Record]]:
    """Queries and gallery images of the first identities, 500 in all or a few more."""
    queries: list[Record] = []
    gallery: list[Record] = []
    for identity in sorted({record.identity for record in images.query}):
        if len(queries) + len(gallery) >= IMAGES:
            break
        queries += [record for record in images.query if record.identity == identity]
        gallery += [record for record in images.gallery if record.identity == identity]
    return queries, gallery


def score(features: Tensor, queries: list[Record], gallery: list[Record]) -> str:
    """The cells for mAP and rank-1, in per cent."""
    sides: list[Tensor] = []
    parts = features.split([len(queries), len(gallery)])
    for part, records in zip(parts, (queries, gallery), strict=True):
        sides += [part, *identities_and_cameras(records)]
    ranking = rank_gallery(*sides)
    return f"{100 * ranking.mAP:.2f} | {100 * ranking.rank(1):.2f}"


def convert(
    form: NetworkForm, trained: Trained, stage: TestFeatures, half: bool, pixels: Tensor
) -> Tensor:
    """Features that a file computes, (n, D) unit-norm."""
    size = (trained.image.height, trained.image.width)
    about = describe(trained.model, stage, *size, replace(trained, stage=stage).digest(), form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{trained.model.name}_net{SUFFIXES[form][0]}")
        write_form(form, trained.model, stage, size, about, path, half)
        runtime = open_file(form, path, trained.model)
        found = torch.cat([runtime.features(part) for part in pixels.split(BATCH)])
    return torch.nn.functional.normalize(found)


def main() -> None:
    """Print the table of a run."""
    parser = argparse.ArgumentParser(description="Compare exported files with their network.")
    parser.add_argument("run", type=Path, help="Folder of a run.")
    parser.add_argument("data_root", nargs="?", help="Where its images lie now.")
    options = parser.parse_args()
    reporter = Reporter()
    run = find_run(options.run, options.data_root)
    trained = load_trained(run.checkpoint, reporter)
    queries, gallery = choose(images_of_run(run, reporter))
    folder = Path(tempfile.gettempdir())
    chosen = [*queries, *gallery]
    store, readable = decode_records(chosen, "test", trained.image, folder, reporter)
    if len(readable) < len(chosen):
        raise SystemExit("some images cannot be read")
    pixels = store.read(torch.arange(len(store)))
    print(f"{trained.model.name}, {len(queries)} queries, {len(gallery)} gallery images\n")
    print("| file | features | lowest cosine | largest difference | same top 10 | mAP | rank-1 |")
    print("|---|---|---|---|---|---|---|")
    own: dict[str, Tensor] = {}
    stages: tuple[TestFeatures, ...] = ("bn", "pool5")
    for stage in stages:
        own[stage] = Reference.of(trained.model, stage, pixels).features
        print(f"| PyTorch | {stage} | | | | {score(own[stage], queries, gallery)} |", flush=True)
    for form, stage, half in ROWS:
        features = convert(form, trained, stage, half, pixels)
        parity = compare_features(own[stage], features)
        name = f"{form}, half precision" if half else form
        print(
            f"| {name} | {stage} | {parity.cosine:.7f} | {parity.difference:.1e} | "
            f"{parity.same_lists} of {parity.images} | {score(features, queries, gallery)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
