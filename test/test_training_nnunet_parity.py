"""An imported model says what nnU-Net's own predictor says of it (extra ``nnunet``; minutes).

nnU-Net plans, preprocesses and trains on phantoms here, for a few steps. Its predictor sums in half
precision; for the comparison it sums in float32.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from hmvnet.bundle import Bundle, load_bundle
from hmvnet.case import Case, Grid
from hmvnet.config import InferenceSettings
from hmvnet.imaging.resample import resample, resample_pet_ct
from hmvnet.phantom import PhantomSettings, write_cohort
from hmvnet.reading.checks import checked_case
from hmvnet.reading.folder import Patient, find_patients
from hmvnet.segmentation.ensemble import load_ensemble
from hmvnet.segmentation.forward import mirrored_axes
from hmvnet.segmentation.scan import Scan
from hmvnet.segmentation.segmenter import Segmentation, Segmenter
from hmvnet.training.nnunet_import import import_nnunet
from hmvnet.writing.nnunet import DatasetWriter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CPU = torch.device("cpu")
NUMBER, NAME, CONFIGURATION = 501, "Dataset501_Phantom", "3d_fullres"
CT_SPACING = (3.0, 3.0, 4.0)
WINDOW = [32, 48, 48]  # the phantoms are about twice as large: several windows an axis
WEIGHTS = torch.tensor([1.0, 300.0, 300.0])  # a window holds few tumour voxels


@dataclass(frozen=True)
class Trained:
    """nnU-Net's folders, and a model folder."""

    root: Path
    model: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw" / NAME


def coarser(case: Case) -> Case:
    """The CT and the labels at ``CT_SPACING``."""
    own = Grid.of(case.ct)
    size = tuple(round(n * mm / to) for n, mm, to in zip(own.size, own.spacing, CT_SPACING))
    grid = Grid(size, CT_SPACING, own.origin, own.direction)
    ct = grid.image(resample(case.ct, grid, fill=-1000.0).astype(np.int16))
    nearest = {"fill": 0.0, "interpolator": sitk.sitkNearestNeighbor}
    truth = grid.image(resample(case.truth, grid, **nearest).astype(np.uint8))
    return checked_case(case.patient_id, ct, case.pet, truth=truth)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Iterator[Path]:
    """Where nnU-Net keeps its data, its raw data written; said in the environment as it wants."""
    pytest.importorskip("nnunetv2", reason="the extra 'nnunet'")
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"nnUNet_{name}", str(root / name))
        patch.setenv("nnUNet_def_n_proc", "1")
        patch.setenv("nnUNet_n_proc_DA", "1")
        write_cohort(root / "phantoms", 5, 5, PhantomSettings())
        writer = DatasetWriter(root / "raw" / NAME)
        for patient in find_patients(root / "phantoms"):
            writer.write(coarser(patient.read()))
        writer.close()
        yield root


@pytest.fixture(scope="module")
def trained(folders) -> Trained:
    """Planned, preprocessed and trained by nnU-Net: three folds, one of them by its own loop."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        preprocess,
    )

    extract_fingerprints([NUMBER], num_processes=1, check_dataset_integrity=False)
    planner = ExperimentPlanner(
        NUMBER, gpu_memory_target_in_gb=0.3, overwrite_target_spacing=(8.0, 6.0, 6.0)
    )
    planner.UNet_base_num_features, planner.UNet_max_features_3d = 4, 16
    planner.plan_experiment()
    path = folders / "preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"][CONFIGURATION]["patch_size"] = WINDOW
    path.write_text(json.dumps(plans))
    preprocess([NUMBER], configurations=(CONFIGURATION,), num_processes=(1,))
    for fold in range(3):
        trainer = make_trainer(folders, plans, fold)
        if fold == 0:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_n_proc_DA", "0")
                trainer.num_epochs = trainer.num_val_iterations_per_epoch = 1
                trainer.num_iterations_per_epoch = 2
                trainer.run_training()
        else:
            trainer.initialize()
            trainer.inference_allowed_mirroring_axes = (0, 1, 2)  # as its own loop says
        learn(trainer, folders / "raw" / NAME, fold)
        save(trainer)
    model = Path(trainer.output_folder_base)
    for name, content in (("plans", plans), ("dataset", trainer.dataset_json)):
        (model / f"{name}.json").write_text(json.dumps(content))
    return Trained(folders, model)


def make_trainer(root: Path, plans: dict[str, Any], fold: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    dataset = json.loads((root / "raw" / NAME / "dataset.json").read_text())
    given = copy.deepcopy(plans) | {"continue_training": False}
    return nnUNetTrainer(given, CONFIGURATION, fold, dataset, device=CPU)


def save(trainer: Any) -> None:
    """As the trainer itself does."""
    folder = Path(trainer.output_folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))


def learn(trainer: Any, raw: Path, seed: int, steps: int = 80) -> None:
    """Some steps on windows around tumours, not augmented: enough for tumours to be found."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    manager = trainer.configuration_manager
    preprocessor = manager.preprocessor_class(verbose=False)
    cases = []
    for patient in find_patients(raw)[:3]:
        data, label, _ = preprocessor.run_case(
            [str(patient.ct), str(patient.pet)],
            str(patient.label),
            trainer.plans_manager,
            manager,
            trainer.dataset_json,
        )
        cases.append((data, label[0].clip(0)))
    optimiser = torch.optim.Adam(trainer.network.parameters(), 1e-2)
    trainer.network.train()
    for step in range(steps):
        data, label = cases[step % len(cases)]
        kinds = [kind for kind in (1, 2) if (label == kind).any()]
        near = rng.choice(np.argwhere(label == rng.choice(kinds))) + rng.integers(-8, 9, 3)
        first = np.clip(near - np.array(WINDOW) // 2, 0, np.array(label.shape) - WINDOW)
        z, y, x = (slice(a, a + w) for a, w in zip(first, WINDOW))
        truth = torch.from_numpy(label[None, z, y, x].astype(np.int64))
        logits = trainer.network(torch.from_numpy(data[None, :, z, y, x]))[0]
        loss = torch.nn.functional.cross_entropy(logits, truth, WEIGHTS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():  # lean to tumour, so that there are masks to compare
        trainer.network.decoder.seg_layers[-1].bias[1:] += 3


class InFloat32:
    """torch, whose half precision is single."""

    half = torch.float32

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@dataclass(frozen=True)
class Said:
    """What nnU-Net makes of a patient: its preprocessed array, and what comes of that."""

    array: np.ndarray
    probabilities: torch.Tensor
    mask: np.ndarray
    on_ct: np.ndarray


def theirs(trained: Trained, folds: tuple[int, ...], mirroring: bool, case: Any) -> Said:
    """nnU-Net's own predictor, its accumulator in float32."""
    from nnunetv2.inference import predict_from_raw_data
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as convert,
    )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_from_raw_data, "torch", InFloat32(torch))
        predictor = predict_from_raw_data.nnUNetPredictor(
            use_mirroring=mirroring, device=CPU, allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(
            str(trained.model), folds, "checkpoint_final.pth"
        )
        manager = predictor.configuration_manager
        array, _, properties = manager.preprocessor_class(verbose=False).run_case(
            [str(case.ct), str(case.pet)],
            None,
            predictor.plans_manager,
            manager,
            predictor.dataset_json,
        )
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(array))
    assert logits.dtype == torch.float32
    mask, on_ct = convert(
        logits,
        predictor.plans_manager,
        manager,
        predictor.label_manager,
        properties,
        return_probabilities=True,
    )
    return Said(array, torch.softmax(logits, 0), mask, on_ct)


def ours(bundle: Bundle, array: np.ndarray, mirroring: bool) -> torch.Tensor:
    """The bundle's networks on nnU-Net's own preprocessed array, logits averaged."""
    settings = InferenceSettings(flips=mirroring).without_budget()
    total, passes = torch.tensor(0.0), 0
    for member in load_ensemble(bundle, CPU, settings).members:
        for axes in [(), *(mirrored_axes(member.own, "all") if mirroring else [])]:
            total = total + member(torch.from_numpy(array)[None].float(), axes)[0][0]
            passes += 1
    return torch.softmax(total / passes, 0)


def looked_at(case: Case, said: Segmentation) -> tuple[tuple[slice, ...], np.ndarray]:
    """The part of the CT's grid that holds the working region, and which of its voxels do."""
    scan = Scan(case, said.volume, True)
    return scan.box, ~scan.beyond


def with_both(raw: Path) -> Patient:
    """A patient with a primary and nodes."""
    for patient in find_patients(raw):
        kinds = np.unique(sitk.GetArrayFromImage(patient.read().truth))
        if {1, 2} <= set(kinds.tolist()):
            return patient
    raise AssertionError("no phantom has both")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.mark.parametrize(
    ("folds", "mirroring"), [((0,), False), ((0,), True), ((0, 1, 2), False), ((0, 1, 2), True)]
)
def test_probabilities_and_masks_are_those_of_nnunet(trained, tmp_path, folds, mirroring):
    found = import_nnunet(trained.model, tmp_path / "bundle", [str(fold) for fold in folds])
    bundle = load_bundle(found.folder)
    patient = with_both(trained.raw)
    known = theirs(trained, folds, mirroring, patient)
    difference = (ours(bundle, known.array, mirroring) - known.probabilities).abs().max()
    print(f"folds {folds}, mirroring {mirroring}: largest difference {difference:.1e}")
    assert difference < 1e-3
    # From the file: read, resampled, prepared, predicted and put back on the CT's grid.
    case = patient.read()
    settings = InferenceSettings(flips=mirroring).without_budget()
    said = Segmenter(bundle, CPU, settings)(case)
    mask = sitk.GetArrayFromImage(said.on(Grid.of(case.ct)))
    box, inside = looked_at(case, said)
    apart = np.abs(said.probabilities - known.on_ct[(slice(None), *box)])
    assert apart[:, inside].max() < 1e-3
    found_kinds = [kind for kind in (1, 2) if (known.mask == kind).sum() > 50]
    # Trained for a few steps only, it may know nothing in what is mirrored.
    assert found_kinds or mirroring, "the network found nothing"
    assert (mask[box] != known.mask[box])[inside].mean() < 1e-4
    for kind in found_kinds:
        # nnU-Net looks at the whole scan, we at the working region of it.
        agreement = dice((mask[box] == kind)[inside], (known.mask[box] == kind)[inside])
        whole = dice(mask == kind, known.mask == kind)
        print(f"class {kind}: Dice {agreement:.4f} in the region, {whole:.4f} in all")
        assert agreement >= 0.99


ODD = {
    "anisotropic": {"spacing": [20.0, 6.0, 6.0], "patch_size": [16, 48, 48]},
    "transposed": {"spacing": [6.0, 8.0, 7.0], "transpose": [2, 0, 1]},
    "masked z-score, rescaled": {
        "normalization_schemes": ["ZScoreNormalization", "RescaleTo01Normalization"],
        "use_mask_for_norm": [True, False],
    },
    "not scaled, residual": {
        "normalization_schemes": ["NoNormalization", "ZScoreNormalization"],
        "residual": True,
    },
}


@pytest.mark.parametrize("name", ODD)
def test_other_plans_are_followed_too(trained, tmp_path, name):
    """Untrained networks, whose probabilities lie everywhere."""
    change = dict(ODD[name])
    plans = json.loads((trained.model / "plans.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    if transpose := change.pop("transpose", None):
        plans["transpose_forward"] = transpose
        plans["transpose_backward"] = np.argsort(transpose).tolist()
    if change.pop("residual", False):
        network = configuration["architecture"]
        network["network_class_name"] = network["network_class_name"].replace(
            "PlainConvUNet", "ResidualEncoderUNet"
        )
        kwargs = network["arch_kwargs"]
        kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    configuration.update(change)
    torch.manual_seed(0)
    trainer = make_trainer(trained.root, plans, 0)
    trainer.output_folder = str(tmp_path / "model" / "fold_0")
    trainer.output_folder_base = str(tmp_path / "model")
    trainer.initialize()
    with torch.no_grad():  # untrained ones say nearly the same everywhere
        trainer.network.decoder.seg_layers[-1].weight *= 50
    save(trainer)
    for file, content in (("plans", plans), ("dataset", trainer.dataset_json)):
        (tmp_path / "model" / f"{file}.json").write_text(json.dumps(content))
    patient = find_patients(trained.raw)[-1]
    known = theirs(Trained(trained.root, tmp_path / "model"), (0,), False, patient)
    assert known.probabilities.std() > 0.01
    bundle = load_bundle(import_nnunet(tmp_path / "model", tmp_path / "bundle").folder)
    case = patient.read()
    grid = Grid.of(case.ct)
    prepared = bundle.manifest.segmentation.input.prepare(resample_pet_ct(case, grid), grid)
    np.testing.assert_allclose(prepared.array, known.array, atol=1e-3)
    assert (ours(bundle, known.array, False) - known.probabilities).abs().max() < 1e-3
    said = Segmenter(bundle, CPU)(case)
    box, inside = looked_at(case, said)
    apart = np.abs(said.probabilities - known.on_ct[(slice(None), *box)])
    assert apart[:, inside].max() < 1e-3


def test_nnunet_accepts_what_export_writes(folders):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(folders / "raw" / NAME), num_processes=1)
