"""Makes the inputs of ``test/cases``: two phantoms, and one real patient from a STS folder.

    python test/make_cases.py --sts DIR      (DIR holds STS_003/STS_003__CT.nii.gz and so on)

The expected outputs are what ``process.py`` wrote for them; ``--expected`` renews those.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hmvnet.phantom import PhantomSettings, make_phantom
from hmvnet.reading.images import read_image, write_image

CASES = Path(__file__).parent / "cases"
PHANTOMS = {"phantom-1": (7001, "MDA"), "phantom-2": (7002, "USZ")}
REAL = ("real-sarcoma", "STS_003")
MASK = "images/tumor-lymph-node-segmentation/output.mha"


def write_input(case: Path, ct, pet, record: dict) -> None:
    """One grand-challenge input folder."""
    for name, image in (("ct", ct), ("pet", pet)):
        folder = case / "input" / "images" / name
        shutil.rmtree(folder, ignore_errors=True)
        write_image(image, folder / f"{case.name}.mha")
    (case / "input" / "ehr.json").write_text(json.dumps(record, indent=2) + "\n")


def write_expected(case: Path) -> None:
    """Run the shipped weights and keep what they say."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, str(CASES.parents[1] / "process.py"), "--device", "cpu"]
        command += ["--input", str(case / "input"), "--output", scratch]
        subprocess.run(command, check=True)
        shutil.rmtree(case / "expected", ignore_errors=True)
        (case / "expected" / MASK).parent.mkdir(parents=True)
        shutil.copy(Path(scratch) / MASK, case / "expected" / MASK)
        shutil.copy(Path(scratch) / "rfs.json", case / "expected" / "rfs.json")


def main() -> None:
    """Inputs, then (with ``--expected``) outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sts", type=Path, help="folder of the STS patients")
    parser.add_argument("--expected", action="store_true", help="renew the expected outputs")
    options = parser.parse_args()
    if options.sts:
        for name, (seed, center) in PHANTOMS.items():
            phantom = make_phantom(seed, PhantomSettings(center=center, compact=True))
            write_input(CASES / name, phantom.ct, phantom.pet, phantom.record)
            write_image(phantom.mask, CASES / name / "truth.mha")
        name, patient = REAL
        files = (options.sts / patient / f"{patient}__{kind}.nii.gz" for kind in ("CT", "PT"))
        ct, pet = (read_image(path)[0] for path in files)
        write_input(CASES / name, ct, pet, {"M-stage": None})
        truth, _ = read_image(options.sts / patient / f"{patient}.nii.gz")
        write_image(truth, CASES / name / "truth.mha")
    if options.expected:
        for case in sorted(p for p in CASES.iterdir() if p.is_dir()):
            write_expected(case)


if __name__ == "__main__":
    main()
