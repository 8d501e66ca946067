"""An nnU-Net model as a bundle, which the whole pipeline then runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import COARSE, SMALL_NETWORK, tiny_ct, tiny_pet, write_patient
from make_nnunet import DATASET, write_model

from hmvnet.bundle import (
    Bundle,
    Manifest,
    SegmentationPart,
    StagingPart,
    WeightsError,
    fingerprint,
    load_bundle,
    write_bundle,
)
from hmvnet.case import Case, Grid
from hmvnet.cli import main
from hmvnet.config import InferenceSettings, PostprocessingSettings
from hmvnet.exits import RefusedError
from hmvnet.imaging.resample import resample_pet_ct
from hmvnet.networks.registry import build_network
from hmvnet.prognosis.risk import describe
from hmvnet.reading.checks import checked_case
from hmvnet.segmentation.graphs import GraphForward
from hmvnet.segmentation.onnx_export import export_bundle
from hmvnet.segmentation.scan import Scan
from hmvnet.segmentation.segmenter import Segmenter
from hmvnet.training.nnunet_import import import_nnunet
from hmvnet.training.nnunet_settings import SCHEMES

CPU = torch.device("cpu")
# The tiny CT is 240 mm long, 25 voxels of the network's at 8 mm: several windows of 16.
KINDS = ["PlainConvUNet", "ResidualEncoderUNet", "STU-Net"]


@pytest.fixture
def case() -> Case:
    return checked_case("A-1", tiny_ct(), tiny_pet())


def coarse(folder: Path) -> Bundle:
    """A bundle, its working region at 4 mm."""
    bundle = load_bundle(folder)
    return Bundle(folder, bundle.manifest.model_copy(update={"preprocessing": COARSE}))


def segmenter(folder: Path, **inference) -> Segmenter:
    return Segmenter(coarse(folder), CPU, InferenceSettings(**inference))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["ct", "region"])
def test_a_model_becomes_a_bundle_that_says_what_it_said(tmp_path, case, kind, field):
    window = [40, 32, 32]  # holds all of it: what the network says at once
    (network,) = write_model(tmp_path / "model", kind, configuration={"patch_size": window})
    found = import_nnunet(tmp_path / "model", tmp_path / "bundle", field=field)
    bundle = coarse(found.folder)
    (file,) = bundle.manifest.segmentation.files
    stored, state = bundle.tensors(file), network.state_dict()
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], state[name]) for name in state)
    said = Segmenter(bundle, CPU)(case)
    own = bundle.manifest.segmentation.input
    grid = Grid.of(case.ct) if field == "ct" else said.volume.grid
    prepared = own.prepare(resample_pet_ct(case, grid), grid)
    more = [w - n for w, n in zip(window, prepared.array.shape[1:])]
    padded = np.pad(prepared.array, [(0, 0), *((n // 2, n - n // 2) for n in more)])
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded)[None]).logits[0]
    part = tuple(slice(n // 2, n // 2 + s) for n, s in zip(more, prepared.array.shape[1:]))
    box = Scan(case, said.volume, field == "ct").box
    expected = prepared.probabilities(logits[(slice(None), *part)], box)
    np.testing.assert_allclose(said.probabilities, expected, atol=1e-5)
    likeliest = said.probabilities.argmax(0)
    if field == "region":
        zyx = np.argwhere(np.ones(grid.shape, bool))
        inside = Grid.of(case.ct).depth(grid.points(zyx[:, ::-1])) >= 0  # beyond the CT is nothing
        np.testing.assert_array_equal(said.labels.ravel(), likeliest.ravel() * inside)
        assert 0 < inside.sum() < len(inside)
    else:
        mask = sitk.GetArrayFromImage(said.on(grid))
        np.testing.assert_array_equal(mask[box], likeliest)


def test_folds_average_logits_and_mirrors_all_axes(tmp_path, case):
    """The mean of three folds' logits, each the mean of what eight mirrored passes say."""
    write_model(tmp_path / "model", folds=("0", "1", "2"))
    import_nnunet(tmp_path / "model", tmp_path / "bundle")
    both = segmenter(tmp_path / "bundle", flips=True)
    found = both(case)
    assert found.notes[0] == "24 of 24 network passes" and found.encoder_maps == ()
    total, own = 0.0, both.ensemble.members[0].own
    scan = Scan(case, found.volume, True)
    x = torch.from_numpy(scan.seen_by(own))[None]
    for member in both.ensemble.members:
        for axes in ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)):
            total = total + member(x, axes)[0][0]
    np.testing.assert_allclose(found.probabilities, scan.probabilities(own, total / 24), atol=1e-6)
    plain = segmenter(tmp_path / "bundle")(case)
    assert plain.notes[0] == "3 of 3 network passes"
    assert np.abs(plain.probabilities - found.probabilities).max() > 1e-4
    one = both.only([1])(case)
    assert one.notes[0] == "8 of 8 network passes"


def test_channels_and_labels_are_told_by_name(tmp_path, case):
    """PET before CT and GTVn before GTVp: the same network otherwise says the same."""
    write_model(tmp_path / "a")
    said = []
    for name, dataset in (
        ("a", {}),
        (
            "b",
            {
                "channel_names": {"0": "PT", "1": "CT"},
                "labels": {"background": 0, "GTVn": 1, "GTVp": 2},
            },
        ),
    ):
        model = tmp_path / name
        other = {"normalization_schemes": ["ZScoreNormalization", "CTNormalization"]}
        norms = json.loads((tmp_path / "a" / "plans.json").read_text())
        norms = norms["foreground_intensity_properties_per_channel"]
        write_model(
            model,
            configuration=other if dataset else {},
            plans={
                "foreground_intensity_properties_per_channel": {"1" if dataset else "0": norms["0"]}
            },
            dataset=dataset,
        )
        if dataset:
            path = model / "fold_0" / "checkpoint_final.pth"
            content = torch.load(path, weights_only=False)
            weights = content["network_weights"]
            first, last = "encoder.stages.0.0.convs.0.conv.weight", "decoder.seg_layers.1"
            weights[first] = weights[first].flip(1)
            for end in (".weight", ".bias"):
                weights[last + end] = weights[last + end][[0, 2, 1]]
            torch.save(content, path)
        import_nnunet(model, tmp_path / f"{name}.bundle")
        said.append(segmenter(tmp_path / f"{name}.bundle")(case).probabilities)
    np.testing.assert_allclose(said[0], said[1], atol=1e-5)


def test_an_organ_beside_the_tumours_counts_as_background(tmp_path, case):
    labels = DATASET["labels"] | {"parotid": 3}
    write_model(tmp_path / "model", dataset={"labels": labels})
    found = import_nnunet(tmp_path / "model", tmp_path / "bundle")
    assert any("labels parotid count as background" in note for note in found.notes)
    said = segmenter(tmp_path / "bundle")(case)
    assert said.probabilities.shape[0] == 3
    np.testing.assert_allclose(said.probabilities.sum(0), 1, atol=1e-5)


def test_every_scheme_and_flat_voxels_run(tmp_path, case):
    for number, scheme in enumerate(SCHEMES):
        write_model(
            tmp_path / scheme,
            configuration={
                "normalization_schemes": ["CTNormalization", scheme],
                "use_mask_for_norm": [False, True],
                "spacing": [30.0, 8.0, 8.0],
                "patch_size": [8, 16, 16],
            },
            plans={
                "transpose_forward": [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]][number],
                "foreground_intensity_properties_per_channel": {
                    channel: {"mean": 4, "std": 3, "percentile_00_5": 0, "percentile_99_5": 20}
                    for channel in "01"
                },
            },
        )
        import_nnunet(tmp_path / scheme, tmp_path / f"{scheme}.bundle")
        said = segmenter(tmp_path / f"{scheme}.bundle")(case)
        assert np.isfinite(said.probabilities).all()


def test_lesion_features_are_the_same_of_every_patient(tmp_path, case):
    """On grids of other sizes and spacings the encoder's maps still cover the working region."""
    write_model(tmp_path / "model")
    import_nnunet(tmp_path / "model", tmp_path / "bundle")
    grid = Grid((40, 44, 30), (5.0, 5.0, 8.0), (-100.0, -110.0, -120.0))
    other = checked_case("A-2", tiny_ct(grid), tiny_pet())
    run = segmenter(tmp_path / "bundle")
    descriptions = [describe(run(one), 8.0) for one in (case, other)]
    names = [d.features.names for d in descriptions]
    assert names[0] == names[1] and "encoder0_mean_7" in names[0]
    assert descriptions[0].image.shape == descriptions[1].image.shape
    encoder = [
        np.array([v for n, v in d.features.to_dict().items() if n.startswith("encoder0")])
        for d in descriptions
    ]
    assert np.isfinite(encoder).all() and np.abs(encoder[0]).max() > 0


def test_onnx_says_the_same(tmp_path, case):
    write_model(tmp_path / "model", "ResidualEncoderUNet")
    import_nnunet(tmp_path / "model", tmp_path / "bundle")
    ((path, difference),) = export_bundle(tmp_path / "bundle")
    assert path.name == "nnunet-fold0.onnx" and difference < 1e-4
    onnx = segmenter(tmp_path / "bundle", backend="onnx", flips=True)
    assert isinstance(onnx.ensemble.members[0], GraphForward)
    found, known = onnx(case), segmenter(tmp_path / "bundle", flips=True)(case)
    np.testing.assert_allclose(found.probabilities, known.probabilities, atol=1e-4)
    for ours, theirs in zip(found.encoder_maps, known.encoder_maps, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("field", ["ct", "region"])
def test_beside_another_bundle_each_network_weighs_the_same(tmp_path, case, field):
    torch.manual_seed(0)
    network = build_network("hmvnet", SMALL_NETWORK)
    part = SegmentationPart(
        network="hmvnet", options=SMALL_NETWORK, patch_size=(32, 32, 32), files=["a.safetensors"]
    )
    rules = PostprocessingSettings(min_ml_gtvp=1.0)
    staging = StagingPart(t_features=["x"], n_features=["x"], file="staging.safetensors")
    manifest = Manifest(
        name="a", preprocessing=COARSE, postprocessing=rules, segmentation=part, staging=staging
    )
    files = {"a.safetensors": network.state_dict(), "staging.safetensors": {"x": torch.zeros(1)}}
    ours = write_bundle(tmp_path / "ours", manifest, files)
    write_model(tmp_path / "model", folds=("0", "1"))
    found = import_nnunet(tmp_path / "model", tmp_path / "both", field=field, beside=ours)
    bundle = load_bundle(found.folder)
    assert bundle.manifest.preprocessing == COARSE and bundle.manifest.postprocessing == rules
    assert bundle.manifest.staging is None and "risk and stage" in " ".join(found.notes)
    both = Segmenter(bundle, CPU)
    said = both(case)
    assert said.notes[0] == "3 of 3 network passes" and said.encoder_maps == ()
    hmvnet, theirs = both.only([0])(case), both.only([1, 2])(case)
    if field == "ct":  # alone it stays on the working grid, together they meet on the CT's
        scan = Scan(case, hmvnet.volume, True)
        first = scan.probabilities(None, torch.from_numpy(hmvnet.probabilities))
    else:
        first = hmvnet.probabilities
    expected = (first + 2 * theirs.probabilities) / 3
    np.testing.assert_allclose(said.probabilities, expected, atol=1e-5)


def sharpened(model: Path) -> Path:
    """With logits far enough apart that places can be told."""
    for path in model.glob("fold_*/checkpoint_final.pth"):
        content = torch.load(path, weights_only=False)
        for name, values in content["network_weights"].items():
            if "seg_layers.1.weight" in name:
                values.mul_(50)
        torch.save(content, path)
    return model


def test_one_that_sees_the_region_beside_one_that_sees_the_ct(tmp_path, case):
    """Each by itself and both together; of the same fold's number, and a third beside them."""
    write_model(tmp_path / "a")
    write_model(tmp_path / "b")
    first = import_nnunet(sharpened(tmp_path / "a"), tmp_path / "A", field="region").folder
    bundle = load_bundle(first)
    manifest = bundle.manifest.model_copy(update={"preprocessing": COARSE})
    tensors = {name: bundle.tensors(name) for name in manifest.segmentation.all_files}
    first = write_bundle(tmp_path / "first", manifest, tensors)
    both = import_nnunet(sharpened(tmp_path / "b"), tmp_path / "both", field="ct", beside=first)
    loaded = load_bundle(both.folder)
    files = loaded.manifest.segmentation.all_files
    assert files == ["nnunet-fold0.safetensors", "nnunet2-fold0.safetensors"]
    segmenter = Segmenter(loaded, CPU)
    region, ct = segmenter.only([0])(case), segmenter.only([1])(case)
    scan = Scan(case, region.volume, True)
    there = scan.probabilities(None, torch.from_numpy(region.probabilities))
    expected = (there + ct.probabilities) / 2
    assert there.std() > 0.1
    np.testing.assert_allclose(segmenter(case).probabilities, expected, atol=1e-5)
    three = import_nnunet(tmp_path / "a", tmp_path / "three", beside=both.folder)
    beside = load_bundle(three.folder).manifest
    assert beside.segmentation.all_files[2:] == ["nnunet3-fold0.safetensors"]
    assert len(beside.trained_on["beside"]) == 2


def test_nothing_is_said_outside_of_the_working_region(tmp_path):
    """Of a CT that lies obliquely its box of voxels has corners far from the region."""
    write_model(tmp_path / "model")
    path = tmp_path / "model/fold_0/checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    for name, values in content["network_weights"].items():
        if "seg_layers.1.bias" in name:
            values.copy_(torch.tensor([0.0, 9.0, 0.0]))  # GTVp wherever it looks
    torch.save(content, path)
    bundle = load_bundle(import_nnunet(tmp_path / "model", tmp_path / "out", field="ct").folder)
    changed = {"preprocessing": COARSE, "region": "centre"}
    bundle = Bundle(bundle.folder, bundle.manifest.model_copy(update=changed))
    oblique = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    grid = Grid((90, 90, 40), (4.0, 4.0, 5.0), (-36.0, -252.0, -100.0), oblique)
    said = Segmenter(bundle, CPU)(checked_case("A-1", tiny_ct(grid), tiny_pet()))
    mask = sitk.GetArrayFromImage(said.on(grid))
    depth = said.volume.grid.depth(grid.points(np.argwhere(mask > 0)[:, ::-1]))
    assert depth.min() > -1e-3
    region = (said.labels > 0).sum() * said.volume.grid.voxel_ml
    assert (mask > 0).sum() * grid.voxel_ml == pytest.approx(region, rel=0.03)


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_compiled_and_distributed_networks(tmp_path, before):
    write_model(tmp_path / "model")
    path = tmp_path / "model/fold_0/checkpoint_final.pth"
    plain = import_nnunet(tmp_path / "model", tmp_path / "plain").folder
    content = torch.load(path, weights_only=False)
    content["network_weights"] = {before + k: v for k, v in content["network_weights"].items()}
    torch.save(content, path)
    folder = import_nnunet(tmp_path / "model", tmp_path / "out").folder
    name = "nnunet-fold0.safetensors"
    assert (folder / name).read_bytes() == (plain / name).read_bytes()


def test_what_is_too_large_to_be_read_again_is_not_written(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    monkeypatch.setattr("hmvnet.bundle.MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(WeightsError, match=r"nnunet-fold0\.safetensors: \d+ bytes, a file of a"):
        import_nnunet(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "plans",
    [
        {"transpose_forward": [0, 0, 1]},
        {"configuration": {"architecture": {"arch_kwargs": {"norm_op_kwargs": []}}}},
        {"configuration": {"inherits_from": ["a"]}},
    ],
)
def test_plans_that_make_no_sense_are_named(tmp_path, plans):
    write_model(tmp_path / "model")
    path = tmp_path / "model" / "plans.json"
    content = json.loads(path.read_text())
    content |= {k: v for k, v in plans.items() if k != "configuration"}
    (configuration,) = content["configurations"].values()
    changes = plans.get("configuration", {})
    if "architecture" in changes:
        configuration["architecture"]["arch_kwargs"] |= changes["architecture"]["arch_kwargs"]
    elif changes:
        configuration |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(RefusedError, match=r"plans\.json: "):
        import_nnunet(tmp_path / "model", tmp_path / "out")


def test_what_it_sees_is_told_by_what_it_was_trained_on(tmp_path):
    write_model(
        tmp_path / "crops",
        plans={
            "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
            "original_median_shape_after_transp": [309, 200, 200],
        },
    )
    write_model(tmp_path / "scans")
    for name, field in (("crops", "region"), ("scans", "ct")):
        found = import_nnunet(tmp_path / name, tmp_path / f"{name}.bundle")
        assert load_bundle(found.folder).manifest.segmentation.input.field == field


def test_what_it_was_trained_on(tmp_path):
    write_model(tmp_path / "model", folds=("0", "1"))
    splits = tmp_path / "splits_final.json"
    splits.write_text(
        json.dumps([{"train": ["A", "B"], "val": ["C"]}, {"train": ["C"], "val": []}])
    )
    found = import_nnunet(tmp_path / "model", tmp_path / "known", splits=splits)
    seen = load_bundle(found.folder).manifest.segmentation.seen
    assert seen == [sorted(map(fingerprint, "AB")), [fingerprint("C")]]
    assert load_bundle(found.folder).seen_among("ABCD") == ["A", "B", "C"]
    found = import_nnunet(tmp_path / "model", tmp_path / "unseen", unseen=True)
    assert load_bundle(found.folder).manifest.segmentation.seen == [[], []]
    found = import_nnunet(tmp_path / "model", tmp_path / "unknown")
    assert any("survival training refuses it" in note for note in found.notes)
    splits.write_text("[]")
    with pytest.raises(RefusedError, match=r"splits_final\.json of folds 0, 1"):
        import_nnunet(tmp_path / "model", tmp_path / "other", splits=splits)


def test_weights_of_another_network_are_refused(tmp_path):
    write_model(tmp_path / "model")
    path = tmp_path / "model" / "plans.json"
    path.write_text(path.read_text().replace("[4, 6, 8]", "[4, 6, 10]"))
    with pytest.raises(RefusedError, match="fold_0: the weights are not those of the network"):
        import_nnunet(tmp_path / "model", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_names_of_compiled_networks_are_known(tmp_path, case):
    write_model(tmp_path / "model")
    path = tmp_path / "model" / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    weights = content["network_weights"]
    content["network_weights"] = {f"_orig_mod.{k}": v for k, v in weights.items()}
    torch.save(content, path)
    import_nnunet(tmp_path / "model", tmp_path / "bundle")
    segmenter(tmp_path / "bundle")(case)


def test_the_commands(tmp_path, capsys):
    """Import, then prediction of a folder; what is wrong ends in one line and exit code 2."""
    write_model(tmp_path / "model")
    write_patient(tmp_path / "data", "A-1", "plain")
    bundle = str(tmp_path / "bundle")
    for arguments, code, said in (
        (["import", "nnunet", str(tmp_path / "model"), "--out", bundle], 0, "bundle: "),
        (["import", "nnunet", str(tmp_path / "model"), "--out", bundle], 2, "--force replaces it"),
        (["import", "nnunet", str(tmp_path), "--out", f"{bundle}2", "--fold", "3"], 2, "fold_3"),
        (["import", "nnunet", str(tmp_path), "--out", f"{bundle}3", "--field", "x"], 2, "--field"),
        (
            [
                *["predict", str(tmp_path / "data"), "--output", str(tmp_path / "out")],
                *["--weights", bundle, "--region", "centre", "--no-picture", "--no-page"],
                *["--set", "preprocessing.spacing_mm=4"],
            ],
            0,
            "A-1",
        ),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        told = capsys.readouterr()
        assert ended.value.code == code, told
        assert said in " ".join((told.out + told.err).split())
    mask = sitk.ReadImage(str(tmp_path / "out" / "A-1" / "mask.nii.gz"))
    assert mask.GetSize() == tiny_ct().GetSize()
