"""What an nnU-Net v2 model's plans say, as settings of a bundle: preprocessing and network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hmvnet.exits import RefusedError, shown
from hmvnet.imaging.network_input import ChannelScaling, NetworkInput
from hmvnet.training.nnunet_model import PLANS, Configuration, NNUNetModel

SCHEMES: Mapping[str, Literal["ct", "z-score", "rescale", "none"]] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "z-score",
    "RescaleTo01Normalization": "rescale",
    "NoNormalization": "none",
}
RESAMPLING = "resample_data_or_seg_to_shape"
UNETS = {"PlainConvUNet": False, "ResidualEncoderUNet": True}
# What a U-Net may be made of; other layers would be left out in silence.
LAYERS: Mapping[str, tuple[str | None, ...]] = {
    "conv_op": ("Conv3d",),
    "norm_op": ("InstanceNorm3d", "BatchNorm3d"),
    "nonlin": ("LeakyReLU", "ReLU"),
    "block": ("BasicBlockD",),
}


def network_input(model: NNUNetModel, field: Literal["region", "ct"]) -> NetworkInput:
    """The preprocessing of a model's configuration.

    Raises:
        RefusedError: it is 2D, of a cascade, or prepares its input in a way that is not read.
    """
    plan, path = model.configuration, model.folder / PLANS
    if plan.previous_stage:
        raise _refused(path, "previous_stage", plan.previous_stage, "no cascade")
    if {len(plan.patch_size), len(plan.spacing)} != {3}:
        raise _refused(path, "patch_size", list(plan.patch_size), "a 3D configuration")
    if plan.preprocessor_name != "DefaultPreprocessor":
        raise _refused(path, "preprocessor_name", plan.preprocessor_name, "DefaultPreprocessor")
    if "Reorient" in model.plans.image_reader_writer:
        found = model.plans.image_reader_writer
        raise _refused(path, "image_reader_writer", found, "one that keeps images as they lie")
    data = _resampling(model, plan.resampling_fn_data, plan.resampling_fn_data_kwargs)
    logits = _resampling(
        model, plan.resampling_fn_probabilities, plan.resampling_fn_probabilities_kwargs
    )
    if logits.get("order", 1) != 1:
        raise _refused(path, "resampling_fn_probabilities_kwargs", logits, "order 1")
    if len(plan.normalization_schemes) != 2 or len(plan.use_mask_for_norm) != 2:
        schemes = plan.normalization_schemes
        raise _refused(path, "normalization_schemes", schemes, "one for CT and one for PET")
    axes = model.first.inference_allowed_mirroring_axes or ()
    return NetworkInput(
        field=field,
        channels=(_scaling(model, model.ct), _scaling(model, model.pet)),
        pet_first=model.pet < model.ct,
        transpose=model.plans.transpose_forward,
        spacing_mm=plan.spacing,
        order=data.get("order", 3),
        separate=(data.get("force_separate_z"), logits.get("force_separate_z")),
        mirror_axes=tuple(axes),
        heads=model.heads,
    )


def _refused(path: Path, name: str, found: Any, expected: str) -> RefusedError:
    return RefusedError(f"{path}: {name} is {shown(str(found), 100)}, expected {expected}")


def _resampling(model: NNUNetModel, function: str, options: dict[str, Any]) -> dict[str, Any]:
    path = model.folder / PLANS
    if function != RESAMPLING:
        raise _refused(path, "resampling function", function, RESAMPLING)
    if options.get("order_z", 0) != 0 or options.get("separate_z_anisotropy_threshold", 3) != 3:
        raise _refused(path, "resampling", options, "order_z 0 and the usual threshold")
    # nnU-Net's own default where plans do not say it.
    return {"force_separate_z": False} | options


def _scaling(model: NNUNetModel, channel: int) -> ChannelScaling:
    plan, path = model.configuration, model.folder / PLANS
    scheme = plan.normalization_schemes[channel]
    if scheme not in SCHEMES:
        raise _refused(path, "normalization_schemes", scheme, f"one of {', '.join(SCHEMES)}")
    if SCHEMES[scheme] != "ct":
        return ChannelScaling(scheme=SCHEMES[scheme], masked=plan.use_mask_for_norm[channel])
    try:
        found = model.plans.intensities[str(channel)]
        return ChannelScaling(
            scheme="ct",
            low=found["percentile_00_5"],
            high=found["percentile_99_5"],
            mean=found["mean"],
            deviation=found["std"],
        )
    except KeyError as error:
        raise RefusedError(f"{path}: no {error} of channel {channel}'s intensities") from error


def network_of(model: NNUNetModel) -> tuple[str, dict[str, Any]]:
    """The network's name in the registry, and its options.

    Raises:
        RefusedError: another architecture, or layers that are not known.
    """
    weights = model.first.network_weights
    if any(name.startswith("conv_blocks_context.") for name in weights):
        return "stu-net", _stunet_options(model, weights)
    name, sizes = _architecture(model)
    kind = name.rpartition(".")[2]
    path = model.folder / PLANS
    if kind not in UNETS:
        raise _refused(path, "network", name, f"STU-Net or one of {', '.join(UNETS)}")
    for key, known in LAYERS.items():
        found = sizes.get(key)
        if found is not None and str(found).rpartition(".")[2] not in known:
            raise _refused(path, key, found, " or ".join(map(str, known)))
    residual = UNETS[kind]
    blocks = sizes.get("n_blocks_per_stage" if residual else "n_conv_per_stage")
    odd = {"nonlin_first": False, "stem_channels": None, "bottleneck_channels": None}
    if changed := [key for key, usual in odd.items() if sizes.get(key, usual) != usual]:
        raise _refused(path, changed[0], sizes[changed[0]], "what nnU-Net's planners say")
    norm = sizes.get("norm_op_kwargs") or {}
    if norm.get("eps", 1e-5) != 1e-5 or not norm.get("affine", False):
        raise _refused(path, "norm_op_kwargs", norm, "eps 1e-05 and affine")
    stages = int(sizes["n_stages"])
    slope = (sizes.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    options = {
        "classes": len(model.heads),
        "features": _each(sizes["features_per_stage"], stages),
        "strides": [_each(stride, 3) for stride in _each(sizes["strides"], stages)],
        "kernels": [_each(kernel, 3) for kernel in _each(sizes["kernel_sizes"], stages)],
        "blocks": _each(blocks, stages),
        "decoder": _each(sizes["n_conv_per_stage_decoder"], stages - 1),
        "residual": residual,
        "bias": bool(sizes.get("conv_bias", False)),
        # Trainers may exchange the norm, which shows in the weights.
        "norm": "batch" if any(n.endswith(".running_mean") for n in weights) else "instance",
        "slope": 0.0 if str(sizes.get("nonlin")).endswith(".ReLU") else float(slope),
    }
    return "nnunet", options


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def _architecture(model: NNUNetModel) -> tuple[str, dict[str, Any]]:
    """The network's class and what it is made with, in the newer form of plans."""
    plan: Configuration = model.configuration
    path = model.folder / PLANS
    if plan.architecture:
        sizes, name = plan.architecture.arch_kwargs, plan.architecture.network_class_name
        wanted = ("n_stages", "features_per_stage", "strides", "kernel_sizes")
        for key in (*wanted, "n_conv_per_stage_decoder"):
            if key not in sizes:
                raise RefusedError(f"{path}: architecture without {key}")
        return name, sizes
    if not plan.UNet_class_name:
        raise RefusedError(f"{path}: neither architecture nor UNet_class_name says the network")
    stages, residual = len(plan.n_conv_per_stage_encoder), UNETS.get(plan.UNet_class_name)
    most = plan.unet_max_num_features
    return plan.UNet_class_name, {
        "n_stages": stages,
        "features_per_stage": [
            min(plan.UNet_base_num_features * 2**i, most) for i in range(stages)
        ],
        "strides": plan.pool_op_kernel_sizes,
        "kernel_sizes": plan.conv_kernel_sizes,
        "n_blocks_per_stage" if residual else "n_conv_per_stage": plan.n_conv_per_stage_encoder,
        "n_conv_per_stage_decoder": plan.n_conv_per_stage_decoder,
        "conv_bias": True,
        "norm_op_kwargs": {"affine": True},
    }


def _stunet_options(model: NNUNetModel, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes from the weights; strides from the plans, five of them whatever the plans have."""
    plan = model.configuration
    strides = (
        plan.architecture.arch_kwargs.get("strides", []) if plan.architecture else []
    ) or plan.pool_op_kernel_sizes
    stages = 0
    channels, depths = [], []
    while (name := f"conv_blocks_context.{stages}.0.conv1.weight") in weights:
        channels.append(weights[name].shape[0])
        blocks = {
            n.split(".")[2] for n in weights if n.startswith(f"conv_blocks_context.{stages}.")
        }
        depths.append(len(blocks))
        stages += 1
    wanted = stages - 1
    steps = [_each(stride, 3) for stride in strides[1:]][:wanted]
    steps += [[1, 1, 1]] * (wanted - len(steps))
    return {
        "classes": len(model.heads),
        "channels": channels,
        "depths": depths,
        "strides": steps,
    }
