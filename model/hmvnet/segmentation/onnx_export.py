"""Writing a bundle's ONNX files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hmvnet.bundle import add_file, load_bundle
from hmvnet.files import replacing
from hmvnet.segmentation.ensemble import load_network
from hmvnet.segmentation.forward import TorchForward
from hmvnet.segmentation.graphs import load_graph

Size = tuple[int, int, int]  # voxels: z, y, x


MOST_APART = 1e-3  # of probabilities; graphs of the shipped kinds have 1e-5


def export_bundle(folder: Path, shape: Size | None = None) -> Iterator[tuple[Path, float]]:
    """Write ``<name>.onnx`` for every network of a bundle and add it to the manifest.

    Args:
        shape: (z, y, x) of the input of graphs that see the region; None: the region's size. A
            network that is run in windows has a window's, the patch of its training: in others it
            would see other statistics.

    Yields:
        The file and the largest difference in probability from torch, on random input.
    """
    bundle = load_bundle(folder)
    networks, pre = bundle.manifest.segmentation, bundle.manifest.preprocessing
    x, y, z = (round(mm / pre.spacing_mm) for mm in pre.size_mm)
    for file in networks.all_files:
        part, network = networks.part_of(file), load_network(bundle, file)
        in_windows = part.input or not network.whole_region
        size = part.patch_size if in_windows else shape or (z, y, x)
        target = folder / (Path(file).stem + ".onnx")
        write_onnx(network, size, target)
        if (apart := compare(network, target, size)) > MOST_APART:
            target.unlink()
            raise RuntimeError(
                f"{target.name}: ONNX Runtime's probabilities differ from torch's by {apart:.1e}, "
                f"expected at most {MOST_APART:g}: it is not added to the bundle"
            )
        add_file(folder, target.name)
        yield target, apart


def write_onnx(network: nn.Module, size: Size, path: Path) -> None:
    """One network as an ONNX graph of fixed input size ``[1, 2, *size]``, whole or not at all."""
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    example = torch.zeros(1, 2, *size)
    # Of torch's attentions the plain one: the exporter gets the strides of the others wrong.
    with sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            network.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["volume"],
            optimize=False,
        )
    assert program is not None
    # All that ``optimize`` does that matters; its rewriting takes minutes for graphs of this size.
    fold_constants(program.model)
    remove_unused_nodes(program.model)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)


def compare(network: nn.Module, path: Path, size: Size) -> float:
    """Largest difference in probability between torch and ONNX Runtime on random input."""
    volume = torch.from_numpy(np.random.default_rng(0).random((1, 2, *size), np.float32))
    device = torch.device("cpu")
    expected, _ = TorchForward(network, device, size, "32")(volume)
    found, _ = load_graph("onnx", path.read_bytes(), device)(volume)
    return float((expected - found).abs().max())
