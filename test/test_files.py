"""Files are whole or absent; digests tell states apart."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hmvnet.exits import RefusedError
from hmvnet.files import (
    digest,
    make_folder,
    name_for_libraries,
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
