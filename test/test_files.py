"""Files are whole or absent; digests tell states apart."""

import os

import numpy as np
import pytest

from hmvnet.exits import RefusedError
from hmvnet.files import (
    digest,
    lies_inside,
    read_bounded,
    replacing,
    sha256,
    write_arrays,
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


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        pass


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
