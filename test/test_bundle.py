import json
import os
import struct
import tarfile
import threading
import tracemalloc
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import tensors_of
from safetensors.torch import save

from hmvnet.bundle import (
    WeightsError,
    fetch_bundle,
    find_bundle,
    fingerprint,
    load_bundle,
    refuse_loss,
    write_bundle,
)
from hmvnet.exits import RefusedError
from hmvnet.experiments.tune import TUNED, _is_tuned
from hmvnet.files import MACHINE, sha256
from hmvnet.settings_file import load_settings


def test_bundle_round_trip(tiny_bundle, tmp_path):
    bundle = load_bundle(tiny_bundle)
    again = write_bundle(tmp_path / "copy", bundle.manifest, tensors_of(bundle))
    copy = load_bundle(again)
    assert copy.manifest == bundle.manifest
    for name, tensors in tensors_of(bundle).items():
        for key, value in copy.tensors(name).items():
            torch.testing.assert_close(value, tensors[key], rtol=0, atol=0, equal_nan=True)
    assert sorted(p.name for p in again.iterdir()) == sorted(
        [*bundle.manifest.files, "manifest.json"]
    )


def test_only_json_and_safetensors_are_in_a_bundle(tiny_bundle):
    assert {p.suffix for p in tiny_bundle.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["../manifest.json", "other.safetensors", "/etc/passwd"])
def test_files_outside_the_manifest_are_refused(tiny_bundle, name):
    with pytest.raises(WeightsError, match="not a file of the bundle"):
        load_bundle(tiny_bundle).read(name)


def test_hash_mismatch_is_refused(tiny_bundle, tmp_path):
    bundle = load_bundle(tiny_bundle)
    folder = write_bundle(tmp_path / "b", bundle.manifest, tensors_of(bundle))
    (folder / "fold0.safetensors").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="sha256"):
        load_bundle(folder).tensors("fold0.safetensors")


def test_a_bundle_that_a_kill_left_moved_away_is_found(tiny_bundle, tmp_path):
    """And one that is not written to its end, beside it, is nobody's bundle."""
    bundle = load_bundle(tiny_bundle)
    whole = write_bundle(tmp_path / "run" / "bundle", bundle.manifest, tensors_of(bundle))
    gone = f"{MACHINE}-{2**22 + 1}-1"  # Linux gives no process an id above 2**22
    for find in (load_bundle, find_bundle):
        whole.rename(whole.with_name(f".old-{gone}.bundle"))
        assert find(whole) and whole.is_dir()
    alive = whole.with_name(f".part-{MACHINE}-{os.getpid()}-1.bundle")
    write_bundle(alive, bundle.manifest, tensors_of(bundle))
    assert find_bundle(tmp_path / "run") == whole


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1}'])
def test_damaged_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        load_bundle(tmp_path)


RISK = {
    "settings": {},
    "clinical": [{}],
    "lesion_features": [],
    "risk_quantiles": [-1.0, 0.0, 1.0],
    "expected_days": [[0.0, 1000.0], [1.0, 500.0]],
    "files": ["w.safetensors"],
}


def small_bundle(folder, manifest=None, weights=None):
    """A bundle without networks, of plain bytes; ``manifest`` overwrites its fields."""
    data = save({"w": torch.arange(3.0)}) if weights is None else weights
    (folder / "w.safetensors").write_bytes(data)
    raw = {
        "format": 1,
        "name": "small",
        "preprocessing": {},
        "postprocessing": {},
        "segmentation": {"network": "x", "patch_size": [32, 32, 32], "files": ["w.safetensors"]},
        "files": {"w.safetensors": sha256(data)},
    }
    (folder / "manifest.json").write_text(json.dumps(raw | (manifest or {})))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 1, "format": 1}',
        '{"format": 1,}',
    ]
    + ["\x00\x07", '{"format": "' + "x" * 5000 + '"}'],
)
def test_a_manifest_that_no_program_of_ours_wrote(tmp_path, text):
    small_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match=r"manifest\.json") as refused:
        load_bundle(tmp_path)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"un\nknown": 1},
        {"segmentation": {"network": "x", "patch_size": [0, 1, 1], "files": []}},
        {"preprocessing": {"spacing_mm": float("nan")}},
        {"classes": ["x" * 5000]},
        {"region": "knee"},
        {"segmentation": {"network": "x", "patch_size": [1, 1, 1], "files": []}},
        {"prognosis": {**RISK, "files": []}},
        {"prognosis": {**RISK, "clinical": [{}, {}]}},
        {"prognosis": {**RISK, "risk_quantiles": []}},
        {"prognosis": {**RISK, "risk_quantiles": [0.0, float("nan")]}},
        {"prognosis": {**RISK, "risk_quantiles": [1.0, 0.0]}},
        {"prognosis": {**RISK, "expected_days": [[1.0]]}},
        {"prognosis": {**RISK, "expected_days": [[1.0, 9.0], [0.0, 10.0]]}},
    ],
)
def test_a_manifest_of_other_fields_is_refused_in_one_line(tmp_path, fields):
    with pytest.raises(WeightsError, match=r"manifest\.json") as refused:
        load_bundle(small_bundle(tmp_path, fields))
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_a_manifest_with_a_survival_model_is_read(tmp_path):
    assert load_bundle(small_bundle(tmp_path, {"prognosis": RISK})).manifest.prognosis


def test_a_large_manifest_is_refused_before_it_is_read(tmp_path):
    with (small_bundle(tmp_path) / "manifest.json").open("ab") as file:
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(WeightsError, match="1073741824 bytes, expected at most"):
        load_bundle(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["manifest.json", "w.safetensors"])
def test_no_link_leaves_a_bundle(tmp_path, name):
    folder = tmp_path / "bundle"
    folder.mkdir()
    small_bundle(folder)
    (folder / name).rename(folder / "inside")
    (folder / name).symlink_to("inside")
    assert load_bundle(folder).tensors("w.safetensors")
    (folder / "inside").rename(tmp_path / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to("../outside")
    with pytest.raises(WeightsError, match=f"'{name}' leaves the bundle's folder"):
        load_bundle(folder).tensors("w.safetensors")


@pytest.mark.parametrize("name", ["manifest.json", "w.safetensors"])
@pytest.mark.parametrize("place", ["pipe", "folder", "device", "nothing"])
def test_no_file_in_the_place_of_one_of_a_bundle(tmp_path, name, place):
    path = small_bundle(tmp_path) / name
    path.unlink()
    if place == "pipe":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    elif place == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(WeightsError, match=name):
        load_bundle(tmp_path).tensors("w.safetensors")


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "..", "", "a\0b", "x" * 300])
def test_a_manifest_that_names_what_is_no_file_of_it(tmp_path, name):
    folder = small_bundle(tmp_path, {"files": {name: "0" * 64}})
    with pytest.raises(WeightsError):
        load_bundle(folder).tensors(name)


def header_of(dtype="F32", shape=(3,), offsets=(0, 12)):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "header",
    [
        header_of("F31"),
        header_of("F4", (24,)),
        header_of(shape=(4,)),
        header_of(shape=(2**62, 2**62)),
        header_of(offsets=(12, 0)),
        header_of(offsets=(0, 2**63)),
        header_of(offsets=(1, 13)),
        {"w": 1},
        [],
    ],
)
def test_weights_whose_header_makes_no_sense(tmp_path, header):
    """The hash is right: whoever made the file made the manifest too."""
    text = json.dumps(header).encode()
    weights = struct.pack("<Q", len(text)) + text + bytes(12)
    bundle = load_bundle(small_bundle(tmp_path, weights=weights))
    with pytest.raises(WeightsError, match=r"w\.safetensors: not a safetensors file"):
        bundle.tensors("w.safetensors")


@pytest.mark.parametrize("length", [2**31, 2**40, 2**64 - 1])
def test_a_header_longer_than_the_weights_asks_for_no_memory(tmp_path, length):
    bundle = load_bundle(small_bundle(tmp_path, weights=struct.pack("<Q", length) + b"{}"))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        bundle.tensors("w.safetensors")


def test_where_bundles_are_looked_for(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("hmvnet.bundle.PLATFORM_MODEL_DIR", tmp_path / "opt")
    with pytest.raises(WeightsError, match="no bundle"):
        find_bundle(None, [tmp_path])
    bundle = load_bundle(tiny_bundle)
    own = write_bundle(tmp_path / "weights" / "one", bundle.manifest, tensors_of(bundle))
    # What was uploaded and is none of ours is not passed over for the weights in the image.
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / ".keep").touch()
    assert find_bundle(None, [tmp_path / "weights"]) == own
    (tmp_path / "opt" / "network.pth").touch()
    with pytest.raises(WeightsError, match=r"opt holds no bundle, found network\.pth; expected"):
        find_bundle(None, [tmp_path / "weights"])
    assert find_bundle(None, [tmp_path / "weights"], uploaded=False) == own
    (tmp_path / "opt" / "network.pth").unlink()
    assert find_bundle(None, [tmp_path / "weights"]) == own
    platform = write_bundle(tmp_path / "opt", bundle.manifest, tensors_of(bundle))
    assert find_bundle(None, [tmp_path / "weights"]) == platform
    assert find_bundle(own, [tmp_path / "weights"]) == own
    second = write_bundle(tmp_path / "weights" / "two", bundle.manifest, tensors_of(bundle))
    with pytest.raises(WeightsError, match="several bundles"):
        find_bundle(tmp_path / "weights", [tmp_path])
    assert second.is_dir()


def test_fingerprint_does_not_name_the_patient():
    assert fingerprint("MDA-001") != fingerprint("MDA-002")
    assert "MDA" not in fingerprint("MDA-001")


@pytest.fixture
def served(tiny_bundle, tmp_path):
    """A local server of a bundle's archive: its URL, its hash, what was asked of it, its folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
        for file in tiny_bundle.iterdir():
            archive.add(file, file.name)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/model.tar.gz"
    yield url, sha256(folder / "model.tar.gz"), asked, folder
    server.shutdown()
    server.server_close()


def test_a_bundle_from_a_url_is_fetched_once(served, tmp_path, tiny_bundle):
    url, known, asked, _ = served
    for _ in range(2):
        folder = fetch_bundle(f"{url}#sha256={known}", tmp_path / "cache")
        assert load_bundle(folder).manifest == load_bundle(tiny_bundle).manifest
    assert asked == ["/model.tar.gz"]
    assert load_bundle(folder).tensors("fold0.safetensors")


def test_a_url_without_its_hash_is_refused_before_anything_is_asked(served):
    url, known, asked, _ = served
    for address in (url, f"{url}#sha256=abc", f"{url}#md5={known}"):
        with pytest.raises(WeightsError, match="expected <URL>#sha256="):
            find_bundle(address)
    assert asked == []


def test_a_download_of_another_hash_is_refused(served, tmp_path):
    url, _, _, _ = served
    with pytest.raises(WeightsError, match="hash"):
        fetch_bundle(f"{url}#sha256={'0' * 64}", tmp_path / "cache")
    with pytest.raises(WeightsError, match="nothing_there"):
        fetch_bundle(f"{url}nothing_there#sha256={'0' * 64}", tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("manifest.json")]


def test_settings_given_explicitly_take_the_place_of_the_bundles(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    given = load_settings(None, ["data.region=centre", "postprocessing.threshold_gtvp=0.3"])
    changed, notes = bundle.adjusted(given)
    assert changed.manifest.region == "centre"
    assert changed.manifest.postprocessing.threshold_gtvp == 0.3
    assert changed.manifest.preprocessing == bundle.manifest.preprocessing  # 4 mm, not the default
    assert len(notes) == 2 and all("the bundle's is" in note for note in notes)
    same, notes = bundle.adjusted(load_settings(None))
    assert same.manifest == bundle.manifest and notes == ()


def test_an_archive_without_a_bundle_is_refused_and_not_kept(served, tmp_path):
    url, _, _, folder = served
    for name, words in (
        ("empty.tar", b""),
        ("cut.tar.gz", b"\x1f\x8b\x08\x00cut"),
        ("a.zip", b"PK"),
    ):
        file = folder / name
        file.write_bytes(words)
        address = f"{url.rpartition('/')[0]}/{name}#sha256={sha256(file)}"
        with pytest.raises(WeightsError, match="not an archive of a bundle"):
            fetch_bundle(address, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_what_adds_a_part_does_not_take_the_place_of_other_networks(tiny_bundle, tmp_path):
    bundle = load_bundle(tiny_bundle)
    tensors = {name: dict(values) for name, values in tensors_of(bundle).items()}
    alone = bundle.manifest.model_copy(update={"prognosis": None})
    segmentation = {"fold0.safetensors": tensors["fold0.safetensors"]}
    same = write_bundle(tmp_path / "same", alone, segmentation)
    refuse_loss(same, bundle, lambda there: there.prognosis)
    refuse_loss(tmp_path / "none", bundle, lambda there: there.prognosis)
    others = {name: {k: v + 1 for k, v in one.items()} for name, one in segmentation.items()}
    other = write_bundle(tmp_path / "other", alone, others)
    with pytest.raises(RefusedError, match=r"holds networks, or models .* that 'tiny' lacks"):
        refuse_loss(other, bundle, lambda there: there.prognosis)
    # One that was made so before is made anew.
    before = write_bundle(tmp_path / "before", bundle.manifest, tensors | others)
    refuse_loss(before, bundle, lambda there: there.prognosis)
    with pytest.raises(RefusedError, match="would be lost"):
        refuse_loss(before, bundle, lambda there: there.staging)
    # Nor of models that were trained on top of the same networks.
    on_top = write_bundle(tmp_path / "top", bundle.manifest, tensors)
    with pytest.raises(RefusedError, match="would be lost"):
        refuse_loss(on_top, load_bundle(same), lambda there: False)
    refuse_loss(on_top, bundle, lambda there: False)
    marked = {TUNED: {"patients": 1}}  # inherited by what is trained on a tuned bundle
    assert not _is_tuned(bundle.manifest.model_copy(update={"metrics": marked}))
    assert _is_tuned(alone.model_copy(update={"metrics": marked}))
