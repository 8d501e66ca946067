"""What plans say, as settings: preprocessing and network."""

import pytest
from make_nnunet import CONFIGURATION, NEWER, SIZES, write_model

from hmvnet.exits import RefusedError
from hmvnet.networks.registry import build_network
from hmvnet.training.nnunet_model import read_model
from hmvnet.training.nnunet_settings import network_input, network_of


def test_both_forms_of_plans_say_the_network(tmp_path):
    write_model(tmp_path / "newer")
    write_model(tmp_path / "older", older=True)
    name, options = network_of(read_model(tmp_path / "newer"))
    assert name == "nnunet" and options["features"] == [4, 6, 8] and not options["residual"]
    assert options["blocks"] == [1, 2, 1] and options["decoder"] == [1, 1]
    name, older = network_of(read_model(tmp_path / "older"))
    assert (name, older) == ("nnunet", options | {"features": [4, 8, 8]})
    build_network(name, older)


def test_residual_encoders_and_stunet(tmp_path):
    write_model(tmp_path / "residual", "ResidualEncoderUNet")
    write_model(tmp_path / "stu", "STU-Net")
    assert network_of(read_model(tmp_path / "residual"))[1]["residual"]
    name, options = network_of(read_model(tmp_path / "stu"))
    assert name == "stu-net" and options["channels"] == [2, 4, 4, 4, 4, 4]
    # Of the plans as many strides as there are stages, and 1 where they end.
    assert options["strides"] == [[2, 2, 2]] * 2 + [[1, 1, 1]] * 3


def test_numbers_that_stand_for_all_stages(tmp_path):
    sizes = SIZES | {"kernel_sizes": 3, "n_conv_per_stage_decoder": 1}
    plain = NEWER["PlainConvUNet"]["architecture"]
    kwargs = plain["arch_kwargs"] | sizes
    write_model(tmp_path, configuration={"architecture": {**plain, "arch_kwargs": kwargs}})
    assert network_of(read_model(tmp_path))[1]["kernels"] == [[3, 3, 3]] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm_op": "torch.nn.GroupNorm"}, "norm_op is torch.nn.GroupNorm"),
        ({"nonlin": "torch.nn.GELU"}, "LeakyReLU or ReLU"),
        ({"conv_op": "torch.nn.modules.conv.Conv2d"}, "conv_op"),
        ({"nonlin_first": True}, "nonlin_first"),
        ({"norm_op_kwargs": {"eps": 0.1, "affine": True}}, "norm_op_kwargs"),
        ({"block": "x.BottleneckD"}, "BasicBlockD"),
    ],
)
def test_layers_that_are_not_known_are_refused(tmp_path, change, said):
    plain = NEWER["PlainConvUNet"]["architecture"]
    kwargs = plain["arch_kwargs"] | change
    write_model(tmp_path, configuration={"architecture": {**plain, "arch_kwargs": kwargs}})
    with pytest.raises(RefusedError, match=said):
        network_of(read_model(tmp_path))


def test_other_networks_are_refused(tmp_path):
    other = NEWER["PlainConvUNet"]["architecture"] | {"network_class_name": "x.Primus"}
    write_model(tmp_path / "a", configuration={"architecture": other})
    with pytest.raises(RefusedError, match=r"network is x\.Primus, expected STU-Net or one of"):
        network_of(read_model(tmp_path / "a"))
    write_model(tmp_path / "b", configuration={"architecture": None})
    with pytest.raises(RefusedError, match="neither architecture nor UNet_class_name"):
        network_of(read_model(tmp_path / "b"))


def test_preprocessing_becomes_settings(tmp_path):
    write_model(
        tmp_path,
        configuration={
            "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
            "use_mask_for_norm": [True, False],
            "spacing": [3.0, 1.0, 2.0],
        },
        plans={
            "transpose_forward": [2, 0, 1],
            "foreground_intensity_properties_per_channel": {
                "1": {"mean": 1, "std": 2, "percentile_00_5": -5, "percentile_99_5": 7}
            },
        },
        dataset={"channel_names": {"0": "PET", "1": "CT"}},
    )
    found = network_input(read_model(tmp_path), "ct")
    ct, pet = found.channels
    assert (ct.scheme, ct.low, ct.high, ct.mean, ct.deviation) == ("ct", -5, 7, 1, 2)
    assert (pet.scheme, pet.masked) == ("z-score", True)
    assert found.pet_first and found.transpose == (2, 0, 1) and found.spacing_mm == (3, 1, 2)
    assert found.order == 3 and found.separate == (None, None) and found.field == "ct"
    assert found.mirror_axes == (0, 1, 2) and found.heads == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"previous_stage": "3d_lowres"}, "no cascade"),
        ({"patch_size": [64, 64], "spacing": [1, 1]}, "a 3D configuration"),
        ({"preprocessor_name": "Mine"}, "preprocessor_name is Mine"),
        ({"normalization_schemes": ["RGBTo01Normalization"] * 2}, "expected one of CTNorm"),
        ({"normalization_schemes": ["NoNormalization"]}, "one for CT and one for PET"),
        ({"resampling_fn_data": "resample_torch_simple"}, "resampling function is resample_torch"),
        ({"resampling_fn_data_kwargs": {"order_z": 1}}, "order_z 0"),
        (
            {
                "resampling_fn_probabilities_kwargs": {
                    **CONFIGURATION["resampling_fn_probabilities_kwargs"],
                    "order": 3,
                }
            },
            "expected order 1",
        ),
    ],
)
def test_preprocessing_that_is_not_done_here_is_refused(tmp_path, change, said):
    write_model(tmp_path, configuration=change)
    with pytest.raises(RefusedError, match=said):
        network_input(read_model(tmp_path), "ct")


def test_images_turned_while_they_are_read_are_refused(tmp_path):
    write_model(tmp_path, plans={"image_reader_writer": "NibabelIOWithReorient"})
    with pytest.raises(RefusedError, match="image_reader_writer"):
        network_input(read_model(tmp_path), "ct")


def test_a_channel_without_intensities_is_refused(tmp_path):
    write_model(tmp_path, plans={"foreground_intensity_properties_per_channel": {"0": {}}})
    with pytest.raises(RefusedError, match=r"no 'percentile_00_5' of channel 0"):
        network_input(read_model(tmp_path), "ct")
