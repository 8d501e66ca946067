"""Phantoms of all stages; and those without, which stay what they were."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from hmvnet.phantom import (
    PatientPlan,
    PhantomSettings,
    cohort,
    draw_cohort,
    make_phantom,
    render,
    write_cohort,
)

STAGED = PhantomSettings(compact=True, stages=True)


@pytest.fixture(scope="module")
def plans() -> list[PatientPlan]:
    return list(draw_cohort(40, 13, STAGED))


def array(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


@pytest.mark.parametrize(
    ("seed", "mask", "said", "hu", "suv"),
    [
        (1, "41f7f5b5a1bfed79", "eb55c324dc709108", -6013325526, 832931.261),
        (2, "dc36276fb8252a37", "6e15083eb45c486c", -7127484032, 453290.738),
        (3, "721f4b9e2b8cb443", "9cd1900dead0911e", -5947362221, 741920.870),
        (4, "3f9ad95bf804315e", "f74c32b1156f54aa", -12497992418, 333549.807),
        (5, "4146751d7158c6d9", "55bd4fcbd5f40aa3", -7793136471, 223144.343),
        (6, "b130ed339634390d", "a21d93aa546e6b7c", -4668988689, 195789.523),
    ],
)
def test_phantoms_without_stages_are_those_of_before(
    seed: int, mask: str, said: str, hu: float, suv: float
) -> None:
    made = make_phantom(seed)
    assert hashlib.sha256(array(made.mask).tobytes()).hexdigest()[:16] == mask
    text = json.dumps([made.record, made.truth, made.rfs_days, made.relapse], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == said
    # sums, for the last bit of a voxel may be another on another processor
    assert float(array(made.ct).sum(dtype=np.int64)) == pytest.approx(hu, rel=1e-6)
    assert float(array(made.pet).sum(dtype=np.float64)) == pytest.approx(suv, rel=1e-5)


def test_all_stages_occur_and_truth_follows_the_rule(plans: list[PatientPlan]) -> None:
    t, n = Counter(p.stages.t for p in plans), Counter(p.stages.n for p in plans)
    assert set(t) >= {"T1", "T2", "T3", "T4"} and set(n) == {"N0", "N1", "N2", "N3"}
    for plan in plans:
        truth = plan.stages
        assert (truth.t == "T4") == bool(truth.invades)
        assert (truth.t == "T0") == (truth.primary_mm == 0)
        assert (truth.n == "N3") == (max(truth.nodes_mm, default=0) > 60)
        assert (truth.n == "N0") == (not truth.nodes_mm)
    smallest = min(p.stages.primary_mm for p in plans if p.stages.t == "T4")
    assert smallest < 40  # T4 is no matter of size


def test_an_observer_is_mostly_right_and_not_always(plans: list[PatientPlan]) -> None:
    for truth, seen in (("t", "observed_t"), ("n", "observed_n")):
        pairs = [(getattr(p.stages, truth), getattr(p.stages, seen)) for p in plans]
        known = [a == b for a, b in pairs if b is not None]
        assert 0.7 < np.mean(known) < 1


def test_who_invades_erodes_and_who_does_not_leaves_bone(plans: list[PatientPlan]) -> None:
    """The same patient with and without: bone under the tumour is gone, or still there."""
    plan = next(p for p in plans if p.stages.invades == "mandible")
    primary = plan.lesions[0]
    eroded = render(plan)
    spared = render(replace(plan, lesions=(replace(primary, spared=1.0), *plan.lesions[1:])))
    inside = (array(eroded.mask) == 1) & (array(spared.mask) == 0)
    assert inside.sum() > 20  # spared bone is no tumour
    left, gone = array(spared.ct)[inside].mean(), array(eroded.ct)[inside].mean()
    assert left > gone + 100  # HU; what is left of an invaded mandible is up to 40 %


def test_stages_are_in_the_tables_of_both_layouts(tmp_path: Path, monkeypatch) -> None:
    def coarse(plan: PatientPlan):
        ct = plan.scan.ct
        size, spacing = tuple(n // 4 for n in ct.size), tuple(4 * s for s in ct.spacing)
        return render(
            replace(plan, scan=replace(plan.scan, ct=replace(ct, size=size, spacing=spacing)))
        )

    monkeypatch.setattr(cohort, "render", coarse)
    write_cohort(tmp_path / "2025", 2, 13, STAGED)
    write_cohort(tmp_path / "2026", 2, 13, STAGED, layout="2026")
    tables = [
        pd.read_csv(tmp_path / "2025" / "Task 2" / "HECKTOR_2025_Training_Task_2.csv"),
        pd.read_csv(tmp_path / "2026" / "HECKTOR_2026_Training.csv"),
    ]
    assert [c for c in tables[0] if c not in tables[1]] == ["M-stage"]
    for table in tables:
        assert list(table["T-stage"]) == [p.stages.observed_t for p in draw_cohort(2, 13, STAGED)]
        assert {"RFS", "Relapse", "N-stage"} <= set(table.columns)
    name = tables[1]["PatientID"][0]
    assert {p.name for p in (tmp_path / "2026" / name).iterdir()} == {
        f"{name}__CT.nii.gz",
        f"{name}__PT.nii.gz",
        f"{name}.nii.gz",
    }
    truth = json.loads((tmp_path / "2026" / "truth.json").read_text())
    assert truth[name]["stages"]["t"] in ("T0", "T1", "T2", "T3", "T4")
    assert "**Observer**" in (tmp_path / "2026" / "SYNTHETIC.md").read_text()
    with pytest.raises(ValueError, match="layout: found '2027'"):
        write_cohort(tmp_path / "x", 1, 1, STAGED, layout="2027")
    with pytest.raises(ValueError, match="found another cohort"):
        write_cohort(tmp_path / "2026", 2, 13, STAGED)


def test_a_cohort_of_before_goes_on(tmp_path: Path, monkeypatch) -> None:
    """Its marker says nothing of stages and layouts."""
    marker = {"synthetic": True, "version": cohort.VERSION, "seed": 3}
    settings = {"whole_body": False, "center": None, "compact": True}
    (tmp_path / "cohort.json").write_text(json.dumps(marker | {"settings": settings}))
    monkeypatch.setattr(cohort, "_write_all", lambda *_: iter(()))
    (tmp_path / "Task 1").mkdir()
    (tmp_path / "Task 2").mkdir()
    assert write_cohort(tmp_path, 1, 3, PhantomSettings(compact=True)).patients == 1
