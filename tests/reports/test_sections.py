"""What a page says of clusters and suspects where the true identities are known, and where not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastreid_al.answers.ledger import Ledger
from fastreid_al.answers.question import Verdict
from fastreid_al.config import ReportConfig, RunConfig
from fastreid_al.data import ImageSet
from fastreid_al.data.records import Record
from fastreid_al.reports.crops import Crops
from fastreid_al.reports.questions import read_answers
from fastreid_al.reports.results import RunResults, default_settings
from fastreid_al.reports.sections import MEMBERS, RunSections
from tests.reports.test_clusters import people
from tests.support.image_sets import put_noise
from tests.support.ledgers import keys, put


@pytest.fixture
def results(tmp_path: Path) -> RunResults:
    """Six people of ten images. Cluster 0 holds person 0 and four images of person 1; person 5 is
    in the clusters 5 and 6.
    """
    put_noise(tmp_path, "crop.jpg", seed=0)
    records = []
    for row in range(60):
        file = tmp_path / f"train/{row}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.symlink_to(tmp_path / "crop.jpg")
        records.append(Record(file, row // 10, row % 3))
    labels = torch.arange(60) // 10
    labels[10:14] = 0
    labels[55:] = 6
    return RunResults(
        "run",
        RunConfig(),
        [{"epoch": 1, "mAP": None, "clusters": 7}, {"epoch": 2, "mAP": 0.5, "rank1": 0.25}],
        {},
        images=ImageSet("set", tmp_path, records, [], []),
        records=records,
        features=people(6, 10),
        labels=labels,
    )


def sections(results: RunResults, **options: int) -> RunSections:
    return RunSections(results, ReportConfig("run", "out.html", **options), Crops(256, 128))  # type: ignore[arg-type]


def test_clusters_say_which_images_have_another_identity(results: RunResults) -> None:
    made = sections(results, clusters=3)
    cards = made.cluster_cards()
    assert len(cards) == 3 and made.cluster_count == 7
    assert cards[0].title == "Cluster 0"
    assert cards[0].verdict == "\u2717 2 identities, 10 images of the largest"
    (group,) = cards[0].groups
    assert len(group.members) == MEMBERS and group.more == 14 - MEMBERS
    # The least central images are those of the other person.
    assert [m.kind for m in group.members] == ["right"] * 4 + ["wrong"] * 4
    assert {m.sign for m in group.members} == {"\u2713", "\u2717"}
    assert "14 images, coherence" in ", ".join(cards[0].facts)
    assert "3 cameras" in cards[0].facts
    assert made.mixed_clusters() == "By the true identities 1 of 7 clusters mix people."


def test_suspects_are_confirmed_or_not_by_the_true_identities(results: RunResults) -> None:
    made = sections(results)
    merge, *others = made.suspected_merges()
    assert merge.title == "Cluster 0" and merge.verdict.endswith("a real false merge")
    assert [len(group.members) + group.more for group in merge.groups] == [10, 4]
    assert {member.kind for member in merge.groups[0].members} == {"right"}
    assert {member.kind for member in merge.groups[1].members} == {"wrong"}
    assert all(card.verdict.endswith("no false merge") for card in others)
    split, *others = made.suspected_splits()
    assert split.title == "Clusters 5 and 6" and split.verdict.endswith("a real split")
    assert all("two identities" in card.verdict for card in others)


def test_without_identities_nothing_is_called_right_or_wrong(results: RunResults) -> None:
    unknown = [record._replace(identity=-1) for record in results.records[:1]]
    made = sections(
        RunResults(
            **{**vars(results), "records": [*unknown, *results.records[1:]]},
        )
    )
    cards = [*made.cluster_cards(), *made.suspected_merges(), *made.suspected_splits()]
    assert cards and made.mixed_clusters() == ""
    assert {(card.verdict, card.kind) for card in cards} == {("", "")}
    members = [m for card in cards for group in card.groups for m in group.members]
    assert {(member.kind, member.sign) for member in members} == {("", "")}


def test_clusters_that_answers_keep_apart_are_no_suspects(
    results: RunResults, tmp_path: Path
) -> None:
    file = str(tmp_path / "answers.sqlite")
    with Ledger.open(file, keys(60, "set")) as ledger:
        # 52 = 50 and 50 != 57: so 52's cluster 5 and 57's cluster 6 are different.
        put(ledger, 50, 52, Verdict.SAME)
        put(ledger, 50, 57, Verdict.DIFFERENT)
    made = sections(RunResults(**{**vars(results), "answers": read_answers(file)}))
    titles = [card.title for card in made.suspected_splits()]
    assert titles and "Clusters 5 and 6" not in titles
    shown, other = made.question_groups()[0][1]
    assert list(other.marks) == ["wrong by the true identities"] and not shown.marks
    assert shown.left.name == "train/50.jpg" and "gone" not in shown.left.crop


def test_scores_of_an_epoch_without_a_match_are_dashes(results: RunResults) -> None:
    table = sections(results).scores()
    assert table is not None
    assert [row[:3] for row in table.rows] == [
        ["last, epoch 2", "50.0", "-"],
        ["best, epoch 2", "50.0", "-"],
    ]


def test_settings_that_were_changed_come_first(results: RunResults) -> None:
    changed = RunResults(**{**vars(results), "config": RunConfig(seed=7, data_root="/home/anna/x")})
    rows = sections(changed).settings().rows
    assert [row[0] for row in rows[:2]] == ["data_root", "seed"]
    assert rows[2][1] == rows[2][2]
    assert changed.settings(anonymise=True)["data_root"] == "x"
    assert len(rows) == len(default_settings())
