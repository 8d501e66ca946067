"""Tiny synthetic cases, built in place."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hmvnet.bundle import Bundle, Manifest, PrognosisPart, SegmentationPart, write_bundle
from hmvnet.case import IDENTITY, ClinicalRecord, Grid, Outcome, Outcomes, Verdict
from hmvnet.cohort import CohortResult, InTurn, Order, predict_cohort
from hmvnet.config import (
    DataSettings,
    NetworkSettings,
    PostprocessingSettings,
    PreprocessingSettings,
    PrognosisSettings,
    Settings,
    TrainingSettings,
)
from hmvnet.imaging.roi import Region
from hmvnet.lesions.features import LesionFeatures
from hmvnet.lesions.table import lesion_table
from hmvnet.networks.registry import build_network
from hmvnet.pipeline import Pipeline, Prediction
from hmvnet.prognosis.member import LesionDescription
from hmvnet.prognosis.risk import describe
from hmvnet.reading.folder import find_patients
from hmvnet.segmentation.forward import TorchForward
from hmvnet.segmentation.metrics import CaseScore, LabelScore, LesionCount
from hmvnet.segmentation.segmenter import Segmentation, Volume
from hmvnet.training.cache import Cache, Prepared
from hmvnet.training.descriptions import Described
from hmvnet.training.engine import make_fabric
from hmvnet.training.prognosis import fit_members

if find_spec("sksurv") is None:  # the extra 'baselines'; no wheels for the newest Pythons
    collect_ignore_glob = [
        "test_survival_*.py",
        "test_*prognosis.py",
        "test_experiments_compare.py",
    ]
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws of torch is the same in every run, whichever tests ran before it."""
    torch.manual_seed(0)


CT_GRID = Grid((48, 48, 40), (4.0, 4.0, 5.0), (-96.0, -96.0, -100.0))
PET_GRID = Grid((40, 40, 36), (5.0, 5.0, 6.0), (-100.0, -100.0, -104.0))
EHR = {"Age": 62, "Gender": 1, "Tobacco Consumption": 1, "Performance Status": 0, "M-stage": "M0"}


def ball(grid: Grid, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Boolean ``[z, y, x]``: voxel centres within ``radius`` mm of ``centre`` (LPS mm)."""
    z, y, x = np.indices(grid.shape)
    points = grid.points(np.stack([x, y, z], -1).reshape(-1, 3)).reshape(*grid.shape, 3)
    return np.linalg.norm(points - np.asarray(centre), axis=-1) <= radius


def cylinder(grid: Grid, radius: float) -> np.ndarray:
    """Boolean ``[z, y, x]``: within ``radius`` mm of the z axis."""
    z, y, x = np.indices(grid.shape)
    points = grid.points(np.stack([x, y, z], -1).reshape(-1, 3)).reshape(*grid.shape, 3)
    return np.hypot(points[..., 0], points[..., 1]) <= radius


def patient_with(
    *lesions: tuple[int, tuple[float, float, float], float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, CT and PET of balls, each (label, centre zyx, radius), in a body of 45 +- 40 mm (x)."""
    grid = Grid((90, 60, 80), (1.0, 1.0, 1.0))
    mask = np.zeros(grid.shape, dtype=np.uint8)
    for label, (z, y, x), radius in lesions:
        mask[ball(grid, (x, y, z), radius)] = label
    rng = np.random.default_rng(4)
    ct = rng.normal(40, 10, grid.shape).astype(np.float32)
    ct[:, :, :5] = ct[:, :, 86:] = -1000
    pet = rng.gamma(4, 0.25, grid.shape).astype(np.float32) + 5 * (mask > 0)
    return mask, ct, pet


def predicted(
    *lesions: tuple[int, tuple[int, int, int], int],
    direction: tuple[float, ...] = IDENTITY,
    note: str = "",
    notes: tuple[str, ...] = (),
) -> Prediction:
    """A prediction of balls, on a grid of 80 x 60 x 90 mm (z, y, x) whose origin is 10, 20, 300."""
    mask, ct, pet = patient_with(*lesions)
    grid = Grid(mask.shape[::-1], (1.0, 1.0, 1.0), (10.0, 20.0, 300.0), direction)
    volume = Volume(Region(grid, "brain", 0.9, note), np.stack([ct, pet]), np.stack([ct, pet]))
    segmentation = Segmentation(volume, np.zeros((3, *mask.shape), np.float32), mask)
    table = lesion_table(mask, ct, pet, (1.0, 1.0, 1.0))
    return Prediction(grid.image(mask), table, None, Verdict(), notes, {}, segmentation)


def tiny_ct(grid: Grid = CT_GRID) -> sitk.Image:
    """A water cylinder in air, int16 HU."""
    return grid.image(np.where(cylinder(grid, 80), 30, -1000).astype(np.int16))


def tiny_pet(grid: Grid = PET_GRID) -> sitk.Image:
    """A hot ball in a warm cylinder, float32 SUV."""
    suv = np.where(cylinder(grid, 80), 1.0, 0.0)
    suv[ball(grid, (20, 0, 0), 20)] = 8.0
    return grid.image(suv.astype(np.float32))


HEAD_GRID = Grid((56, 56, 64), (4.0, 4.0, 4.0), (-110.0, -110.0, -126.0))


def head() -> tuple[np.ndarray, np.ndarray]:
    """CT (HU) and PET (SUV) of a skull on a neck on shoulders, with an airway and two tumours."""
    z, y, x = np.indices(HEAD_GRID.shape)
    z, y, x = (o + 4.0 * i for o, i in zip(HEAD_GRID.origin[::-1], (z, y, x)))
    skull = (x / 78) ** 2 + (y / 92) ** 2 + ((z - 60) / 66) ** 2 <= 1
    brain = (x / 66) ** 2 + (y / 80) ** 2 + ((z - 60) / 54) ** 2 <= 1
    neck, shoulders = (
        (np.hypot(x, y) <= 60) & (z < 20),
        ((x / 108) ** 2 + (y / 70) ** 2 <= 1) & (z < -90),
    )
    ct = np.where(skull | neck | shoulders, 40.0, -1000.0)
    ct[skull & ~brain] = 900
    pet = np.where(ct > -500, 0.8, 0.0)
    pet[brain] = 7
    airway = (np.hypot(x, y + 15) <= 11) & (z < 0)
    ct[airway], pet[airway] = -1000, 0.1
    pet[np.sqrt((x - 4) ** 2 + (y - 8) ** 2 + (z + 30) ** 2) <= 15] = 10
    pet[np.sqrt((x - 40) ** 2 + (y - 5) ** 2 + (z + 50) ** 2) <= 11] = 8
    return ct.astype(np.int16), pet.astype(np.float32)


def tiny_label() -> sitk.Image:
    """A primary where ``tiny_pet`` is hot, and a node."""
    label = ball(CT_GRID, (20, 0, 0), 20).astype(np.uint8)
    label[ball(CT_GRID, (-30, 0, -40), 12)] = 2
    return CT_GRID.image(label)


def write_patient(root: Path, name: str, layout: str = "2025", label=...) -> None:
    """A patient of a data folder in one of its layouts; the label can be replaced or left out."""
    ct, pet = tiny_ct(), tiny_pet()
    label = tiny_label() if label is ... else label
    paths = {
        "2025": (f"Task 1/{name}/{name}__CT", f"Task 1/{name}/{name}__PT", f"Task 1/{name}/{name}"),
        "plain": (f"{name}/{name}__CT", f"{name}/{name}__PT", f"{name}/{name}"),
        "2022": (f"imagesTr/{name}__CT", f"imagesTr/{name}__PT", f"labelsTr/{name}"),
        "nnunet": (f"imagesTr/{name}_0000", f"imagesTr/{name}_0001", f"labelsTr/{name}"),
    }[layout]
    for path, image in zip(paths, (ct, pet, label)):
        file = root / f"{path}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        if image is not None:
            sitk.WriteImage(image, str(file))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes beyond so many bytes fail, of every library: what a full disk is to them."""
    resource = pytest.importorskip("resource", reason="limits of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_input(root: Path, ct=..., pet=..., ehr=EHR, suffix: str = ".mha") -> Path:
    """A grand-challenge input folder; images can be replaced or left out (None)."""
    for name, image in (("ct", ct), ("pet", pet)):
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
        if image is ...:
            image = tiny_ct() if name == "ct" else tiny_pet()
        if image is not None:
            sitk.WriteImage(image, str(root / "images" / name / f"uuid{suffix}"), True)
    if ehr is not None:
        text = ehr if isinstance(ehr, str) else json.dumps(ehr)
        (root / "ehr.json").write_text(text)
    return root


@pytest.fixture
def write_case(tmp_path: Path) -> Callable[..., Path]:
    """``write_input`` into a folder of that name."""
    return lambda *given, folder="input", **options: write_input(
        tmp_path / folder, *given, **options
    )


YEAR = 365.25  # days

# A coarse region (4 mm) and a small network: the whole pipeline in about a second.
COARSE = PreprocessingSettings(spacing_mm=4.0)
SMALL_NETWORK = {"channels": 8, "head_channels": 8, "window": 4}
FAST_PROGNOSIS = PrognosisSettings(
    members=2,
    steps=3,
    batch_size=8,
    image_spacing_mm=8.0,
    image_width=2,
    bags=3,
    min_concordance=0.5,
)
PATCH = (32, 32, 32)


def two_folds_of_two(root: Path) -> DataSettings:
    """Two folds of two patients each, who are written."""
    for i in range(4):
        write_patient(root, f"A-{i}", "plain")
    return DataSettings(root=str(root), folds=2, region="centre")


def short_training(**training) -> Settings:
    """Settings of a training of six steps, or as given."""
    defaults = {"patch_size": PATCH, "warmup_steps": 2, "checkpoint_every": 2, "steps": 6}
    return Settings(
        preprocessing=COARSE,
        network=NetworkSettings(options=SMALL_NETWORK),
        training=TrainingSettings(**(defaults | training)),
    )


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> list[Prepared]:
    """Three patients with a lesion of each class, preprocessed."""
    root = tmp_path_factory.mktemp("data")
    for i in range(3):
        write_patient(root, f"A-{i}", "plain")
    cache = Cache(root / "cache", COARSE, "centre")
    return [cache.get(p) for p in find_patients(root)]


def tensors_of(bundle: Bundle) -> dict[str, dict[str, torch.Tensor]]:
    """Every safetensors file of a bundle; to write it again with a part changed."""
    names = [name for name in bundle.manifest.files if name.endswith(".safetensors")]
    return {name: bundle.tensors(name) for name in names}


def nothing_found(shape: tuple[int, ...], maps: tuple[np.ndarray, ...] = ()) -> Segmentation:
    """A segmentation without a lesion, of an empty volume ``[z, y, x]`` at 4 mm."""
    raw = np.zeros((2, *shape), np.float32)
    region = Region(Grid(shape[::-1], (4.0, 4.0, 4.0)), "centre", 0.1)
    empty = np.zeros(shape, np.uint8)
    return Segmentation(Volume(region, raw, raw), np.zeros((3, *shape), np.float32), empty, maps)


def described_patients(count: int = 24, seed: int = 0, lesions: bool = True) -> list[Described]:
    """Patients as the survival model sees them; many lesion features share what drives the risk."""
    rng = np.random.default_rng(seed)
    shape = tuple(n // 2 for n in (78, 50, 50))
    maps = tuple(np.zeros((8 << i, 20 >> i, 16 >> i, 16 >> i), np.float32) for i in range(1, 5))
    names = describe(nothing_found((78, 50, 50), maps), 8.0).features.names
    patients = []
    for i in range(count):
        burden = rng.normal()
        values = rng.normal(size=len(names)).astype(np.float32)
        values[:200] += 2 * burden
        if not lesions:
            values[:] = np.nan
        record = ClinicalRecord({"Age": 60 + 8 * rng.normal(), "Gender": float(i % 2)})
        days = 1000 * np.exp(-burden + 0.1 * rng.normal())
        image = rng.normal(size=(4, *shape)).astype(np.float32)
        description = LesionDescription(image, LesionFeatures(names, values))
        outcome = Outcome(float(days), bool(rng.random() < 0.6 or i < 2))
        patients.append(Described(f"P{i:03d}", "ABC"[i % 3], description, record, outcome))
    return patients


def with_crops(patients: list[Described], effect: float) -> list[Described]:
    """With features of crops, of which one group holds the outcome times an effect."""
    rng = np.random.default_rng(5)
    names = tuple(f"crop_primary_{part}0_{i}" for part in ("mean", "upper") for i in range(6))
    described = []
    for p in patients:
        values = rng.normal(size=len(names)).astype(np.float32)
        values[6:] -= effect * np.log(p.outcome.days / 1000)
        crops = LesionFeatures(names, values)
        described.append(replace(p, description=replace(p.description, crops=crops)))
    return described


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """``write_tiny_bundle``'s."""
    pytest.importorskip("sksurv", reason="the survival part is fitted with the extra 'baselines'")
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


def write_tiny_bundle(folder: Path) -> Path:
    """A bundle of both tasks with untrained networks, on the coarse region."""
    torch.manual_seed(0)
    network = build_network("hmvnet", SMALL_NETWORK)
    with torch.no_grad():  # lean to the background, so that masks are sparse
        network.scale_heads[0][-1].bias += torch.tensor([1.0, 0.0, 0.0])
    patients = described_patients()
    members = fit_members(make_fabric(folder / "run"), patients, FAST_PROGNOSIS, folder / "run")
    survival = {f"prognosis{i}.safetensors": m.tensors() for i, m in enumerate(members)}
    prognosis = PrognosisPart(
        settings=members[0].settings() | {"image_spacing_mm": 8.0},
        clinical=[m.encoder.state() for m in members],
        lesion_features=list(patients[0].description.features.names),
        risk_quantiles=[-1.0, 0.0, 1.0],
        expected_days=[[-1.0, 2000.0], [1.0, 500.0]],
        files=list(survival),
    )
    segmentation = SegmentationPart(
        network="hmvnet",
        options=SMALL_NETWORK,
        patch_size=(32, 32, 32),
        files=["fold0.safetensors"],
        seen=[[]],
    )
    manifest = Manifest(
        name="tiny",
        preprocessing=COARSE,
        postprocessing=PostprocessingSettings(),
        segmentation=segmentation,
        prognosis=prognosis,
    )
    files = {"fold0.safetensors": network.state_dict()} | survival
    return write_bundle(folder / "tiny", manifest, files)


@contextmanager
def no_memory_for_one_pass() -> Iterator[None]:
    """Networks can only be run in windows."""
    run = TorchForward._run

    def short(self, volume, way, axes, wants_maps):
        if not way.windows:
            raise MemoryError
        return run(self, volume, way, axes, wants_maps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchForward, "_run", short)
        yield


def run_cohort(
    sources, pipeline: Pipeline, output: Path, *, existing="refuse", strict=False, **order
) -> CohortResult:
    """One patient after the other in this process."""
    return predict_cohort(
        sources, InTurn(pipeline), Order(output, **order), existing=existing, strict=strict
    )


def follow_up(seed: int = 0, n: int = 150) -> tuple[np.ndarray, Outcomes]:
    """Features ``[n, 3]``, the first of which raises the risk, and follow-up of up to ten years."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    failure = rng.exponential(4 * YEAR * np.exp(-x[:, 0]))
    censoring = rng.uniform(1, 10, size=n) * YEAR
    return x, Outcomes(np.ceil(np.minimum(failure, censoring)), failure <= censoring)


def case_score(
    dice: float = 0.5,
    inter: float = 1.0,
    total: float = 2.0,
    tp: int = 1,
    fp: int = 0,
    fn: int = 0,
    hd: float = 1.0,
    name: str = "",
) -> CaseScore:
    """A score made of its sums: GTVp of volume 100 + 100 with the Dice asked for."""
    return CaseScore(
        gtvp=LabelScore(dice * 100, 100, 100, hd),
        gtvn=LabelScore(inter, total / 2, total / 2, hd),
        nodes=LesionCount(tp, fp, fn),
        patient_id=name,
    )
