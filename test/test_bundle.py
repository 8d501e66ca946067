import json
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from hmvnet.bundle import (
    Bundle,
    WeightsError,
    all_tensors,
    fetch_bundle,
    find_bundle,
    fingerprint,
    load_bundle,
    write_bundle,
)
from hmvnet.config import InferenceSettings, load_settings
from hmvnet.files import sha256
from hmvnet.networks.output import Output
from hmvnet.segmentation.ensemble import (
    Ensemble,
    OnnxForward,
    TorchForward,
    load_ensemble,
    load_network,
    pick_device,
)


def test_bundle_round_trip(tiny_bundle, tmp_path):
    bundle = load_bundle(tiny_bundle)
    again = write_bundle(tmp_path / "copy", bundle.manifest, all_tensors(bundle))
    copy = load_bundle(again)
    assert copy.manifest == bundle.manifest
    for name, tensors in all_tensors(bundle).items():
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
    folder = write_bundle(tmp_path / "b", bundle.manifest, all_tensors(bundle))
    (folder / "fold0.safetensors").write_bytes(b"changed")
    with pytest.raises(WeightsError, match="sha256"):
        load_bundle(folder).tensors("fold0.safetensors")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', '{"format": 1}'])
def test_damaged_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        load_bundle(tmp_path)


def test_where_bundles_are_looked_for(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("hmvnet.bundle.PLATFORM_MODEL_DIR", tmp_path / "opt")
    with pytest.raises(WeightsError, match="no bundle"):
        find_bundle(None, [tmp_path])
    bundle = load_bundle(tiny_bundle)
    own = write_bundle(tmp_path / "weights" / "one", bundle.manifest, all_tensors(bundle))
    assert find_bundle(None, [tmp_path / "weights"]) == own
    platform = write_bundle(tmp_path / "opt", bundle.manifest, all_tensors(bundle))
    assert find_bundle(None, [tmp_path / "weights"]) == platform
    assert find_bundle(own, [tmp_path / "weights"]) == own
    second = write_bundle(tmp_path / "weights" / "two", bundle.manifest, all_tensors(bundle))
    with pytest.raises(WeightsError, match="several bundles"):
        find_bundle(tmp_path / "weights", [tmp_path])
    assert second.is_dir()


def test_fingerprint_does_not_name_the_patient():
    assert fingerprint("MDA-001") != fingerprint("MDA-002")
    assert "MDA" not in fingerprint("MDA-001")


class Constant:
    """A member whose GTVp probability is its number, and that takes a second of a false clock."""

    def __init__(self, value: float, clock: list[float]) -> None:
        self.value, self.clock, self.calls = value, clock, 0

    def __call__(self, volume):
        self.calls += 1
        self.clock[0] += 1.0
        p = torch.zeros(1, 3, *volume.shape[2:])
        p[:, 1] = self.value
        p[:, 1, ..., 0] = 1.0  # the left edge
        return p, []


def test_ensemble_averages_members_and_flips():
    clock = [0.0]
    members = [Constant(0.2, clock), Constant(0.4, clock)]
    ensemble = Ensemble(members, True, 100.0, clock=lambda: clock[0])
    output = ensemble(np.zeros((2, 4, 4, 6), np.float32))
    assert output.probabilities[1, 0, 0, 2] == pytest.approx(0.3)
    # Mirrored passes are mirrored back: both edges get half of each pass.
    assert output.probabilities[1, 0, 0, 0] == pytest.approx((1.0 + 0.3) / 2)
    assert output.probabilities[1, 0, 0, 5] == pytest.approx((1.0 + 0.3) / 2)
    assert output.notes[0].startswith("4 of 4")


def test_time_budget_leaves_passes_out_and_says_so():
    clock = [0.0]
    members = [Constant(0.1 * i, clock) for i in range(5)]
    output = Ensemble(members, False, 2.5, clock=lambda: clock[0])(
        np.zeros((2, 4, 4, 4), np.float32)
    )
    assert [m.calls for m in members] == [1, 1, 0, 0, 0]
    assert "2 of 5" in output.notes[0] and "3 left out" in output.notes[0]


def test_probabilities_that_are_not_finite_are_an_error():
    ensemble = Ensemble([Constant(float("nan"), [0.0])])
    with pytest.raises(RuntimeError, match="NaN"):
        ensemble(np.zeros((2, 4, 4, 4), np.float32))


def test_half_precision_on_the_cpu_is_nearly_the_same(tiny_bundle):
    bundle, device = load_bundle(tiny_bundle), torch.device("cpu")
    volume = np.random.default_rng(0).random((2, 40, 36, 44), np.float32)
    full, half = (
        load_ensemble(bundle, device, InferenceSettings(precision=p))(volume).probabilities
        for p in ("auto", "bf16")
    )
    assert 0 < np.abs(full - half).max() < 0.05


def test_gpu_asked_for_but_not_there():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert pick_device().type == "cpu"
    with pytest.raises(ValueError, match="no CUDA GPU"):
        pick_device("cuda")


@pytest.fixture(scope="module")
def onnx_bundle(tiny_bundle, tmp_path_factory):
    from hmvnet.segmentation.onnx_export import export_bundle

    bundle = load_bundle(tiny_bundle)
    folder = tmp_path_factory.mktemp("onnx") / "bundle"
    write_bundle(folder, bundle.manifest, all_tensors(bundle))
    results = list(export_bundle(folder, (40, 36, 44)))
    return folder, results


def test_onnx_agrees_with_torch(onnx_bundle):
    folder, results = onnx_bundle
    assert [path.name for path, _ in results] == ["fold0.onnx"]
    assert results[0][1] < 1e-3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "fold0.onnx" in manifest["files"]


def test_onnx_back_end_and_its_fall_back(onnx_bundle, tiny_bundle):
    folder, _ = onnx_bundle
    settings, device = InferenceSettings(backend="onnx"), torch.device("cpu")
    onnx = load_ensemble(load_bundle(folder), device, settings)
    assert isinstance(onnx.members[0], OnnxForward)
    volume = np.random.default_rng(1).random((2, 40, 36, 44), np.float32)
    torch_output = load_ensemble(load_bundle(folder), device, InferenceSettings())(volume)
    onnx_output = onnx(volume)
    assert np.abs(onnx_output.probabilities - torch_output.probabilities).max() < 1e-3
    assert [m.shape for m in onnx_output.features] == [m.shape for m in torch_output.features]
    with pytest.raises(RuntimeError, match="export the bundle again"):
        onnx(volume[:, :8])
    fallen = load_ensemble(load_bundle(tiny_bundle), device, settings)
    assert not isinstance(fallen.members[0], OnnxForward)
    assert any("torch instead of ONNX" in note for note in fallen(volume).notes)


def test_onnx_that_would_quietly_run_on_the_cpu_is_an_error(onnx_bundle):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    folder, _ = onnx_bundle
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider was asked for"):
        OnnxForward((folder / "fold0.onnx").read_bytes(), torch.device("cuda"))


def test_a_volume_smaller_than_a_window_is_padded_with_air():
    """MONAI would pad with zeros: a SUV of 10 around the patient."""

    class Largest(torch.nn.Module):
        whole_region = False

        def forward(self, x, scales=False):
            return Output(x.amax((2, 3, 4), keepdim=True).expand_as(x)[:, [0, 1, 1]])

    forward = TorchForward(Largest(), torch.device("cpu"), (16, 16, 16))
    volume = torch.full((1, 2, 10, 20, 7), -1.0)
    volume[:, 0] = 0.0
    probabilities, _ = forward(volume)
    assert probabilities.shape == (1, 3, 10, 20, 7)
    # Softmax of CT 0 and PET -1: nothing above air was seen.
    expected = torch.softmax(torch.tensor([0.0, -1.0, -1.0]), 0)
    torch.testing.assert_close(probabilities[0, :, 5, 5, 5], expected)


def test_weights_of_another_network_are_refused_in_one_line(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.segmentation
    wider = part.model_copy(update={"options": part.options | {"channels": 16}})
    manifest = bundle.manifest.model_copy(update={"segmentation": wider})
    with pytest.raises(WeightsError, match="not those of the network 'hmvnet'"):
        load_network(Bundle(bundle.folder, manifest), part.files[0])


@pytest.fixture
def served(tiny_bundle, tmp_path):
    """A server on this machine with a bundle's archive; gives its URL, hash and what was asked."""
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
    yield url, sha256(folder / "model.tar.gz"), asked
    server.shutdown()
    server.server_close()


def test_a_bundle_from_a_url_is_fetched_once(served, tmp_path, tiny_bundle):
    url, known, asked = served
    for _ in range(2):
        folder = fetch_bundle(f"{url}#sha256={known}", tmp_path / "cache")
        assert load_bundle(folder).manifest == load_bundle(tiny_bundle).manifest
    assert asked == ["/model.tar.gz"]
    assert load_bundle(folder).tensors("fold0.safetensors")


def test_a_url_without_its_hash_is_refused_before_anything_is_asked(served):
    url, known, asked = served
    for address in (url, f"{url}#sha256=abc", f"{url}#md5={known}"):
        with pytest.raises(WeightsError, match="expected <URL>#sha256="):
            find_bundle(address)
    assert asked == []


def test_a_download_of_another_hash_is_refused(served, tmp_path):
    url, _, _ = served
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
