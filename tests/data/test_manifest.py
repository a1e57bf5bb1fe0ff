"""Image sets that a CSV file describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastreid_al.data import load
from fastreid_al.data.records import ImageSet, track_numbers
from fastreid_al.errors import DataError
from tests.support.image_sets import fails, labels, put

HEADER = "path,identity,camera,time,track,frame,split,caption\n"


def read(folder: Path, text: str | bytes) -> ImageSet:
    put(folder, *(f"{name}.jpg" for name in "abcdef"))
    file = folder / "images.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load("manifest", file, verbose=False)


def test_all_columns(tmp_path: Path) -> None:
    images = read(
        tmp_path,
        HEADER + "a.jpg,ann,north,10:00,7,3,train,a red coat\n"
        "b.jpg,,south,,,,,\n"
        "c.jpg,carl,north,,,,query,\n"
        "d.jpg,carl,south,,,,gallery,\n"
        "e.jpg,dora,south,,,,none,\n",
    )
    assert labels(images.train) == [(0, 0), (-1, 1)]
    assert labels(images.query) == [(2, 0)]
    assert labels(images.gallery) == [(2, 1)]
    assert images.train[0].caption == "a red coat, time 10:00, track 7, frame 3"
    assert images.train[1].caption == ""
    assert {r: len(p) for r, p in images.passed_over.items()} == {"images with split none": 1}
    assert images.root == tmp_path


@pytest.mark.parametrize("unknown", ["-1", "-1.0", " -1 "])
def test_minus_one_is_no_identity_no_camera_and_no_track(tmp_path: Path, unknown: str) -> None:
    rows = f"a.jpg,7,2,1\nb.jpg,{unknown},3,{unknown}\nc.jpg,{unknown},{unknown},{unknown}\n"
    images = read(tmp_path, "path,identity,camera,track\n" + rows)
    assert labels(images.train) == [(0, 2), (-1, 3), (-1, -1)]
    assert [r.track for r in images.train] == [0, -1, -1]


def test_queries_whose_identities_are_all_minus_one_are_refused(tmp_path: Path) -> None:
    rows = "a.jpg,-1,train\nb.jpg,-1,query\nc.jpg,-1,gallery\n"
    with pytest.raises(DataError, match="1 query images have no identity"):
        read(tmp_path, "path,identity,split\n" + rows)


def test_a_track_lies_within_a_camera(tmp_path: Path) -> None:
    rows = "a.jpg,north,t1\nb.jpg,south,t1\nc.jpg,north,t1\nd.jpg,north,\ne.jpg,,t1\nf.jpg,,t1\n"
    images = read(tmp_path, "path,camera,tracklet\n" + rows)
    assert track_numbers(images.train) == [0, 1, 0, -1, -1, -1]


@pytest.mark.parametrize(
    "text",
    [
        "File Name;PID\r\na.jpg;1\r\nb.jpg;2\r\n",
        "\ufeffimage\tperson_id\na.jpg\t1\n\nb.jpg\t2\n",
        'other,path,pid\n"x, y",a.jpg,1\n,"b.jpg",2\n',
        "path,identity\n./a.jpg,1\nsub/../b.jpg,2",
    ],
)
def test_spellings_of_other_programs(tmp_path: Path, text: str) -> None:
    (tmp_path / "sub").mkdir()
    assert labels(read(tmp_path, text).train) == [(0, -1), (1, -1)]


def test_utf_16_and_names_in_other_encodings(tmp_path: Path) -> None:
    assert len(read(tmp_path, "path\na.jpg\n".encode("utf-16")).train) == 1
    (tmp_path / "a.jpg").rename(tmp_path / b"\xd5\xd5.jpg".decode(errors="surrogateescape"))
    images = read(tmp_path, b"path\n\xd5\xd5.jpg\n")
    assert images.train[0].path.read_bytes()


def test_a_table_that_label_studio_exported(tmp_path: Path) -> None:
    put(tmp_path, "crops é/ann_0 x.jpg")
    images = read(
        tmp_path,
        '"annotation_id","annotator","camera","created_at","id","identity","image","lead_time"\n'
        '100,"1","south","2026-11-29",0,"ann",'
        '"/data/local-files/?d=crops%20%C3%A9/ann_0%20x.jpg",2\n'
        f'101,"1","north","2026-11-29",1,"bob","file://{tmp_path}/b.jpg",2.0\n',
    )
    assert labels(images.train) == [(0, 1), (1, 0)]


def test_images_elsewhere_and_paths_of_windows(tmp_path: Path) -> None:
    put(tmp_path / "other" / "deep", "x.jpg")
    images = read(tmp_path / "set", f"path\n..\\other\\deep\\x.jpg\n{tmp_path}/set/a.jpg\n")
    assert images.root == tmp_path
    assert all(record.path.is_file() for record in images.train)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("identity\n1\n", "no column path.*columns: identity"),
        ("", "lists no image"),
        ("path\n", "lists no image"),
        ("path\nz.jpg\nnope.jpg\n", r"lines 2, 3: 'z\.jpg' does not exist"),
        ("path\na.jpg\nb.jpg\na.jpg\n", r"line 4: 'a\.jpg' is listed before"),
        ("path,split\na.jpg,test\n", "line 2: got split 'test', expected one of train, query"),
        ("path,split,identity\na.jpg,query,1\n", "no gallery image"),
        ("path,split\na.jpg,query\nb.jpg,gallery\n", "1 query images have no identity"),
        ("identity,path\n1\n", "line 2: 1 values, and no path"),
        ('path\n"a.jpg\n', "line 2"),
        ("path\n\0\n", "not a text file"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "m.csv").write_text(text)
    fails(message, "manifest", tmp_path / "m.csv")


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    fails(
        "does not exist, expected a CSV file; name it with `data_root`", "manifest", tmp_path / "m"
    )
    fails("is a folder, expected a CSV file", "manifest", tmp_path)


def test_a_name_that_no_file_can_have_is_missing_in_one_line(tmp_path: Path) -> None:
    for name in ("x" * 300, "~nosuchuser/a.jpg"):
        (tmp_path / "images.csv").write_text(f"path\n{name}\n")
        with pytest.raises(DataError, match=r"line 2: .* does not exist below"):
            load("manifest", tmp_path / "images.csv", verbose=False)
