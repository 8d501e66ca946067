"""``hmvnet eval`` on a folder of 2026: all figures of both years in one pass."""

import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_label, tiny_pet
from rich.console import Console

from hmvnet.bundle import Bundle, StagingPart, fingerprint, load_bundle
from hmvnet.config import Settings
from hmvnet.experiments.evaluate_challenge import _seen, evaluate_challenge


@pytest.fixture
def folder(tmp_path):
    """Four patients of two centres in the layout of 2026, without an M-stage."""
    root = tmp_path / "data"
    rows = []
    for i in range(4):
        name = f"P-{i:03d}"
        place = root / name
        place.mkdir(parents=True)
        for image, end in ((tiny_ct(), "__CT"), (tiny_pet(), "__PT"), (tiny_label(), "")):
            sitk.WriteImage(image, str(place / f"{name}{end}.nii.gz"))
        rows.append(
            {
                "PatientID": name,
                "CenterID": i % 2 + 1,
                "Age": 55 + i,
                "T-stage": f"T{i % 4 + 1}",
                "N-stage": "N2b" if i else "N0",
                "RFS": 100 * (i + 1),
                "Relapse": int(i < 3),
            }
        )
    pd.DataFrame(rows).to_csv(root / "HECKTOR_2026_Training.csv", index=False)
    return root


def test_all_figures_of_both_years(folder, tiny_bundle, tmp_path):
    console = Console(width=80, record=True)
    settings = Settings.model_validate({"data": {"root": str(folder)}})
    found = evaluate_challenge(settings, tiny_bundle, tmp_path / "run", 0, console)
    assert {"gtvp_mean_dice", "gtvn_mean_dice", "n_balanced_accuracy", "c_index", "total"} <= set(
        found
    )
    said = console.export_text()
    assert "HECKTOR 2025" in said and "HECKTOR 2026" in said and "total" in said
    assert "N balanced accuracy" in said and "by centre" in said and "\u2026" not in said
    figures = pd.read_csv(tmp_path / "run" / "figures.csv")
    assert set(figures["centre"].astype(str)) == {"all", "1", "2"}
    patients = pd.read_csv(tmp_path / "run" / "patients.csv")
    assert list(patients["N true"]) == ["N0", "N2", "N2", "N2"] and patients["risk"].notna().all()
    assert (tmp_path / "run" / "figures.md").is_file()


def test_patients_that_a_part_was_fitted_to_are_said(tiny_bundle, tmp_path):
    """Of the staging models too: their figures on those say nothing about new patients."""
    bundle = load_bundle(tiny_bundle)
    part = StagingPart(
        t_features=["t"], n_features=["n"], seen=[fingerprint("P-001")], file="s.safetensors"
    )
    known = bundle.manifest.model_copy(update={"staging": part})
    (said,) = _seen(Bundle(bundle.folder, known), ["P-000", "P-001"])
    assert said.startswith("the staging models were fitted to 1 of these 2 patients")


def test_nothing_to_compare_with(folder, tiny_bundle, tmp_path):
    for label in folder.glob("*/P-???.nii.gz"):
        label.unlink()
    (folder / "HECKTOR_2026_Training.csv").unlink()
    settings = Settings.model_validate({"data": {"root": str(folder)}})
    with pytest.raises(ValueError, match="no patient with a label, a stage or an outcome"):
        evaluate_challenge(settings, tiny_bundle, tmp_path / "run", 2, Console())
