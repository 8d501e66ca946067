"""Files are whole or absent, and read within bounds; digests tell states apart."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import blosc2
import numpy as np
import pytest
import torch
from conftest import files_of_at_most
from matplotlib.figure import Figure

from hmvnet.exits import RefusedError
from hmvnet.files import (
    MACHINE,
    clear_leftovers,
    digest,
    is_leftover,
    is_name,
    lies_inside,
    make_folder,
    name_for_libraries,
    read_bounded,
    replacing,
    sha256,
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


KILLED = """
import os, signal, sys
from pathlib import Path
from hmvnet.files import replacing
path, renames, before = Path(sys.argv[1]), 0, os.replace
def replace(*paths):
    global renames
    renames += 1
    if renames == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    before(*paths)
os.replace = replace
with replacing(path) as temporary:
    temporary.mkdir()
    (temporary / "new").write_text("new")
"""


def killed_at_rename(path, number: int) -> None:
    """A process writes a folder and is killed; over another one it renames a third time."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(number)])
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_the_last_good_folder_is_found_again_after_a_kill(tmp_path, rename):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").write_text("old")
    killed_at_rename(path, rename)
    left = names(tmp_path)
    assert len(left) == 2 and ("bundle" in left) == (rename < 3)
    clear_leftovers(tmp_path, "another")
    assert names(tmp_path) == left
    clear_leftovers(tmp_path, "bundle")
    assert names(path) == ["old"] and names(tmp_path) == ["bundle"]


def test_a_last_good_folder_that_cannot_come_back_yet_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").write_text("old")
    killed_at_rename(path, 3)
    with monkeypatch.context() as patched:

        def refuse(*_):
            raise PermissionError(errno.EACCES, "no")

        patched.setattr("os.replace", refuse)
        clear_leftovers(tmp_path)
    assert not path.exists()
    clear_leftovers(tmp_path)
    assert names(path) == ["old"] and names(tmp_path) == ["bundle"]


def test_leftovers_of_killed_processes_go_when_the_same_is_written_again(tmp_path):
    path = tmp_path / "bundle"
    killed_at_rename(path, 1)
    (left,) = tmp_path.iterdir()
    assert is_leftover(left) and not path.exists()
    with replacing(path) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["bundle"] and names(path) == []


def test_what_a_living_process_writes_stays(tmp_path, monkeypatch):
    """Also another machine's, whose processes cannot be seen, as long as it is not a day old."""
    path = tmp_path / "bundle"
    with replacing(path) as mine:
        mine.mkdir()
        elsewhere = tmp_path / ".part-00000000-1-1.bundle"
        elsewhere.mkdir()
        clear_leftovers(tmp_path)
        assert mine.is_dir() and elsewhere.is_dir()
        monkeypatch.setattr("hmvnet.files.ABANDONED_S", 0.0)
        clear_leftovers(tmp_path, "another")
        assert elsewhere.is_dir()
        clear_leftovers(tmp_path, "bundle")
        assert not elsewhere.exists()
        mine.mkdir(exist_ok=True)
    assert names(tmp_path) == ["bundle"]


def test_what_only_looks_like_a_leftover_stays(tmp_path):
    for name in (".part-1.a", ".old", ".git", "part-00000000-1-1.a"):
        (tmp_path / name).mkdir()
        assert not is_leftover(tmp_path / name)
    before = names(tmp_path)
    clear_leftovers(tmp_path)
    assert names(tmp_path) == before


def test_several_that_write_one_folder_leave_the_last_one_whole(tmp_path):
    path, together = tmp_path / "patient", Barrier(8)

    def write(number):
        together.wait()
        for _ in range(20):
            with replacing(path) as temporary:
                temporary.mkdir()
                for name in "ab":
                    (temporary / name).write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert names(tmp_path) == ["patient"] and names(path) == ["a", "b"]
    assert (path / "a").read_text() == (path / "b").read_text()


def test_a_folder_that_another_puts_there_while_the_old_one_goes_back(tmp_path, monkeypatch):
    """The place was free when it was looked at; then neither is left over."""
    path, replace = tmp_path / "patient", os.replace
    old = tmp_path / f".old-{MACHINE}-999999999-1.patient"
    for folder in (old, tmp_path / "new"):
        (folder / "a").mkdir(parents=True)

    def after_another(source, target):
        if (tmp_path / "new").exists():
            replace(tmp_path / "new", path)
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["patient"]


def test_a_signal_while_it_is_cleaned_up_leaves_nothing(tmp_path, monkeypatch):
    remove, told = shutil.rmtree, []

    def interrupted(*args, **options):
        if not told:
            told.append(1)
            raise SystemExit(143)
        remove(*args, **options)

    with pytest.raises(SystemExit), replacing(tmp_path / "bundle") as temporary:
        temporary.mkdir()
        monkeypatch.setattr(shutil, "rmtree", interrupted)
        raise RuntimeError
    assert names(tmp_path) == []


def write_parts(path):
    """A folder of which one file does not fit."""
    path.mkdir()
    write_text("small", path / "a.txt")
    write_text("x" * 10_000, path / "b.txt")


NOISE = np.random.default_rng(0).integers(0, 255, 10_000).astype(np.uint8)
WRITERS = {
    "text": lambda path: path.write_text("x" * 10_000),
    "folder": write_parts,
    "npz": lambda path: np.savez(path, NOISE),
    "torch": lambda path: torch.save({"a": torch.from_numpy(NOISE)}, path),
    "blosc2": lambda path: blosc2.asarray(NOISE, urlpath=str(path), mode="w"),
    "png": lambda path: Figure().savefig(path, dpi=500),
}


@pytest.mark.parametrize("limit", [0, 1, 1000, 9000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_kind_of_error_that_names_the_file(tmp_path, kind, limit):
    """torch, blosc2 and ITK raise RuntimeErrors that do not say what happened."""
    path = tmp_path / f"a.{'png' if kind == 'png' else 'npz'}"
    with files_of_at_most(limit), pytest.raises(OSError) as raised, replacing(path) as temporary:
        WRITERS[kind](temporary)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert names(tmp_path) == []


def test_a_fault_that_is_not_the_disks_stays_what_it_is(tmp_path):
    for error in (RuntimeError("ours"), FileNotFoundError(2, "gone", "/another/file")):
        with pytest.raises(type(error)) as raised, replacing(tmp_path / "a"):
            raise error
        assert raised.value is error and names(tmp_path) == []


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
    assert lies_inside(folder, Path(relative).parent) != expected
    (tmp_path / "alias").symlink_to(folder)
    assert lies_inside(tmp_path / "alias", Path(relative).parent) != expected


@pytest.mark.parametrize(
    "text", ["a", "A-1 (2)", "P01:1", "=1", "<b>", "nullify", "com", "console"]
)
def test_what_is_a_name(text):
    assert is_name(text)


def test_text_comes_back(tmp_path):
    write_text("µ\n", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "µ\n"
    assert names(tmp_path) == ["a.txt"]


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
