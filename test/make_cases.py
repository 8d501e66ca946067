"""Makes the inputs of ``test/cases``: phantoms, and one real patient from a STS folder.

Of the cases of 2026 one is a phantom of 2025 as that year's platform gives it, and one a CT that
broke off on its way.

    python test/make_cases.py --sts DIR      (DIR holds STS_007/STS_007__CT.nii.gz and so on)

The expected outputs are what ``process.py`` wrote for them with the case's own ``settings``;
``--expected CASE...`` renews those. ``--scores`` lists the Dice of every patient of the STS folder
that the shipped weights did not see, and names the one nearest their mean: the real case.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hmvnet.bundle import DEFAULT_BUNDLE, load_bundle
from hmvnet.experiments.evaluate import score_patient
from hmvnet.phantom import PhantomSettings, make_phantom
from hmvnet.pipeline import Pipeline
from hmvnet.reading.folder import find_patients
from hmvnet.reading.images import read_image, write_image
from hmvnet.segmentation.ensemble import pick_device
from hmvnet.settings_file import load_settings

CASES = Path(__file__).parent / "cases"
WEIGHTS = Path(__file__).parents[1] / "weights" / DEFAULT_BUNDLE
PHANTOMS = {"phantom-1": (7001, "MDA"), "phantom-2": (7002, "USZ")}
OF_2026, DAMAGED = "phantom-2026", "damaged-2026"
TWIN = "phantom-2"  # whose images they have
CT_BYTES = 100_000  # that are left of the damaged one
SOCKETS = {
    "ct-image": "images/ct",
    "pet-image": "images/pet",
    "electronic-health-record": "ehr.json",
}
REAL = ("real-sarcoma", "STS_007")
OF_REAL = ("data.region=centre", "postprocessing.one_primary=false")


def write_input(case: Path, ct, pet, record: dict) -> None:
    """One grand-challenge input folder."""
    for name, image in (("ct", ct), ("pet", pet)):
        folder = case / "input" / "images" / name
        shutil.rmtree(folder, ignore_errors=True)
        write_image(image, folder / f"{case.name}.mha")
    (case / "input" / "ehr.json").write_text(json.dumps(record, indent=2) + "\n")


def write_cases_of_2026() -> None:
    """Their input folders, with images of another case; the record ends with a comma, as theirs."""
    images = CASES / TWIN / "input" / "images"
    record = json.loads((CASES / TWIN / "input" / "ehr.json").read_text())
    lines = [f'    "{k}": {json.dumps(v)},' for k, v in record.items() if k != "M-stage"]
    entries = [
        {"socket": {"slug": slug, "relative_path": place}} for slug, place in SOCKETS.items()
    ]
    for name in (OF_2026, DAMAGED):
        folder = CASES / name / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "ehr.json").write_text("\n".join(["{", *lines, "}"]) + "\n")
        (folder / "inputs.json").write_text(json.dumps(entries, indent=2) + "\n")
    (CASES / OF_2026 / "input" / "images").symlink_to(f"../../{TWIN}/input/images")
    truth = CASES / OF_2026 / "truth.mha"
    truth.unlink(missing_ok=True)
    truth.symlink_to(f"../{TWIN}/truth.mha")
    shutil.copy(CASES / TWIN / "least_dice", CASES / OF_2026)
    damaged = CASES / DAMAGED / "input" / "images"
    (damaged / "ct").mkdir(parents=True)
    (damaged / "pet").symlink_to(f"../../../{TWIN}/input/images/pet")
    whole = next((images / "ct").iterdir()).read_bytes()
    (damaged / "ct" / f"{DAMAGED}.mha").write_bytes(whole[:CT_BYTES])
    (CASES / DAMAGED / "settings").write_text("--on-error answer\n")


def settings_of(case: Path) -> list[str]:
    """The case's own command line arguments for ``process.py``."""
    path = case / "settings"
    return path.read_text().split() if path.is_file() else []


def write_expected(case: Path) -> None:
    """Run the shipped weights and keep what they say."""
    with tempfile.TemporaryDirectory() as folder:
        # Cases share images by links, which may not lead out of an input folder.
        inputs, scratch = Path(folder) / "input", Path(folder) / "output"
        shutil.copytree(case / "input", inputs)
        command = [sys.executable, str(CASES.parents[1] / "process.py"), "--device", "cpu"]
        command += ["--input", str(inputs), "--output", str(scratch)]
        command += settings_of(case)
        subprocess.run(command, check=True)
        shutil.rmtree(case / "expected", ignore_errors=True)
        shutil.copytree(scratch, case / "expected")


def print_scores(sts: Path) -> None:
    """Dice of the patients that the shipped weights did not see, and who is nearest their mean."""
    settings = load_settings(None, OF_REAL)
    bundle, _ = load_bundle(WEIGHTS).adjusted(settings)
    patients = find_patients(sts)
    seen = set(bundle.seen_among(p.patient_id for p in patients))
    pipeline = Pipeline(bundle, pick_device("cpu"), settings.inference, needs_risk=False)
    dice = {}
    for patient in patients:
        if patient.patient_id not in seen:
            score, _ = score_patient(pipeline, patient)
            dice[patient.patient_id] = score.gtvp.dice
            print(f"{patient.patient_id} {score.gtvp.dice:.4f}", flush=True)
    mean = sum(dice.values()) / len(dice)
    nearest = min(dice, key=lambda name: abs(dice[name] - mean))
    print(f"mean {mean:.4f}, nearest {nearest}")


def main() -> None:
    """Inputs, outputs or scores, as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sts", type=Path, help="folder of the STS patients")
    parser.add_argument("--of-2026", action="store_true", help="the inputs of 2026 alone")
    parser.add_argument("--scores", action="store_true", help="score those of --sts; write nothing")
    parser.add_argument(
        "--expected", nargs="+", default=(), metavar="CASE", help="renew its expected outputs"
    )
    options = parser.parse_args()
    if options.scores:
        print_scores(options.sts)
    elif options.sts:
        for name, (seed, center) in PHANTOMS.items():
            phantom = make_phantom(seed, PhantomSettings(center=center, compact=True))
            write_input(CASES / name, phantom.ct, phantom.pet, phantom.record)
            write_image(phantom.mask, CASES / name / "truth.mha")
        name, patient = REAL
        files = (options.sts / patient / f"{patient}__{kind}.nii.gz" for kind in ("CT", "PT"))
        ct, pet = (read_image(path)[0] for path in files)
        write_input(CASES / name, ct, pet, {"M-stage": None})
        words = " ".join(["--task 1", *(f"--set {setting}" for setting in OF_REAL)])
        (CASES / name / "settings").write_text(words + "\n")
        truth, _ = read_image(options.sts / patient / f"{patient}.nii.gz")
        write_image(truth, CASES / name / "truth.mha")
    if options.sts or options.of_2026:
        write_cases_of_2026()
    for name in options.expected:
        write_expected(CASES / name)


if __name__ == "__main__":
    main()
