import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tensors_of

from hmvnet.bundle import add_file, load_bundle, write_bundle
from hmvnet.config import InferenceSettings
from hmvnet.networks.registry import build_network
from hmvnet.segmentation.ensemble import load_ensemble
from hmvnet.segmentation.forward import has_fast_bf16
from hmvnet.segmentation.graphs import GraphForward, load_graph
from hmvnet.segmentation.onnx_export import export_bundle


@pytest.fixture(scope="module")
def onnx_bundle(tiny_bundle, tmp_path_factory):

    bundle = load_bundle(tiny_bundle)
    folder = tmp_path_factory.mktemp("onnx") / "bundle"
    write_bundle(folder, bundle.manifest, tensors_of(bundle))
    results = list(export_bundle(folder, (40, 36, 44)))
    return folder, results


def test_onnx_agrees_with_torch(onnx_bundle):
    folder, results = onnx_bundle
    assert [path.name for path, _ in results] == ["fold0.onnx"]
    assert results[0][1] < 1e-3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "fold0.onnx" in manifest["files"]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_back_end_and_its_fall_back(onnx_bundle, tiny_bundle, backend):
    folder, _ = onnx_bundle
    if backend == "openvino":
        pytest.importorskip("openvino")
    settings, device = InferenceSettings(backend=backend, precision="32"), torch.device("cpu")
    onnx = load_ensemble(load_bundle(folder), device, settings)
    assert isinstance(onnx.members[0], GraphForward)
    volume = np.random.default_rng(1).random((2, 40, 36, 44), np.float32)
    full = InferenceSettings(precision="32")
    torch_output = load_ensemble(load_bundle(folder), device, full)(volume)
    onnx_output = onnx(volume)
    assert np.abs(onnx_output.probabilities - torch_output.probabilities).max() < 1e-3
    assert [m.shape for m in onnx_output.features] == [m.shape for m in torch_output.features]
    lower = np.ascontiguousarray(volume[:, :32])  # of another size: torch's, and said
    by_itself = load_graph(backend, (folder / "fold0.onnx").read_bytes(), device)
    with pytest.raises(RuntimeError, match="export the bundle again"):
        by_itself(torch.from_numpy(lower)[None])
    other = onnx(lower)
    assert any("export the bundle again" in note for note in other.notes)
    expected = load_ensemble(load_bundle(folder), device, full)(lower)
    np.testing.assert_array_equal(other.probabilities, expected.probabilities)
    assert not any("export" in note for note in onnx(volume).notes)
    fallen = load_ensemble(load_bundle(tiny_bundle), device, settings)
    assert not isinstance(fallen.members[0], GraphForward)
    engine = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[backend]
    assert any(f"torch instead of {engine}" in note for note in fallen(volume).notes)


def test_openvino_computes_in_bf16_where_torch_would(onnx_bundle):
    pytest.importorskip("openvino")
    model = (onnx_bundle[0] / "fold0.onnx").read_bytes()
    for precision, expected in (("32", "f32"), ("auto", "bf16" if has_fast_bf16() else "f32")):
        compiled = load_graph("openvino", model, torch.device("cpu"), precision).graph.compiled
        found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        assert found == expected
        assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


def test_openvino_does_not_take_a_gpu_for_a_cpu(onnx_bundle):
    pytest.importorskip("openvino")
    with pytest.raises(RuntimeError, match="on the CPU, but cuda was asked for"):
        load_graph("openvino", b"", torch.device("cuda"))


def test_a_graph_that_the_engine_cannot_run_leaves_it_to_torch(onnx_bundle, tmp_path):
    import onnx

    folder = tmp_path / "bundle"
    shutil.copytree(onnx_bundle[0], folder)
    model = onnx.load(folder / "fold0.onnx")
    model.ir_version = 99
    onnx.save(model, folder / "fold0.onnx")
    add_file(folder, "fold0.onnx")
    settings = InferenceSettings(backend="onnx")
    ensemble = load_ensemble(load_bundle(folder), torch.device("cpu"), settings)
    assert not isinstance(ensemble.members[0], GraphForward)
    assert any("torch instead of ONNX Runtime" in note for note in ensemble.notes)


def test_a_graph_of_the_patchs_size_is_no_graph_of_windows(tiny_bundle, tmp_path):
    """Of a network that sees the region: left to torch, as any size is that is not its own."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    bundle = load_bundle(folder)
    patch = bundle.manifest.segmentation.patch_size
    list(export_bundle(folder, patch))
    settings = InferenceSettings(backend="onnx")
    ensemble = load_ensemble(load_bundle(folder), torch.device("cpu"), settings)
    larger = np.zeros((2, *(n + 8 for n in patch)), np.float32)
    assert any("export the bundle again" in note for note in ensemble(larger).notes)


def test_a_size_that_is_asked_for_is_not_that_of_windows(tmp_path, tiny_bundle):
    """In a window of another size an InstanceNorm sees other statistics, and nobody would know."""
    manifest = load_bundle(tiny_bundle).manifest
    options = {"width": 4}
    part = manifest.segmentation.model_copy(
        update={"network": "unet3d", "options": options, "patch_size": (32, 32, 32)}
        | {"files": ["a.safetensors"], "seen": []}
    )
    changed = manifest.model_copy(update={"segmentation": part, "prognosis": None, "staging": None})
    weights = build_network("unet3d", options).state_dict()
    folder = write_bundle(tmp_path / "bundle", changed, {"a.safetensors": weights})
    list(export_bundle(folder, (64, 48, 48)))
    graph = load_graph("onnx", (folder / "a.onnx").read_bytes(), torch.device("cpu")).graph
    assert graph.shape[2:] == (32, 32, 32)
    options = graph.session.get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()


def test_a_graph_that_says_something_else_is_not_added(tiny_bundle, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.setattr("hmvnet.segmentation.onnx_export.compare", lambda *_: 0.9)
    with pytest.raises(RuntimeError, match=r"fold0\.onnx: ONNX Runtime's probabilities differ"):
        list(export_bundle(folder, load_bundle(folder).manifest.segmentation.patch_size))
    assert not (folder / "fold0.onnx").exists()
    assert "fold0.onnx" not in load_bundle(folder).manifest.files


def test_onnx_that_would_quietly_run_on_the_cpu_is_an_error(onnx_bundle):
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    folder, _ = onnx_bundle
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider was asked for"):
        load_graph("onnx", (folder / "fold0.onnx").read_bytes(), torch.device("cuda"))


def test_a_network_of_windows_is_one_in_a_graph_too(tmp_path, tiny_bundle):
    """Of the region in one pass it would say something else, and nobody would know."""
    manifest = load_bundle(tiny_bundle).manifest
    torch.manual_seed(0)
    options = {"init_filters": 8}
    part = manifest.segmentation.model_copy(
        update={"network": "segresnet", "options": options, "patch_size": (32, 32, 32)}
    )
    manifest = manifest.model_copy(update={"segmentation": part, "prognosis": None})
    weights = {part.files[0]: build_network("segresnet", options).state_dict()}
    folder = write_bundle(tmp_path / "bundle", manifest, weights)
    ((_, difference),) = export_bundle(folder)
    bundle, volume = load_bundle(folder), np.random.default_rng(0).random((2, 48, 40, 32))
    found, known = (
        load_ensemble(bundle, torch.device("cpu"), settings)(volume.astype(np.float32))
        for settings in (InferenceSettings(backend="onnx"), InferenceSettings(precision="32"))
    )
    assert difference < 1e-4 and not any("torch instead" in note for note in found.notes)
    np.testing.assert_allclose(found.probabilities, known.probabilities, atol=1e-4)
