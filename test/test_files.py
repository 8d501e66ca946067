"""Files are whole or absent; digests tell states apart."""

import csv
import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hmvnet.exits import RefusedError
from hmvnet.files import (
    digest,
    is_name,
    leaves,
    lies_inside,
    make_folder,
    name_for_libraries,
    read_bounded,
    replacing,
    sha256,
    text_of_cell,
    write_arrays,
    write_markdown,
    write_table,
    write_text,
)


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new folder" / "a.nii.gz"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            assert temporary.name.endswith("a.nii.gz") and temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new" and names(path.parent) == ["a.nii.gz"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "bundle"
    for file in ("old", "new"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / file).write_text(file)
    assert names(path) == ["new"] and names(tmp_path) == ["bundle"]


def test_a_failed_folder_leaves_what_was_there(tmp_path):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert names(path) == ["old"] and names(tmp_path) == ["bundle"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(IsADirectoryError, match="a folder is there"):
        write_text("report", path)
    assert names(path) == ["old"] and names(tmp_path) == ["data"]


def test_a_folder_never_takes_the_place_of_a_file(tmp_path):
    path = tmp_path / "data"
    path.write_text("old")
    with pytest.raises(NotADirectoryError), replacing(path) as temporary:
        temporary.mkdir()
    assert path.read_text() == "old" and names(tmp_path) == ["data"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass


@pytest.mark.parametrize("target", ["file", "folder", "nothing", "no folder"])
def test_a_link_is_replaced_and_never_followed(tmp_path, target):
    there, path = tmp_path / "there", tmp_path / "new" / "a"
    path.parent.mkdir()
    if target == "file":
        there.write_text("mine")
    elif target == "folder":
        there.mkdir()
        (there / "b").write_text("mine")
    path.symlink_to(there)
    with replacing(path) as temporary:
        if "folder" in target:
            temporary.mkdir()
            (temporary / "b").write_text("ours")
        else:
            temporary.write_text("ours")
    assert not path.is_symlink() and names(path.parent) == ["a"]
    if target in ("file", "folder"):
        assert (there / "b" if target == "folder" else there).read_text() == "mine"


@pytest.mark.parametrize(
    ("relative", "expected"),
    [("a/b", False), ("b", False), ("../b", True), ("link/b", True), ("inner/b", False)],
)
def test_what_leaves_a_folder(tmp_path, relative, expected):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    (folder / "inner").symlink_to(folder / "a")
    assert leaves(folder / relative, folder) == expected
    (tmp_path / "alias").symlink_to(folder)
    assert leaves(tmp_path / "alias" / relative, tmp_path / "alias") == expected


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+A1", "@SUM(A1)", "\t=1", "=x,y", "\n=", "\uff1d1"]
TEXTS = ["A-1", "a=b", "", "1-2", "'quoted'", "<script>", 'say "x"', "a,b", "two\nlines", "κ"]
NUMBERS = ["-5", "+0.5", "-1e-05", "+0.012 (-0.010 to +0.030)", "nan", "-inf"]


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    cells = [*FORMULAS, *["'" + f for f in FORMULAS], *TEXTS, *NUMBERS]
    table = pd.DataFrame({"=id": cells, "x": np.linspace(-1, 1, len(cells)), "event": True})
    write_table(table, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").open(newline="", encoding="utf-8")))
    assert rows[0] == ["'=id", "x", "event"]
    assert [text_of_cell(row[0]) for row in rows[1:]] == cells
    assert [float(row[1]) for row in rows[1:]] == list(table["x"])
    written = dict(zip(cells, (row[0] for row in rows[1:])))
    assert all(written[cell] == cell for cell in [*TEXTS, *NUMBERS])
    write_table(pd.DataFrame({"id": ["\r=1"], "x": [1]}), tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text(encoding="utf-8") == "id,x\n' =1,1\n"
    assert not any(written[cell].startswith(tuple("=+-@\t\r\uff1d")) for cell in FORMULAS)


def test_no_cell_of_a_markdown_table_is_markup(tmp_path):
    table = pd.DataFrame({"<b>": ["<script>alert(1)</script>", "a|b\nc", "&"], "x": [1.5, -2, 3]})
    write_markdown(table, tmp_path / "a.md", floatfmt=".1f")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "<" not in text and "&lt;script&gt;" in text and r"a\|b c" in text and "-2.0" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    "text", ["a", "A-1 (2)", "P01:1", "=1", "<b>", "nullify", "com", "console"]
)
def test_what_is_a_name(text):
    assert is_name(text)


def test_text_and_arrays_come_back(tmp_path):
    write_text("µ\n", tmp_path / "a.txt")
    write_arrays(tmp_path / "b.npz", x=np.arange(3))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "µ\n"
    with np.load(tmp_path / "b.npz") as stored:
        assert stored["x"].tolist() == [0, 1, 2]
    assert names(tmp_path) == ["a.txt", "b.npz"]


def test_digests_hang_on_content_type_and_order(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"abc") == sha256(path) == known
    values = [
        (1, 2),
        (2, 1),
        ([1, 2],),
        ({"a": 1},),
        (np.zeros(2),),
        (np.zeros(2, np.float32),),
        (np.zeros((2, 1)),),
        (path,),
        ("abc",),
    ]
    assert len({digest(*v) for v in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) and len(digest(1)) == 16
    before = digest(path)
    path.write_bytes(b"abd")
    assert digest(path) != before


def test_a_disk_that_says_late_that_it_is_full_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text("old", path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text("new", path)
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_folder_is_made_and_tried(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        make_folder(tmp_path / "file")


def test_a_name_for_libraries_is_utf8_or_refused():
    assert name_for_libraries(Path("Müller")) == "Müller"
    latin1 = Path(os.fsdecode("Müller".encode("latin-1")))
    with pytest.raises(RefusedError, match="not UTF-8"):
        name_for_libraries(latin1)


def test_what_lies_inside_a_folder(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for name, target in {"in": "a", "out": "..", "loop": "loop", "broken": "nothing"}.items():
        (root / name).symlink_to(target)
    (tmp_path / "link").symlink_to("root")
    for name in ("a", "a/../a", "in", "broken", "nothing/yet", "", root / "a"):
        assert lies_inside(root, name) and lies_inside(tmp_path / "link", name)
    for name in ("..", "../rooted", "out", "out/x", "/", "loop", "a\0b", "x" * 5000, "\ud800"):
        assert not lies_inside(root, name)


def test_a_file_is_looked_at_before_it_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_bounded(path, 5) == read_bounded(tmp_path / "link", 5) == b"12345"
    with pytest.raises(RefusedError, match=r"a: 5 bytes, expected at most 4"):
        read_bounded(path, 4)
    with pytest.raises(RefusedError, match=r"none: file not found or not readable"):
        read_bounded(tmp_path / "none", 4)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "/dev/zero"):
        with pytest.raises(RefusedError, match=r"a folder, a pipe or a device, expected a file"):
            read_bounded(tmp_path / name, 4)
