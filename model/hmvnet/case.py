"""The values every other part speaks in: grids, cases, health records, outcomes.

Arrays and tensors are ``[channel, z, y, x]``; physical coordinates are millimetres in LPS, as
SimpleITK gives them. ``Grid`` keeps SimpleITK's own ``x, y, z`` order for size, spacing and
origin, and ``Grid.shape`` gives the array order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Literal

import numpy as np
import SimpleITK as sitk

from hmvnet.exits import RefusedError

GTVP, GTVN = 1, 2
CLASSES = ("background", "GTVp", "GTVn")

HU_OF_AIR = -1000.0
DAYS_PER_YEAR = 365.25
SYNTHETIC = "SYNTHETIC phantom, not a patient"  # said in image headers and in notes
TIED_RISK = 1e-8  # as in scikit-survival
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class CaseError(RefusedError):
    """A patient's input cannot be used. The message is one line without patient data.

    Attributes:
        code: of the verdict ``refused``: short, and the same in every version.
    """

    def __init__(self, message: str, code: str = "input") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Finding:
    """Something that makes a result doubtful: a code for programs, a line for people."""

    code: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether a result may be used as it is.

    Attributes:
        status: ``ok``; ``review``: there is a result, and reason to look at it before it is used;
            ``refused``: there is none.
        codes: of what was found, each once; none where all is well.
    """

    status: Literal["ok", "review", "refused"] = "ok"
    codes: tuple[str, ...] = ()

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Verdict:
        """Of a result with these findings."""
        codes = tuple(dict.fromkeys(finding.code for finding in findings))
        return cls("review" if codes else "ok", codes)

    @classmethod
    def refusing(cls, error: RefusedError) -> Verdict:
        """Of an input that was refused."""
        return cls("refused", (error.code if isinstance(error, CaseError) else "input",))

    def __str__(self) -> str:
        return f"{self.status} ({', '.join(self.codes)})" if self.codes else self.status


@dataclass(frozen=True)
class Grid:
    """A sampling lattice in physical space.

    Attributes:
        size: voxels along x, y, z.
        spacing: millimetres along x, y, z.
        origin: physical LPS position of the centre of voxel (0, 0, 0), in mm.
        direction: row-major 3 x 3 matrix; its columns are the unit vectors of the x, y, z axes.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """The grid of a 3D SimpleITK image."""
        return cls(
            tuple(image.GetSize()),
            tuple(image.GetSpacing()),
            tuple(image.GetOrigin()),
            tuple(image.GetDirection()),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape ``(z, y, x)``."""
        return self.size[::-1]

    @property
    def axes(self) -> np.ndarray:
        """Direction cosines, ``[3, 3]``; column i is the unit vector of axis i (x, y, z)."""
        return np.asarray(self.direction, dtype=float).reshape(3, 3)

    @property
    def affine(self) -> np.ndarray:
        """``[4, 4]`` matrix from voxel index (x, y, z, 1) to LPS millimetres."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return affine

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return math.prod(self.spacing) / 1000.0

    def points(self, index: np.ndarray) -> np.ndarray:
        """Physical LPS mm ``[n, 3]`` of (continuous) voxel indices ``[n, 3]`` in x, y, z order."""
        return np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def indices(self, points: np.ndarray) -> np.ndarray:
        """Continuous voxel indices ``[n, 3]`` (x, y, z) of physical LPS points ``[n, 3]`` in mm."""
        return np.linalg.solve(
            self.affine[:3, :3], (np.asarray(points, float) - self.affine[:3, 3]).T
        ).T

    def depth(self, points: np.ndarray) -> np.ndarray:
        """How far inside the nearest outer face each LPS point ``[n, 3]`` lies, in mm.

        Negative outside.
        """
        at = self.indices(points) + 0.5
        return (np.minimum(at, np.array(self.size) - at) * self.spacing).min(axis=1)

    def covers(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether all of another grid lies inside this one's outer faces."""
        return bool((self.depth(other.corners()) >= -tolerance_mm).all())

    def corners(self) -> np.ndarray:
        """The eight outer corners (voxel faces, not centres) in LPS mm, ``[8, 3]``."""
        index = [
            [end * n - 0.5 for end, n in zip(ends, self.size)] for ends in product((0, 1), repeat=3)
        ]
        return self.points(np.asarray(index))

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bound in LPS mm of the axis-parallel box around the grid."""
        corners = self.corners()
        return corners.min(axis=0), corners.max(axis=0)

    def intersection(self, other: Grid) -> tuple[np.ndarray, np.ndarray] | None:
        """The box (lower, upper; LPS mm) common to both grids' extents, or None."""
        (low, high), (low2, high2) = self.extent(), other.extent()
        low, high = np.maximum(low, low2), np.minimum(high, high2)
        return (low, high) if (high > low).all() else None

    def index_box(self, other: Grid, margin: int = 0) -> tuple[slice, slice, slice] | None:
        """Array slices (z, y, x) of this grid's voxels that may lie inside ``other``.

        The box is the smallest that holds all corners of ``other``, widened by ``margin`` voxels
        and cut to this grid; None if nothing is left.
        """
        index = self.indices(other.corners())
        low = np.maximum(np.floor(index.min(axis=0)).astype(int) - margin, 0)
        high = np.minimum(np.ceil(index.max(axis=0)).astype(int) + 1 + margin, self.size)
        if (high <= low).any():
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1]))
        return z, y, x

    def crop(self, box: tuple[slice, slice, slice]) -> Grid:
        """The sub-grid of array slices (z, y, x), as ``index_box`` gives them."""
        start = [s.start for s in box[::-1]]
        size = [s.stop - s.start for s in box[::-1]]
        origin = self.points(np.asarray([start]))[0]
        return Grid(tuple(size), self.spacing, tuple(origin.tolist()), self.direction)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both lattices coincide: equal size, corners equal to ``tolerance_mm``."""
        return self.size == other.size and bool(
            np.abs(self.corners() - other.corners()).max() <= tolerance_mm
        )

    def image(self, array: np.ndarray) -> sitk.Image:
        """A SimpleITK image of ``array`` ``[z, y, x]`` on this grid.

        Raises:
            ValueError: the array's shape is not the grid's.
        """
        if tuple(array.shape) != self.shape:
            raise ValueError(f"array of shape {array.shape} on a grid of shape {self.shape}")
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def plain_name(name: str) -> str:
    """A column's name without case, blanks, -, _ and points ("Patient.ID"), but decimal ones."""
    return re.sub(r"[\s_-]+|(?<!\d)\.|\.(?!\d)", "", name).lower()


@dataclass(frozen=True)
class ClinicalRecord:
    """A clean health record: column names to finite numbers, texts or None (missing).

    ``hmvnet.reading.records.parse_record`` makes one; codes and ranges are the business of the
    trained model's schema.
    """

    values: Mapping[str, float | str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __reduce__(self) -> tuple[type[ClinicalRecord], tuple[dict[str, float | str | None]]]:
        # A mapping proxy cannot be handed to another process.
        return ClinicalRecord, (dict(self.values),)

    @property
    def centre(self) -> str | None:
        """The hospital, by the column CenterID; None: not said."""
        labels = [label for label in self.values if plain_name(label) == "centerid"]
        value = next((v for label in labels if (v := self.values[label]) is not None), None)
        return f"{value:.15g}" if isinstance(value, float) else value


@dataclass(frozen=True)
class Stage:
    """T and N as a doctor gave them; None: not, or none that is to be learnt (T0, Tx, Nx).

    Attributes:
        t: ``T1`` to ``T4``.
        n: ``N0`` to ``N3``.
    """

    t: str | None = None
    n: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Recurrence-free survival: days to relapse or censoring, and whether it was a relapse."""

    days: float
    event: bool


@dataclass(frozen=True)
class Outcomes:
    """Follow-up of n patients.

    Attributes:
        days: float64 ``[n]``, to the event or to censoring.
        event: bool ``[n]``, whether it ended in an event.

    Raises:
        ValueError: shapes that do not agree, days that are not finite or negative, an event that is
            neither 0 nor 1.
    """

    days: np.ndarray
    event: np.ndarray

    def __post_init__(self) -> None:
        days, event = np.asarray(self.days, dtype=np.float64), np.asarray(self.event)
        if days.ndim != 1 or days.shape != event.shape:
            raise ValueError(
                f"days and event must be [n] each, found {days.shape} and {event.shape}"
            )
        if not (np.isfinite(days) & (days >= 0)).all():
            raise ValueError("every follow-up must be finite and not negative, in days")
        if not np.isin(event, (0, 1)).all():
            raise ValueError("event must be True/False or 1/0")
        object.__setattr__(self, "days", days)
        object.__setattr__(self, "event", event.astype(bool))

    @classmethod
    def of(cls, patients: Iterable[Outcome]) -> Outcomes:
        """The follow-up of these patients, in their order."""
        each = list(patients)
        return cls(np.array([o.days for o in each]), np.array([o.event for o in each]))

    def __len__(self) -> int:
        return len(self.days)

    def __getitem__(self, rows: np.ndarray | Sequence[int] | slice) -> Outcomes:
        """Of some patients: their numbers, or a bool ``[n]``; a patient may be there twice."""
        return Outcomes(self.days[rows], self.event[rows])

    def until(self, days: float) -> Outcomes:
        """The same follow-up, ended a day after ``days``: all that matters up to there."""
        seen = self.days <= days
        return Outcomes(np.where(seen, self.days, days + 1.0), self.event & seen)


def has_comparable_pair(outcomes: Outcomes) -> bool:
    """Whether any patient is known to outlast another's event.

    Who is censored at the time of an event outlasts it; two events at one time do not compare.
    """
    first = outcomes.days[outcomes.event].min(initial=np.inf)
    later, then = outcomes.days > first, outcomes.days == first
    return bool((later | (then & ~outcomes.event)).any())


def harrell_c(outcomes: Outcomes, risk: np.ndarray) -> float:
    """Harrell's concordance index of ``risk`` ``[n]``; NaN where no two patients compare.

    Of the pairs in which one is known to outlast the other's event, the share in which the other
    has the higher risk; risks closer than ``TIED_RISK`` count one half (Harrell et al., JAMA 1982).

    Raises:
        ValueError: a risk that is NaN or infinite, or not one for each patient.
    """
    risk = np.asarray(risk, float)
    if risk.shape != (len(outcomes),) or not np.isfinite(risk).all():
        raise ValueError(
            f"risks of shape {risk.shape}, expected [{len(outcomes)}] without NaN or infinity"
        )
    days, event = outcomes.days, outcomes.event
    outlasts = (days > days[event, None]) | ((days == days[event, None]) & ~event)
    if not outlasts.any():
        return math.nan
    ahead = risk[event, None] - risk
    won = np.where(ahead > TIED_RISK, 1.0, 0.5 * (ahead >= -TIED_RISK))
    return float(won[outlasts].sum() / outlasts.sum())


@dataclass(frozen=True)
class Case:
    """One patient, as ``hmvnet.reading.checks.checked_case`` makes it.

    Attributes:
        patient_id: for messages and file names only.
        ct: HU, on the CT grid.
        pet: SUV (body weight), on the PET's own grid.
        record: the health record; empty where there is none.
        truth: labels 0, 1 = GTVp, 2 = GTVn on the CT grid, where known.
        outcome: recurrence-free survival, where known.
        notes: what was repaired while reading, and what is implausible.
        findings: of the notes, those that make a result doubtful.
    """

    patient_id: str
    ct: sitk.Image
    pet: sitk.Image
    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    truth: sitk.Image | None = None
    outcome: Outcome | None = None
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
