"""The folder of a trained nnU-Net v2 model: plans, data set description, checkpoints.

A checkpoint is a pickle. It is read with an allow list: tensors, plain values and numpy's numbers,
which is all that nnU-Net puts into one; anything else is refused by its name, and never made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from hmvnet.case import CLASSES
from hmvnet.config import Length, Voxels
from hmvnet.exits import RefusedError, is_out_of_memory, shown
from hmvnet.files import visible
from hmvnet.imaging.network_input import Axis
from hmvnet.reading.contours import label_of
from hmvnet.reading.folder import read_dataset_json
from hmvnet.reading.records import read_json

PLANS, DATASET, FOLD = "plans.json", "dataset.json", "fold_"
WRAPPED = re.compile(r"^(module\.|_orig_mod\.)+")
# Names that nnU-Net gives channels by how they are normalised.
NORMALISATIONS = ("nonorm", "zscore", "rescale")
CHECKPOINTS = {"final": "checkpoint_final.pth", "best": "checkpoint_best.pth"}
OF_V1 = ("plans.pkl", "model_final_checkpoint.model", "model_best.model", "fold_*/*.model.pkl")
MAX_PLANS_BYTES = 1 << 26
# numpy 2 moved what its numbers are made with; checkpoints of before name the old place.
SCALAR, ARRAY = (
    getattr(np._core.multiarray, name)  # type: ignore[attr-defined]
    for name in ("scalar", "_reconstruct")
)
NUMPY = [
    np.dtype,
    np.ndarray,
    *(
        (maker, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for maker, name in ((SCALAR, "scalar"), (ARRAY, "_reconstruct"))
    ),
    *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
]


class _Read(BaseModel):
    """Of a file of nnU-Net's: what is not named here is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Architecture(_Read):
    """The network, as plans name it."""

    network_class_name: str
    arch_kwargs: dict[str, Any]


class Configuration(_Read):
    """One of the plans' configurations, what it inherits put in."""

    preprocessor_name: str = "DefaultPreprocessor"
    patch_size: Annotated[tuple[Voxels, ...], Field(min_length=2, max_length=3)]
    spacing: tuple[Length, ...]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    resampling_fn_data: str = "resample_data_or_seg_to_shape"
    resampling_fn_data_kwargs: dict[str, Any] = {}
    resampling_fn_probabilities: str = "resample_data_or_seg_to_shape"
    resampling_fn_probabilities_kwargs: dict[str, Any] = {}
    previous_stage: str | None = None
    architecture: Architecture | None = None
    # Plans of before 2.4 say it so.
    UNet_class_name: str = ""
    UNet_base_num_features: int = 32
    unet_max_num_features: int = 320
    n_conv_per_stage_encoder: list[int] = []
    n_conv_per_stage_decoder: list[int] = []
    pool_op_kernel_sizes: list[list[int]] = []
    conv_kernel_sizes: list[list[int]] = []


class Plans(_Read):
    """``plans.json``."""

    dataset_name: str = ""
    plans_name: str = ""
    image_reader_writer: str = ""
    transpose_forward: tuple[Axis, Axis, Axis] = (0, 1, 2)
    original_median_spacing_after_transp: list[float] = []
    original_median_shape_after_transp: list[float] = []
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, dict[str, float]] = {}
    foreground_intensity_properties_by_modality: dict[str, dict[str, float]] = {}

    @property
    def intensities(self) -> dict[str, dict[str, float]]:
        """Of each channel in the foreground: mean, std, percentile_00_5, percentile_99_5."""
        return (
            self.foreground_intensity_properties_per_channel
            or self.foreground_intensity_properties_by_modality
        )


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what compiled and distributed networks have before their tensors' names."""
    return {WRAPPED.sub("", name): values for name, values in weights.items()}


class Checkpoint(_Read):
    """One fold's checkpoint."""

    model_config = ConfigDict(extra="ignore", frozen=True, arbitrary_types_allowed=True)

    network_weights: Annotated[dict[str, Tensor], AfterValidator(_unwrapped)]
    trainer_name: str = ""
    init_args: dict[str, Any] = {}
    inference_allowed_mirroring_axes: list[int] | tuple[int, ...] | None = None


@dataclass(frozen=True)
class NNUNetModel:
    """A trained model.

    Attributes:
        configuration: the one that was trained, and its name.
        ct, pet: channels of the two images.
        heads: which class each output is; what is neither GTVp nor GTVn counts as background.
        others: names of the outputs that are not kept apart.
        checkpoints: of each fold, by the fold's name.
    """

    folder: Path
    plans: Plans
    configuration_name: str
    configuration: Configuration
    ct: int
    pet: int
    heads: tuple[int, ...]
    others: tuple[str, ...]
    checkpoints: Mapping[str, Checkpoint]

    @property
    def first(self) -> Checkpoint:
        """Any of the checkpoints, which agree in all but the weights."""
        return next(iter(self.checkpoints.values()))


def read_model(
    folder: Path, folds: Sequence[str] = (), kind: Literal["final", "best"] = "final"
) -> NNUNetModel:
    """A model that nnU-Net v2 trained.

    Args:
        folder: that of ``plans.json``, or one that holds a single such folder.
        folds: names, ``0`` or ``all``; none: all that are there.
        kind: of the checkpoints.

    Raises:
        RefusedError: a file or fold is missing, damaged, of nnU-Net v1, or says what is not read
            here; names it.
    """
    folder = _model_folder(folder)
    plans = _checked(Plans, _json(folder / PLANS), folder / PLANS)
    names = _folds(folder, folds, CHECKPOINTS[kind])
    checkpoints = {
        name: read_checkpoint(folder / f"{FOLD}{name}" / CHECKPOINTS[kind]) for name in names
    }
    configuration_name = _agreed(checkpoints, folder)
    configuration = _configuration(plans, configuration_name, folder / PLANS)
    heads, others = _heads(folder / DATASET)
    _named_channels(folder / DATASET)
    ct, pet, _ = read_dataset_json(folder / DATASET, labels=False)
    if {ct, pet} != {0, 1}:
        raise RefusedError(
            f"{folder / DATASET}: CT is channel {ct}, PET channel {pet}, expected these two alone"
        )
    return NNUNetModel(
        folder,
        plans,
        configuration_name,
        configuration,
        ct,
        pet,
        heads,
        others,
        checkpoints,
    )


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise RefusedError(f"{folder}: no such folder, expected that of a trained nnU-Net v2 model")
    if (folder / PLANS).is_file():
        if not (folder / DATASET).is_file():
            raise RefusedError(f"{folder}: no {DATASET} beside {PLANS}")
        return folder
    inner = visible(path.parent for path in folder.glob(f"*/{PLANS}"))
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner)
        raise RefusedError(f"{folder}: several models ({names}), expected one: name its folder")
    if inner:
        return _model_folder(inner[0])
    if any(next(folder.glob(f"{deeper}{name}"), None) for name in OF_V1 for deeper in ("", "*/")):
        raise RefusedError(
            f"{folder}: a model of nnU-Net v1, expected v2; its weights cannot be converted: "
            "nnUNetv2_convert_old_nnUNet_dataset converts the data set that it was trained on, "
            "and nnU-Net v2 trains it again"
        )
    raise RefusedError(
        f"{folder}: no {PLANS}, expected the folder of a trained nnU-Net v2 model, such as "
        f"nnUNetTrainer__nnUNetPlans__3d_fullres, with {PLANS}, {DATASET} and {FOLD}0"
    )


def _folds(folder: Path, asked: Sequence[str], file: str) -> list[str]:
    """The names of the folds, in order; those of a cross-validation have no gap."""
    there = [path.name.removeprefix(FOLD) for path in visible(folder.glob(f"{FOLD}*"))]
    numbers = sorted(int(name) for name in there if name.isdigit())
    names = list(asked) or [str(n) for n in range(max(numbers, default=-1) + 1)]
    if not asked and not numbers:
        names = [name for name in there if name == "all"]
    if not names:
        raise RefusedError(f"{folder}: no {FOLD}0, expected a folder a fold")
    for name in names:
        path = folder / f"{FOLD}{name}"
        if not path.is_dir():
            found = ", ".join(f"{FOLD}{one}" for one in there) or "none"
            raise RefusedError(
                f"{folder}: {FOLD}{name} is missing, found {found}; --fold names those to be taken"
            )
        if not (path / file).is_file():
            other = next((k for k, v in CHECKPOINTS.items() if (path / v).is_file()), None)
            more = f"; {CHECKPOINTS[other]} is there: --checkpoint {other}" if other else ""
            raise RefusedError(f"{path}: no {file}{more}")
    return names


def _json(path: Path) -> Any:
    content, _ = read_json(path, MAX_PLANS_BYTES)
    if not isinstance(content, dict):
        raise RefusedError(f"{path}: not an object, expected nnU-Net's {path.name}")
    return content


def _checked(kind: Any, content: Any, path: Path) -> Any:
    """Content of a file as one of the models above."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = shown(".".join(map(str, first["loc"])))
        raise RefusedError(f"{path}: {where}: {shown(first['msg'], 200)}") from error


def _configuration(plans: Plans, name: str, path: Path) -> Configuration:
    """With what it inherits."""
    content: dict[str, Any] = {}
    following: str | None = name
    for _ in range(len(plans.configurations) + 1):
        if following is None:
            return _checked(Configuration, content, path)
        if not isinstance(following, str) or following not in plans.configurations:
            known = ", ".join(plans.configurations)
            raise RefusedError(
                f"{path}: no configuration '{shown(str(following))}', found {shown(known, 100)}"
            )
        content = plans.configurations[following] | content
        following = plans.configurations[following].get("inherits_from")
    raise RefusedError(f"{path}: configuration '{shown(name)}' inherits from itself")


def _agreed(checkpoints: Mapping[str, Checkpoint], folder: Path) -> str:
    """The configuration's name, which all folds have in common with the trainer and the axes."""
    said = {
        name: (c.trainer_name, c.init_args.get("configuration"), c.inference_allowed_mirroring_axes)
        for name, c in checkpoints.items()
    }
    (first, (trainer, configuration, axes)), *rest = said.items()
    for name, other in rest:
        if other != (trainer, configuration, axes):
            raise RefusedError(
                f"{folder}: {FOLD}{name} was trained as {shown(str(other))}, "
                f"{FOLD}{first} as {shown(str((trainer, configuration, axes)))}"
            )
    return str(configuration or folder.name.rpartition("__")[2])


def _named_channels(path: Path) -> None:
    """Refuse a model whose second channel may be anything: an MRI's, say.

    Of nnU-Net's data a channel may be named by how it is to be normalised; that says no more of it
    than that it is not the CT.
    """
    content = _json(path)
    channels = content.get("channel_names", content.get("modality"))
    names = (
        [str(n).strip().lower() for n in channels.values()] if isinstance(channels, dict) else []
    )
    others = [n for n in names if not n.startswith(("ct", "pet", "pt", "suv", *NORMALISATIONS))]
    if others or not names:
        raise RefusedError(
            f"{path}: channels {shown(str(names))}, expected channel_names of a CT and a PET"
        )


def _heads(path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which class each output is, and the names of those that count as background."""
    labels = _json(path).get("labels")
    if not isinstance(labels, dict) or not labels:
        raise RefusedError(f"{path}: no labels, expected background, GTVp and GTVn")
    values: dict[int, str] = {}
    for name, value in labels.items():
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(one, int) for one in several):
            raise RefusedError(f"{path}: label '{shown(name)}': value {shown(repr(value))}")
        numbers = set(several)
        if len(numbers) > 1:
            raise RefusedError(
                f"{path}: label '{shown(name)}' is a region of the values {sorted(numbers)}, "
                "expected a value a label: models trained on regions are not read"
            )
        number = next(iter(numbers), None)
        if isinstance(number, bool) or not isinstance(number, int) or number in values:
            raise RefusedError(f"{path}: label '{shown(name)}': value {shown(repr(value))}")
        if name != "ignore":  # of voxels that count for nothing in training
            values[number] = name
    if sorted(values) != list(range(len(values))) or len(values) < len(CLASSES):
        raise RefusedError(f"{path}: labels {shown(str(labels))}, expected 0, 1, 2 and so on")
    heads = tuple((label_of(values[n]) or 0) if n else 0 for n in range(len(values)))
    if heads.count(1) != 1 or heads.count(2) != 1:
        names = ", ".join(values[n] for n in range(len(values)))
        raise RefusedError(f"{path}: labels {shown(names, 100)}, expected one GTVp and one GTVn")
    return heads, tuple(values[n] for n in range(1, len(values)) if not heads[n])


@contextmanager
def _allowing_numpy() -> Iterator[None]:
    with torch.serialization.safe_globals(NUMPY):  # type: ignore[arg-type]
        yield


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of nnU-Net's trainers, its tensors left on the disk until they are used.

    Raises:
        RefusedError: it holds types that are not allowed, which are named, is damaged or another
            file.
    """
    kept = f"{path.parent.name}/{path.name}"
    try:
        with _allowing_numpy():
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            if not foreign:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|class (\S+)", str(error))
        foreign = [next(filter(None, found.groups()), "")] if found else ["an unknown operation"]
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise RefusedError(
            f"{kept}: damaged, cut short or no checkpoint of nnU-Net v2: "
            f"{shown(str(error).splitlines()[0] if str(error) else type(error).__name__, 120)}"
        ) from error
    if foreign:
        names = ", ".join(shown(name) for name in sorted(foreign))
        raise RefusedError(
            f"{kept}: holds {names}, expected tensors, plain values and numpy's numbers alone: "
            "nothing else is unpickled"
        )
    return _checked(Checkpoint, content, Path(kept))
