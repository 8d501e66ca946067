"""What a verdict is worth: how often clean phantoms are ``ok``, and how much worse others are.

Each phantom is predicted as it is and once with each perturbation; the verdict is held against the
Dice of all tumour voxels with the truth. Every row is written when it is done, and the same call
goes on where this one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from rich.console import Console

from hmvnet.bundle import state_of
from hmvnet.case import Case, CaseError, Grid, Verdict
from hmvnet.exits import RefusedError
from hmvnet.files import digest
from hmvnet.phantom.cohort import draw_cohort
from hmvnet.phantom.render import Phantom, render
from hmvnet.pipeline import Pipeline, load_pipeline
from hmvnet.progress import track
from hmvnet.reading.checks import checked_case
from hmvnet.table_files import kept_rows, write_markdown, write_table

Images = tuple[sitk.Image, sitk.Image]


def _moved(image: sitk.Image, *shift: float) -> sitk.Image:
    moved = sitk.Image(image)
    moved.SetOrigin(tuple(np.add(image.GetOrigin(), shift).tolist()))
    return moved


def _turned(image: sitk.Image) -> sitk.Image:
    array = np.flip(sitk.GetArrayFromImage(image), 0)
    return Grid.of(image).image(np.ascontiguousarray(array))


def _noisy(image: sitk.Image) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    noise = np.random.default_rng(0).normal(0, 1, array.shape)
    return Grid.of(image).image(np.clip(array + 0.5 * np.sqrt(array.clip(0)) * noise, 0, None))


def _below(image: sitk.Image, mm: float) -> sitk.Image:
    """Without what lies above, so many millimetres from its top."""
    slices = image.GetSize()[2] - round(mm / image.GetSpacing()[2])
    return image[:, :, : max(slices, 8)]


PERTURBATIONS: dict[str, Callable[[sitk.Image, sitk.Image], Images]] = {
    "as it is": lambda ct, pet: (ct, pet),
    "PET x 2": lambda ct, pet: (ct, pet * 2.0),
    "PET x 5": lambda ct, pet: (ct, pet * 5.0),
    "PET / 5": lambda ct, pet: (ct, pet / 5.0),
    "PET 10 mm aside": lambda ct, pet: (ct, _moved(pet, 10, 0, 0)),
    "PET 20 mm aside": lambda ct, pet: (ct, _moved(pet, 20, 0, 0)),
    "PET 40 mm aside": lambda ct, pet: (ct, _moved(pet, 40, 0, 0)),
    "PET 40 mm up": lambda ct, pet: (ct, _moved(pet, 0, 0, 40)),
    "PET upside down": lambda ct, pet: (ct, _turned(pet)),
    "PET noisy": lambda ct, pet: (ct, _noisy(pet)),
    "PET smoothed by 10 mm": lambda ct, pet: (ct, sitk.SmoothingRecursiveGaussian(pet, 4.25)),
    "CT without intercept": lambda ct, pet: (ct + 1024, pet),
    "CT 150 HU too high": lambda ct, pet: (ct + 150, pet),
    "without the upper 100 mm": lambda ct, pet: (_below(ct, 100), _below(pet, 100)),
    "without the upper 160 mm": lambda ct, pet: (_below(ct, 160), _below(pet, 160)),
}


def bench_verdict(
    bundle: Path,
    run: Path,
    count: int,
    seed: int,
    overrides: Sequence[str],
    console: Console,
    only: Sequence[str] = (),
) -> None:
    """Predict ``count`` phantoms of a cohort with every perturbation; rows and table under ``run``.

    Args:
        bundle: a weight bundle for heads.
        overrides: settings in the bundle's place.
        only: names of perturbations; none: all.

    Raises:
        RefusedError: there is no such perturbation.
    """
    if wrong := [name for name in only if name not in PERTURBATIONS]:
        raise RefusedError(f"'{wrong[0]}': expected one of {', '.join(PERTURBATIONS)}")
    chosen = {name: PERTURBATIONS[name] for name in only or PERTURBATIONS}
    pipeline = load_pipeline(bundle, overrides=overrides, needs_risk=False)
    # Rows of another bundle or of other settings are kept, and count as nobody's here.
    of = digest(state_of(pipeline.manifest), sorted(overrides))
    rows_path = run / "verdicts.csv"
    rows, others = kept_rows(rows_path, "of", of)
    done = {(row["patient"], row["perturbation"]) for row in rows}
    plans = list(draw_cohort(count, seed))
    for plan in track(plans, "phantoms"):
        if all((plan.patient_id, name) in done for name in chosen):
            continue
        phantom = render(plan)
        for name, change in chosen.items():
            if (plan.patient_id, name) not in done:
                row = {"of": of, "patient": plan.patient_id, "perturbation": name}
                rows.append(
                    {**row, **_outcome(phantom, *change(phantom.ct, phantom.pet), pipeline)}
                )
                write_table(pd.DataFrame([*others, *rows]), rows_path)
    asked = {plan.patient_id for plan in plans}
    told = [row for row in rows if row["patient"] in asked and row["perturbation"] in chosen]
    table = _table(pd.DataFrame(told))
    write_markdown(table, run / "verdicts.md", floatfmt=".2f")
    said = (run / "verdicts.md").read_text(encoding="utf-8")
    console.print(said, markup=False, soft_wrap=True)


def _outcome(
    phantom: Phantom, ct: sitk.Image, pet: sitk.Image, pipeline: Pipeline
) -> dict[str, object]:
    try:
        case: Case = checked_case("x", ct, pet)
        prediction = pipeline(case)
    except CaseError as error:
        return {"verdict": "refused", "codes": Verdict.refusing(error).codes[0], "dice": np.nan}
    mask = sitk.GetArrayFromImage(prediction.mask) > 0
    truth = sitk.GetArrayFromImage(phantom.mask)[: len(mask)] > 0
    dice = 2 * (mask & truth).sum() / max(int(mask.sum() + truth.sum()), 1)
    verdict = prediction.verdict
    return {
        "verdict": verdict.status,
        "codes": " ".join(verdict.codes),
        "dice": round(dice, 4),
        "disagreement": prediction.segmentation.disagreement,
        "least_confidence": min((sure for sure in prediction.confidences if sure), default=None),
    }


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a perturbation: how often each verdict, and the mean Dice of those with a result."""
    found = []
    for name, group in rows.groupby("perturbation", sort=False):
        counts = group["verdict"].value_counts()
        each = {word: int(counts.get(word, 0)) for word in ("ok", "review", "refused")}
        dice = {
            f"Dice where {word}": group.loc[group["verdict"] == word, "dice"].mean()
            for word in ("ok", "review")
        }
        found.append({"perturbation": name, **each, **dice})
    return pd.DataFrame(found)
