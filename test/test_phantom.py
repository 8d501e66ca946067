"""Phantoms: known truth, HECKTOR's layout, the same patient every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import ROOT
from sksurv.metrics import concordance_index_censored

from hmvnet import phantom
from hmvnet.case import SYNTHETIC
from hmvnet.phantom import (
    LESION_TERMS,
    TABLE_TERMS,
    PhantomSettings,
    WeibullCox,
    best_c_index,
    cohort,
    draw_cohort,
    draw_patient,
    make_phantom,
    render,
    write_cohort,
)
from hmvnet.phantom.patient import MISSING_SHARE
from hmvnet.phantom.shapes import Blob, Capsule, Ellipsoid, Lattice, label, paint
from hmvnet.reading.challenge import read_case
from hmvnet.reading.tables import read_outcome_table

COMPACT = PhantomSettings(compact=True)


@pytest.fixture(scope="module")
def plans() -> list[phantom.PatientPlan]:
    return list(draw_cohort(1000, seed=11))


@pytest.fixture(scope="module")
def made() -> phantom.Phantom:
    return make_phantom(2, COMPACT)


def array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def coarse(plan: phantom.PatientPlan) -> phantom.PatientPlan:
    """The same patient on few, large CT voxels: for tests that write many cases."""
    ct = plan.scan.ct
    size = tuple(n // 4 for n in ct.size)
    small = replace(ct, size=size, spacing=tuple(4 * s for s in ct.spacing))
    return replace(plan, scan=replace(plan.scan, ct=small))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "render", lambda plan: render(coarse(plan)))


# --- shapes


def test_paint_mixes_the_voxels_that_a_surface_cuts() -> None:
    lattice = Lattice((40, 40, 40), np.eye(3), np.full(3, -20.0))
    volume = np.zeros(lattice.shape, dtype=np.float32)
    paint(volume, lattice, Ellipsoid((0, 0, 0), (10, 10, 10)), 100.0)
    assert volume.sum() / 100.0 == pytest.approx(4 / 3 * np.pi * 1000, rel=0.01)
    assert ((volume > 5) & (volume < 95)).any()


def test_rotated_and_upright_lattices_hold_the_same_shape() -> None:
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    shape = Capsule((-8, 0, 0), (8, 4, 3), 4, 6)
    counts = []
    for matrix in (np.eye(3), turn):
        mask = np.zeros((60, 60, 60), dtype=np.uint8)
        label(mask, Lattice(mask.shape, matrix, matrix @ np.full(3, -30.0)), shape, 1)
        counts.append(int(mask.sum()))
    assert counts[0] == pytest.approx(counts[1], rel=0.01)


def test_unit_volume_of_a_round_blob_is_that_of_a_sphere() -> None:
    assert Blob((0, 0, 0), (3, 4, 5)).unit_volume() == pytest.approx(4 / 3 * np.pi, rel=0.01)


def test_shape_outside_the_lattice_paints_nothing() -> None:
    volume = np.zeros((4, 4, 4), dtype=np.float32)
    paint(volume, Lattice(volume.shape, np.eye(3), np.zeros(3)), Ellipsoid((90, 0, 0), (3,) * 3), 1)
    assert not volume.any()


# --- one patient


def test_same_seed_same_phantom(made: phantom.Phantom) -> None:
    again = make_phantom(2, COMPACT)
    for one, two in ((made.ct, again.ct), (made.pet, again.pet), (made.mask, again.mask)):
        assert np.array_equal(array(one), array(two))
        assert one.GetOrigin() == two.GetOrigin()
    assert (made.record, made.truth, made.rfs_days) == (again.record, again.truth, again.rfs_days)


def test_other_seed_other_patient() -> None:
    one, two = draw_patient(2), draw_patient(3)
    assert one.lesions != two.lesions
    assert one.scan.ct.origin != two.scan.ct.origin


def test_compact_changes_voxels_but_not_the_patient(made: phantom.Phantom) -> None:
    assert draw_patient(2).lesions == draw_patient(2, COMPACT).lesions
    ct = array(made.ct)
    assert (ct == -1000).mean() > 0.3
    assert (ct % 4 == 0).mean() > 0.99
    pet = array(made.pet) * 256
    assert np.array_equal(pet, np.rint(pet))


def test_mask_lies_on_the_ct_grid_and_pet_overlaps(made: phantom.Phantom) -> None:
    assert made.mask.GetSize() == made.ct.GetSize()
    assert made.mask.GetSpacing() == made.ct.GetSpacing()
    assert made.mask.GetOrigin() == made.ct.GetOrigin()
    assert made.mask.GetDirection() == made.ct.GetDirection()
    assert made.ct.GetPixelID() == sitk.sitkInt16
    assert made.pet.GetPixelID() == sitk.sitkFloat32
    assert made.mask.GetPixelID() == sitk.sitkUInt8
    assert made.pet.GetSize() != made.ct.GetSize()
    assert set(np.unique(array(made.mask))) <= {0, 1, 2}
    middle = made.ct.TransformContinuousIndexToPhysicalPoint([n / 2 for n in made.ct.GetSize()])
    index = made.pet.TransformPhysicalPointToContinuousIndex(middle)
    assert all(0 < i < n for i, n in zip(index, made.pet.GetSize(), strict=True))


@pytest.mark.parametrize("seed", [5, 8])
def test_mask_holds_the_volumes_that_the_truth_states(seed: int) -> None:
    made = make_phantom(seed)
    voxel_ml = np.prod(made.mask.GetSpacing()) / 1000
    mask = array(made.mask)
    for value, name in ((1, "GTVp"), (2, "GTVn")):
        stated = sum(x["volume_ml"] for x in made.truth["lesions"] if x["label"] == name)
        assert (mask == value).sum() * voxel_ml == pytest.approx(stated, rel=0.06, abs=0.1)


def test_lesions_are_hot_where_the_truth_says_so() -> None:
    """Through blur, noise and misalignment a large lesion still shows its uptake in the PET."""
    seen = 0
    for seed in (0, 3, 5):
        plan = draw_patient(seed)
        big = [x for x in plan.lesions if x.volume_ml > 4 and x.suv > 5]
        if not big:
            continue
        made = render(plan)
        pet = array(sitk.Resample(made.pet, made.ct, sitk.Transform(), sitk.sitkLinear, 0.0))
        for lesion in big:
            inside = array(made.mask) == lesion.label
            assert np.percentile(pet[inside], 95) > 0.5 * lesion.suv
            seen += 1
    assert seen >= 3


def test_whole_body_has_a_bladder_hotter_than_any_lesion() -> None:
    plan = draw_patient(1, PhantomSettings(whole_body=True, center="MDA"))
    small = coarse(plan)
    made = render(small)
    height = made.ct.GetSize()[2] * made.ct.GetSpacing()[2]
    assert height > 900
    pet = array(made.pet)
    assert pet[: len(pet) // 3].max() > 20
    assert (array(made.mask) > 0).any()
    assert made.patient_id.startswith("SYN-MDA-")


def test_unknown_center_is_refused() -> None:
    with pytest.raises(ValueError, match="center: found 'XYZ'"):
        PhantomSettings(center="XYZ")


# --- what a cohort is made of


def test_lesions_are_as_many_as_the_challenge_allows(plans: list[phantom.PatientPlan]) -> None:
    primaries = np.array([sum(x.label == 1 for x in plan.lesions) for plan in plans])
    nodes = np.array([sum(x.label == 2 for x in plan.lesions) for plan in plans])
    assert set(primaries) == {0, 1} and primaries.mean() > 0.9
    assert nodes.min() == 0 and nodes.max() == 6
    volumes = [x.volume_ml for plan in plans for x in plan.lesions if x.label == 1]
    assert 6 < np.median(volumes) < 10 and min(volumes) >= 1 and max(volumes) <= 60


def test_hard_lesions_are_a_minority(plans: list[phantom.PatientPlan]) -> None:
    lesions = [x for plan in plans for x in plan.lesions]
    dim = np.mean([x.suv < 3 for x in lesions])
    necrotic = np.mean([x.core is not None for x in lesions])
    assert 0.04 < dim < 0.15
    assert 0.05 < necrotic < 0.3


def test_every_field_is_missing_in_some_and_known_in_most(
    plans: list[phantom.PatientPlan],
) -> None:
    table = pd.DataFrame([dict(plan.record) for plan in plans])
    missing = table.isna().mean()
    for name, chance in MISSING_SHARE.items():
        assert missing[name] == pytest.approx(chance, abs=0.06), name
        assert missing[name] > 0, name
    assert set(table["M-stage"].dropna()) == {"M0", "M1", "Mx"}
    assert table["Age"].between(18, 100).sum() == table["Age"].notna().sum()


def test_best_c_index_is_in_its_stated_range(plans: list[phantom.PatientPlan]) -> None:
    days = np.array([plan.rfs_days for plan in plans])
    relapse = np.array([plan.relapse for plan in plans])
    model = WeibullCox()

    def reach(names: tuple[str, ...] | None) -> float:
        risk = [model.linear_predictor(plan.covariates, names) for plan in plans]
        return best_c_index(risk, days, relapse)

    assert 0.35 <= relapse.mean() <= 0.45
    assert 0.77 <= reach(None) <= 0.83
    assert 0.71 <= reach(LESION_TERMS) <= 0.78
    assert 0.61 <= reach(TABLE_TERMS) <= 0.68
    eta = np.array([plan.linear_predictor for plan in plans])
    assert best_c_index(eta, days, relapse) == pytest.approx(
        concordance_index_censored(relapse.astype(bool), days, eta)[0], abs=1e-12
    )


def test_times_follow_the_stated_weibull_model() -> None:
    """Without censoring, the mean of (t / s)^k exp(eta) is that of a unit exponential."""
    model = WeibullCox(follow_up_days=(1e9, 1e9), loss_mean_days=1e12)
    rng = np.random.default_rng(0)
    days, relapse = np.array([model.draw(0.7, rng) for _ in range(4000)]).T
    assert relapse.all()
    assert ((days / model.scale_days) ** model.shape * np.exp(0.7)).mean() == pytest.approx(
        1.0, abs=0.05
    )


def test_concordance_needs_a_relapse() -> None:
    with pytest.raises(ValueError, match="one relapse, found 2 patients with 0 relapses"):
        best_c_index([1.0, 2.0], [100, 200], [0, 0])


# --- a cohort on disk


@pytest.mark.usefixtures("quick")
def test_cohort_has_the_hecktor_layout(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = write_cohort(tmp_path, 3, 7, COMPACT, on_progress=lambda *n: seen.append(n))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    first = pd.read_csv(tmp_path / "Task 1" / "HECKTOR_2025_Training_Task_1.csv")
    second = pd.read_csv(tmp_path / "Task 2" / "HECKTOR_2025_Training_Task_2.csv")
    assert list(first.columns[:2]) == ["PatientID", "CenterID"]
    assert [c for c in second.columns if c not in first.columns] == ["Relapse", "RFS"]
    truth = json.loads((tmp_path / "truth.json").read_text())
    for name in first["PatientID"]:
        for task in ("Task 1", "Task 2"):
            folder = tmp_path / task / name
            files = {path.name for path in folder.iterdir()}
            assert files == {f"{name}__CT.nii.gz", f"{name}__PT.nii.gz", f"{name}.nii.gz"}
        assert truth[name]["synthetic"] is True
    note = (tmp_path / "SYNTHETIC.md").read_text()
    assert "not patients" in note and "seed 7" in note and "C-index" in note
    assert "SYNTHETIC" in str(summary)
    few = replace(summary, best_c_index=float("nan"))  # nobody to compare with
    assert "nan" not in str(few) and "too few to say which C-index" in str(few)


def test_records_alone_are_those_of_the_cohort_with_images(tmp_path: Path) -> None:
    summary = write_cohort(tmp_path, 30, 7, layout="records")
    table = pd.read_csv(tmp_path / "records.csv", dtype={"PatientID": str})
    plans = list(draw_cohort(30, 7))
    assert list(table["PatientID"]) == [plan.patient_id for plan in plans]
    assert list(table["RFS"]) == [int(plan.rfs_days) for plan in plans]
    assert [one for one in tmp_path.iterdir() if one.is_dir()] == []
    read = read_outcome_table([tmp_path / "records.csv"])
    assert [o.event for o in read.outcomes] == [bool(plan.relapse) for plan in plans]
    assert summary.patients == 30
    with pytest.raises(ValueError, match="no images, and DICOM"):
        write_cohort(tmp_path / "x", 1, 7, layout="records", dicom=True)


@pytest.mark.usefixtures("quick")
def test_written_images_are_the_rendered_ones(tmp_path: Path) -> None:
    write_cohort(tmp_path, 1, 3, COMPACT)
    plan = next(draw_cohort(1, 3, COMPACT))
    made, name = render(coarse(plan)), plan.patient_id
    for image, end in ((made.ct, "__CT"), (made.pet, "__PT"), (made.mask, "")):
        read = sitk.ReadImage(str(tmp_path / "Task 1" / name / f"{name}{end}.nii.gz"))
        assert np.array_equal(array(read), array(image))
        assert np.allclose(read.GetOrigin(), image.GetOrigin(), atol=1e-3)
        assert np.allclose(read.GetSpacing(), image.GetSpacing(), atol=1e-5)
        assert "SYNTHETIC" in read.GetMetaData("descrip")


def test_who_reads_a_phantom_is_told() -> None:
    for name in ("phantom-1", "phantom-2"):
        case = read_case(ROOT / "test" / "cases" / name / "input")
        assert sum(SYNTHETIC in note for note in case.notes) == 2  # CT and PET
    case = read_case(ROOT / "test" / "cases" / "real-sarcoma" / "input")
    assert not any(SYNTHETIC in note for note in case.notes)


def test_a_patient_depends_on_seed_and_index_only() -> None:
    few, many = list(draw_cohort(3, 5)), list(draw_cohort(6, 5))
    assert few == many[:3]


@pytest.mark.slow
def test_two_jobs_write_what_one_job_writes(tmp_path: Path) -> None:
    for jobs in (1, 2):
        write_cohort(tmp_path / str(jobs), 2, 5, COMPACT, jobs=jobs)
    ones = sorted(p for p in (tmp_path / "1").rglob("*") if p.is_file())
    assert len(ones) == 2 * 6 + 6
    for path in ones:
        other = tmp_path / "2" / path.relative_to(tmp_path / "1")
        assert path.read_bytes() == other.read_bytes() or path.name == "SYNTHETIC.md"


@pytest.mark.usefixtures("quick")
def test_interrupted_cohort_leaves_no_half_patient_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = sitk.WriteImage, []

    def power_cut(*args: object) -> None:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cohort.sitk, "WriteImage", power_cut)
        with pytest.raises(KeyboardInterrupt):
            write_cohort(tmp_path, 3, 7, COMPACT)
    for task in ("Task 1", "Task 2"):
        whole = [p for p in (tmp_path / task).iterdir() if not p.name.startswith(".")]
        assert [len(list(p.iterdir())) for p in whole] == [3]
    assert not (tmp_path / "SYNTHETIC.md").exists()
    write_cohort(tmp_path, 3, 7, COMPACT)
    left = [p for p in tmp_path.rglob("*.part")] + [p for p in tmp_path.rglob(".*")]
    assert left == []
    assert len([p for p in (tmp_path / "Task 2").iterdir() if p.is_dir()]) == 3


@pytest.mark.usefixtures("quick")
def test_copies_where_hard_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(cohort.os, "link", no_links)
    write_cohort(tmp_path, 1, 3, COMPACT)
    (copy,) = (tmp_path / "Task 2").glob("*/*__CT.nii.gz")
    assert copy.stat().st_nlink == 1 and copy.stat().st_size > 0


@pytest.mark.usefixtures("quick")
def test_two_cohorts_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path, 1, 3, COMPACT)
    with pytest.raises(ValueError, match=r"cohort, of seed 3 in the place of 4; expected"):
        write_cohort(tmp_path, 1, 4, COMPACT)
    with pytest.raises(ValueError, match=r"cohort, of stages False in the place of True; exp"):
        write_cohort(tmp_path, 1, 3, replace(COMPACT, stages=True))
    with pytest.raises(ValueError, match="found 0 and 1, expected 1 or more"):
        write_cohort(tmp_path, 0, 3, COMPACT)


@pytest.mark.parametrize("place", ["HECKTOR.csv", "Task 2/HECKTOR_2025_Training_Task_2.csv"])
def test_a_folder_with_tables_of_others_is_no_place_for_phantoms(tmp_path, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("PatientID,Relapse,RFS\nREAL-1,1,55\n")
    with pytest.raises(ValueError, match="of no cohort of phantoms"):
        write_cohort(tmp_path, 1, 3)
    assert "REAL-1" in path.read_text() and not (tmp_path / "cohort.json").exists()
