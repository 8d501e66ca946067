"""Writing a bundle's ONNX files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hmvnet.bundle import add_file, load_bundle
from hmvnet.files import replacing
from hmvnet.segmentation.ensemble import OnnxForward, TorchForward, load_network


class _LogitsAndMaps(nn.Module):
    """HM-VNet's logits and encoder maps as one graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor):
        if hasattr(self.network, "forward_with_features"):
            logits, maps = self.network.forward_with_features(x)  # type: ignore[operator]
            return (logits, *maps)
        return self.network(x)


def export_bundle(
    folder: Path, shape: tuple[int, ...] | None = None
) -> Iterator[tuple[Path, float]]:
    """Write ``<name>.onnx`` for every network of a bundle and add it to the manifest.

    Args:
        shape: (z, y, x) of the graph's input; the region's size if None.

    Yields:
        The file and the largest difference in probability from torch, on random input.
    """
    bundle = load_bundle(folder)
    part, pre = bundle.manifest.segmentation, bundle.manifest.preprocessing
    size = shape or tuple(round(mm / pre.spacing_mm) for mm in reversed(pre.size_mm))
    for file in part.files:
        network = load_network(bundle, file)
        target = folder / (Path(file).stem + ".onnx")
        write_onnx(network, size, target)
        add_file(folder, target.name)
        yield target, compare(network, target, size)


def write_onnx(network: nn.Module, size: tuple[int, ...], path: Path) -> None:
    """One network as an ONNX graph of fixed input size ``[1, 2, *size]``, whole or not at all."""
    example = torch.zeros(1, 2, *size)
    with replacing(path) as temporary:
        torch.onnx.export(
            _LogitsAndMaps(network).eval(),
            (example,),
            temporary,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["volume"],
        )


def compare(network: nn.Module, path: Path, size: tuple[int, ...]) -> float:
    """Largest difference in probability between torch and ONNX Runtime on random input."""
    volume = torch.from_numpy(np.random.default_rng(0).random((1, 2, *size), np.float32))
    device = torch.device("cpu")
    expected, _ = TorchForward(network, device)(volume)
    found, _ = OnnxForward(path.read_bytes(), device)(volume)
    return float((expected - found).abs().max())
