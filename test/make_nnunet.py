"""The folder of a trained nnU-Net v2 model, tiny and untrained, as its trainers leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmvnet.networks.registry import build_network

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
KERNELS = [[3, 3, 3]] * 3
NORMS = {"0": {"mean": 40.0, "std": 30.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}}
KWARGS = {"is_seg": False, "order_z": 0, "force_separate_z": None}
CONFIGURATION = {
    "preprocessor_name": "DefaultPreprocessor",
    "patch_size": [16, 16, 16],
    "spacing": [8.0, 8.0, 8.0],
    "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
    "use_mask_for_norm": [False, False],
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {**KWARGS, "order": 3},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {**KWARGS, "order": 1},
}
LAYERS = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
ARCHITECTURES = "dynamic_network_architectures.architectures.unet."
SIZES = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "strides": STRIDES,
    "kernel_sizes": KERNELS,
    "n_conv_per_stage_decoder": [1, 1],
}
NEWER = {
    kind: {
        "architecture": {
            "network_class_name": ARCHITECTURES + kind,
            "arch_kwargs": {**SIZES, **LAYERS, blocks: [1, 2, 1]},
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    }
    for kind, blocks in (
        ("PlainConvUNet", "n_conv_per_stage"),
        ("ResidualEncoderUNet", "n_blocks_per_stage"),
    )
}
OLDER = {
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "unet_max_num_features": 8,
    "n_conv_per_stage_encoder": [1, 2, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "num_pool_per_axis": [2, 2, 2],
    "pool_op_kernel_sizes": STRIDES,
    "conv_kernel_sizes": KERNELS,
}
PLANS = {
    "dataset_name": "Dataset501_Tiny",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [5.0, 4.0, 4.0],
    "original_median_shape_after_transp": [40, 48, 48],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": NORMS,
}
DATASET = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "GTVp": 1, "GTVn": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
STUNET = {
    "channels": [2, 4, 4, 4, 4, 4],
    "depths": [1] * 6,
    "strides": [*STRIDES[1:], *[[1] * 3] * 3],
}


def network_of(kind: str, classes: int, features: tuple[int, ...] = (4, 6, 8)) -> torch.nn.Module:
    """One of the networks that the plans above describe, in eval mode."""
    if kind == "STU-Net":
        return build_network("stu-net", {**STUNET, "classes": classes}).eval()
    options = {
        "classes": classes,
        "features": list(features),
        "strides": STRIDES,
        "kernels": KERNELS,
        "blocks": [1, 2, 1],
        "decoder": [1, 1],
        "residual": kind == "ResidualEncoderUNet",
    }
    return build_network("nnunet", options).eval()


def write_model(
    folder: Path,
    kind: str = "PlainConvUNet",
    folds: tuple[str, ...] = ("0",),
    configuration: dict[str, Any] | None = None,
    plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    older: bool = False,
) -> list[torch.nn.Module]:
    """Write a model folder; the other arguments take the place of what is in its files.

    Returns:
        A fold's network each.
    """
    described = {**DATASET, **(dataset or {})}
    classes = len(described["labels"]) - ("ignore" in described["labels"])
    network = OLDER if older or kind == "STU-Net" else NEWER[kind]
    content = {**CONFIGURATION, **network, **(configuration or {})}
    folder.mkdir(parents=True, exist_ok=True)
    everything = {**PLANS, "configurations": {"3d_fullres": content}, **(plans or {})}
    (folder / "plans.json").write_text(json.dumps(everything))
    (folder / "dataset.json").write_text(json.dumps(described))
    networks = []
    for fold in folds:
        torch.manual_seed(len(networks))
        networks.append(network_of(kind, classes, (4, 8, 8) if older else (4, 6, 8)))
        weights = dict(networks[-1].state_dict())
        # As nnU-Net's own classes: the encoder again as a part of the decoder.
        weights |= {f"decoder.{k}": v for k, v in weights.items() if k.startswith("encoder.")}
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        trainer = "STUNetTrainer_small" if kind == "STU-Net" else "nnUNetTrainer"
        torch.save(
            {
                "network_weights": weights,
                "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
                "grad_scaler_state": None,
                "logging": {"ema_fg_dice": [np.float64(0.1)], "dice": np.arange(3.0)},
                "_best_ema": np.float64(0.5),
                "current_epoch": 1000,
                "init_args": {
                    "configuration": "3d_fullres",
                    "fold": fold,
                    "device": torch.device("cpu"),
                },
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": (0, 1, 2),
                **(checkpoint or {}),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return networks
