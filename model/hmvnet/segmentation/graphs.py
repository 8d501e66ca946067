"""A bundle's ONNX graphs, in ONNX Runtime or OpenVINO.

``hmvnet export`` writes them. ONNX Runtime runs them on a GPU as well; OpenVINO is for CPUs, and
faster there than torch, once it has compiled them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hmvnet.exits import one_line
from hmvnet.imaging.network_input import NetworkInput
from hmvnet.segmentation.forward import (
    Forward,
    Precision,
    in_windows,
    mirrored,
    softmax_in_place,
    wants_bf16,
)

ENGINES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}  # by inference.backend


class Graph(Protocol):
    """An ONNX graph of one input.

    Attributes:
        shape: of the input, ``[1, 2, z, y, x]``.
    """

    shape: tuple[int, ...]

    def __call__(self, x: np.ndarray) -> Sequence[np.ndarray]:
        """Logits, then the encoder maps."""


class OnnxRuntime:
    """A graph in ONNX Runtime, at full precision.

    Raises:
        RuntimeError: a GPU was asked for and ONNX Runtime would quietly use the CPU, or it cannot
            run the graph.
    """

    def __init__(self, model: bytes, device: torch.device) -> None:
        # After torch: its CUDA libraries are those that ONNX Runtime finds.
        import onnxruntime

        wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        providers = list(dict.fromkeys([wanted, "CPUExecutionProvider"]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # of several processes each has some
        try:
            self.session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # its own kinds share no other base
            raise RuntimeError(one_line(str(error))) from error
        found = self.session.get_providers()
        if wanted not in found:
            raise RuntimeError(f"ONNX Runtime gave {', '.join(found)}, but {wanted} was asked for")
        self.input = self.session.get_inputs()[0]
        self.shape = tuple(self.input.shape)

    def __call__(self, x: np.ndarray) -> Sequence[np.ndarray]:
        return self.session.run(None, {self.input.name: x})


class OpenVino:
    """A graph in OpenVINO, on the CPU, by as many threads as torch has.

    Args:
        bf16: compute in it.

    Raises:
        ImportError: OpenVINO is not installed.
        RuntimeError: a GPU was asked for.
    """

    def __init__(self, model: bytes, device: torch.device, bf16: bool) -> None:
        from openvino import Core

        if device.type != "cpu":
            raise RuntimeError(f"OpenVINO computes on the CPU, but {device} was asked for")
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = Core()
        self.compiled = core.compile_model(core.read_model(model), "CPU", options)
        self.shape = tuple(self.compiled.input(0).shape)

    def __call__(self, x: np.ndarray) -> Sequence[np.ndarray]:
        found = self.compiled(x)
        return [np.array(found[i]) for i in range(len(self.compiled.outputs))]


class GraphForward:
    """A graph as one network of an ensemble (``hmvnet.segmentation.forward.Forward``).

    Its size is the volume's, or where the network is one of sliding windows a window's.

    Args:
        windows: whether it is; always where the network brings its own preprocessing.
        otherwise: gives what runs on volumes of another size; None: they are refused.
    """

    def __init__(
        self,
        graph: Graph,
        own: NetworkInput | None = None,
        windows: bool = False,
        otherwise: Callable[[], Forward] | None = None,
    ) -> None:
        self.otherwise = otherwise
        self.other: Forward | None = None
        self.graph = graph
        self.own = own
        self.windows = windows or own is not None
        self.notes: tuple[str, ...] = ()

    def __call__(
        self, volume: Tensor, axes: tuple[int, ...] = ()
    ) -> tuple[Tensor, Sequence[Tensor]]:
        outputs, self.notes = mirrored(self._outputs, axes), ()
        if self.windows:
            logits, maps = in_windows(volume, outputs, self.graph.shape[2:], own=self.own)
            return (logits if self.own else softmax_in_place(logits)), maps
        if tuple(volume.shape) != self.graph.shape:
            why = (
                f"the ONNX graph takes {list(self.graph.shape)}, the volume is "
                f"{list(volume.shape)}: export the bundle again for this size"
            )
            if self.otherwise is None:
                raise RuntimeError(why)
            self.other = self.other or self.otherwise()
            found = self.other(volume, axes)
            self.notes = (f"torch instead of the graph ({why})", *self.other.notes)
            return found
        logits, *maps = outputs(volume)
        return softmax_in_place(logits), maps

    def _outputs(self, x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(values) for values in self.graph(x.contiguous().numpy())]


def load_graph(
    backend: str,
    model: bytes,
    device: torch.device,
    precision: Precision = "auto",
    own: NetworkInput | None = None,
    windows: bool = False,
    otherwise: Callable[[], Forward] | None = None,
) -> GraphForward:
    """A network's ONNX graph as ``inference.backend`` runs it: ``onnx`` or ``openvino``.

    Args:
        windows: whether its network works in windows, whose size the graph has.
        otherwise: as of ``GraphForward``.

    Raises:
        ImportError, RuntimeError: as ``OnnxRuntime`` and ``OpenVino``.
    """
    graph: Graph
    if backend == "onnx":
        graph = OnnxRuntime(model, device)
    else:
        graph = OpenVino(model, device, wants_bf16(device, precision, own))
    return GraphForward(graph, own, windows, otherwise)
