"""Centres that differ in images, records and baseline hazard.

Off by default (``PhantomSettings.centre_effects``). Without, centres differ in their make of
scanner (``scanner.CENTERS``) and in nothing else. ``EFFECTS`` is all that it changes: constants, so
that a patient of another centre, or with the effects off, has the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .scanner import Style

Value = float | str | None


@dataclass(frozen=True)
class CentreEffect:
    """What a centre does otherwise.

    Attributes:
        suv: factor of every SUV: another calibration or weight.
        pet_noise, ct_noise: factors of the noise.
        blur: factor of the PET's resolution (FWHM).
        spacing: factor of both grids' voxel edges.
        missing: shares of a field that are missing, in place of the usual ones.
        codes: of a field, what is written in the place of a value, None being a missing one.
        months: whether ages are in months.
        log_hazard: added to the linear predictor of all its patients.
    """

    suv: float = 1.0
    pet_noise: float = 1.0
    ct_noise: float = 1.0
    blur: float = 1.0
    spacing: float = 1.0
    missing: Mapping[str, float] = field(default_factory=dict)
    codes: Mapping[str, Mapping[Value, Value]] = field(default_factory=dict)
    months: bool = False
    log_hazard: float = 0.0

    def style(self, usual: Style) -> Style:
        """A scanner with these effects; its fields of view stay."""
        plane, slices = usual.ct_spacing
        pet_plane, pet_slices = usual.pet_spacing
        return replace(
            usual,
            ct_spacing=(plane * self.spacing, slices * self.spacing),
            ct_matrix=round(usual.ct_matrix / self.spacing),
            ct_noise_hu=usual.ct_noise_hu * self.ct_noise,
            pet_spacing=(pet_plane * self.spacing, pet_slices * self.spacing),
            pet_matrix=round(usual.pet_matrix / self.spacing),
            pet_fwhm=usual.pet_fwhm * self.blur,
            pet_noise=usual.pet_noise * self.pet_noise,
            suv_scale=usual.suv_scale * self.suv,
        )

    def written(self, record: Mapping[str, Value]) -> dict[str, Value]:
        """A record as this centre writes it down."""
        values = {k: self.codes.get(k, {}).get(v, v) for k, v in record.items()}
        age = values.get("Age")
        if self.months and isinstance(age, float):
            values["Age"] = 12.0 * age
        return values


# Missing is written as 0, "no": a model cannot tell the two apart.
_UNKNOWN_IS_NO: Mapping[Value, Value] = {None: 0.0}
_LETTERS: Mapping[Value, Value] = {0.0: "F", 1.0: "M"}

EFFECTS: Mapping[str, CentreEffect] = {
    "HGJ": CentreEffect(),
    "CHUS": CentreEffect(suv=0.85, pet_noise=1.4, log_hazard=0.3, months=True),
    "HMR": CentreEffect(blur=1.2, missing={"HPV Status": 1.0}, log_hazard=-0.2),
    "CHUM": CentreEffect(
        suv=1.2,
        spacing=1.2,
        ct_noise=1.5,
        log_hazard=0.5,
        codes={"Tobacco Consumption": _UNKNOWN_IS_NO, "Alcohol Consumption": _UNKNOWN_IS_NO},
    ),
    "CHUV": CentreEffect(
        suv=0.9, missing={"Tobacco Consumption": 0.0, "Alcohol Consumption": 0.0}, log_hazard=-0.4
    ),
    "CHUP": CentreEffect(pet_noise=1.8, codes={"Gender": _LETTERS}, log_hazard=0.1),
    "MDA": CentreEffect(
        suv=1.3,
        blur=1.3,
        ct_noise=0.8,
        missing={"Performance Status": 1.0, "M-stage": 0.4},
        log_hazard=-0.5,
    ),
    "USZ": CentreEffect(spacing=0.85, pet_noise=0.7, missing={"Age": 0.15}, log_hazard=0.2),
}
_HEADER = (
    "| centre | SUV | PET noise | CT noise | PET blur | voxels | missing | written otherwise "
    "| log hazard |\n|---|---|---|---|---|---|---|---|---|"
)


def rules() -> str:
    """The effects as a table, in Markdown; factors unless said otherwise."""
    rows = [_HEADER]
    for name, one in EFFECTS.items():
        factors = (one.suv, one.pet_noise, one.ct_noise, one.blur, one.spacing)
        missing = ", ".join(f"{column} {share:.0%}" for column, share in one.missing.items())
        coded = [
            f"{column}: {', '.join(_code(*pair) for pair in codes.items())}"
            for column, codes in one.codes.items()
        ]
        coded += ["Age in months"] if one.months else []
        cells = [*(f"{f:g}" for f in factors), missing, "; ".join(coded), f"{one.log_hazard:+g}"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _code(value: Value, written: Value) -> str:
    before = "missing" if value is None else f"{value:g}" if isinstance(value, float) else value
    return f"{before} as {written:g}" if isinstance(written, float) else f"{before} as {written}"
