"""T and N stages as tables write them: ``T4a``, ``cT2``, ``4``, ``N2b``, ``Tx``, or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hmvnet.case import Stage
from hmvnet.reading.records import count_values, is_missing

T_COLUMN, N_COLUMN = "T-stage", "N-stage"  # HECKTOR 2026's; spelt T_stage and N_stage as well
_HIGHEST = {"T": 4, "N": 3}
# As in cT2, ypN2b (m): c, p, y, r, a say how it was found, the letter behind is a substage.
_STAGE = re.compile(
    r"[cpyra]{0,2}(?P<axis>[TN]?)\s*(?P<stage>\d|x|is)(?:[a-d](?:-[a-d])?\d?)?\s*(?:\([a-z]+\))?",
    re.IGNORECASE,
)


def parse_stage(value: float | str | None, axis: str) -> str | None:
    """A cell's stage: ``T1`` to ``T4``, ``N0`` to ``N3``, substages merged.

    Args:
        value: clean, as of ``hmvnet.reading.records.clean_scalar``.
        axis: "T" or "N".

    Returns:
        None where there is no stage to learn: T0, Tis, Tx, Nx, or no value.

    Raises:
        ValueError: it is none of these.
    """
    if value is None or is_missing(value):
        return None
    text = f"{value:g}" if isinstance(value, float) else str(value).strip()
    match = _STAGE.fullmatch(text)
    if match is None or match["axis"].upper() not in ("", axis):
        raise ValueError(f"not a {axis} stage")
    stage = match["stage"].lower()
    if stage in ("x", "is"):
        return None
    if int(stage) > _HIGHEST[axis]:
        raise ValueError(f"not a {axis} stage")
    return None if axis == "T" and stage == "0" else f"{axis}{stage}"


def stage_of(row: Mapping[str, float | str | None]) -> Stage:
    """T and N of a row whose cells ``check_stages`` let pass."""
    return Stage(parse_stage(row.get(T_COLUMN), "T"), parse_stage(row.get(N_COLUMN), "N"))


def check_stages(rows: Mapping[int, Mapping[str, float | str | None]], source: str) -> None:
    """Refuse cells that are no stages, rather than lose their patients quietly.

    Args:
        rows: by their numbers in the file.

    Raises:
        ValueError: names the source, the column and the first such row.
    """
    for column, axis in ((T_COLUMN, "T"), (N_COLUMN, "N")):
        bad = []
        for number, row in rows.items():
            try:
                parse_stage(row.get(column), axis)
            except ValueError:
                bad.append(number)
        if bad:
            raise ValueError(
                f"{source}: column {column!r} holds {count_values(len(bad))} other than {axis}0 to "
                f"{axis}{_HIGHEST[axis]} or {axis}x, the first in row {bad[0]}"
            )
