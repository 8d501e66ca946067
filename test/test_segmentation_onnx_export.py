import json

import numpy as np
import pytest
import torch
from conftest import tensors_of

from hmvnet.bundle import load_bundle, write_bundle
from hmvnet.config import InferenceSettings
from hmvnet.segmentation.ensemble import load_ensemble
from hmvnet.segmentation.forward import OnnxForward
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


def test_onnx_back_end_and_its_fall_back(onnx_bundle, tiny_bundle):
    folder, _ = onnx_bundle
    settings, device = InferenceSettings(backend="onnx"), torch.device("cpu")
    onnx = load_ensemble(load_bundle(folder), device, settings)
    assert isinstance(onnx.members[0], OnnxForward)
    volume = np.random.default_rng(1).random((2, 40, 36, 44), np.float32)
    full = InferenceSettings(precision="32")
    torch_output = load_ensemble(load_bundle(folder), device, full)(volume)
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
