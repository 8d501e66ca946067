"""PET in DICOM to SUV by body weight.

After QIBA's procedure (QIBA FDG-PET/CT Profile 1.14, appendix G; the vendor-neutral pseudo-code of
the SUV Technical Committee), extended where files of the IBSI's reference objects and of vendors
show that it has to be: series times that were written anew, doses in MBq, injections before
midnight, images without decay correction, and SUV by other than body weight.

A SUV is the activity concentration that a voxel would have had at the injection, over the injected
dose per gram of the patient. What is needed of the header is asked for by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Any

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from hmvnet.case import CaseError

DAY_S = 86_400.0
QUARTER_S, MINUTE_S = 900.0, 60.0  # a quarter of an hour
LONG_LIVED_S = 6 * 3600.0  # of a half-life: such scans may be days after the injection
MOST_APART_S = 120.0  # of two ways to tell the scan's start; vendors' headers agree within 1 s
MOST_HALF_LIVES = 10.0  # from injection to scan: longer, and a date was made up
LEAST_BQ = 1e5  # a dose that is less is in MBq
KNOWN_KG, KNOWN_M = (1.0, 500.0), (0.3, 2.6)
# Vendors' private elements: group, who reserves the block, number in it.
GE_SCAN_START = (0x0009, "GEMS_PETD_01", 0x0D)
PHILIPS_SUV = (0x7053, "Philips PET Private Group", 0x00)
PHILIPS_ACTIVITY = (0x7053, "Philips PET Private Group", 0x09)
BLOCKS = range(0x10, 0x20)  # those that are looked for
# The tags of these and of who has reserved each block.
PRIVATE_TAGS = sorted(
    {
        (group << 16) + tag
        for group, _, element in (GE_SCAN_START, PHILIPS_SUV, PHILIPS_ACTIVITY)
        for block in BLOCKS
        for tag in (block, (block << 8) + element)
    }
)


@dataclass(frozen=True)
class SuvScale:
    """What a PET's values are multiplied by to be SUV (body weight).

    Attributes:
        factors: one for each slice, in g/mL for each unit of the values.
        notes: what was assumed.
        uptake_s: seconds from the injection to the scan, where the factors hang on them.
    """

    factors: tuple[float, ...]
    notes: tuple[str, ...] = ()
    uptake_s: float | None = None


def suv_scale(slices: Sequence[Dataset], given: float | None = None) -> SuvScale:
    """The factors of a PET series.

    Args:
        slices: the headers of its slices.
        given: a factor to be used for all of them, in the place of what the headers say.

    Raises:
        CaseError: a tag is missing or makes no sense, and is named; units that are not known.
    """
    if given is not None:
        return SuvScale((given,) * len(slices), (f"PET: SUV factor {given:g}, as given",))
    for keyword in ("Units", "DecayCorrection", "SUVType"):
        if len({str(one.get(keyword) or "") for one in slices}) > 1:
            raise CaseError(f"PET: {keyword} is not the same in all images", "pet-not-suv")
    corrected = words(slices[0].get("CorrectedImage"))
    if corrected and "ATTN" not in corrected:
        raise CaseError(
            "PET: CorrectedImage does not hold ATTN; an image without attenuation correction is "
            "no SUV",
            "pet-not-suv",
        )
    units = str(slices[0].get("Units") or "").strip().upper()
    if units == "GML":
        return _of_other_weight(slices)
    if units == "CM2ML":
        weight, height = _weight_kg(slices[0]), _height_m(slices[0])
        factor = 1000 * weight / body_surface_cm2(weight, height)
        note = "PET: SUV by body surface, made SUV by body weight"
        return SuvScale((factor,) * len(slices), (note,))
    if units == "CNTS":
        return _of_philips_counts(slices)
    if units == "BQML":
        return _of_activity(slices)
    raise CaseError(
        f"PET: Units (0054,1001) are {units or 'not there'}, expected BQML, GML, CM2ML or CNTS; "
        "--suv-factor takes what the values are to be multiplied by",
        "pet-not-suv",
    )


def _refused(keyword: str, found: str, expected: str) -> CaseError:
    """That a tag is not what is needed; its value is the patient's and is not said."""
    tag = tag_for_keyword(keyword) or 0
    return CaseError(
        f"PET: {keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is {found}, expected {expected}; "
        "--suv-factor takes what the values are to be multiplied by",
        "pet-not-suv",
    )


# --- units ---------------------------------------------------------------------------------------


def _of_activity(slices: Sequence[Dataset], scales: Sequence[float] | None = None) -> SuvScale:
    """Of an image in Bq/mL; ``scales`` make another one of it, a factor a slice."""
    grams = 1000 * _weight_kg(slices[0])
    injection = _Injection.of(slices[0])
    notes = list(injection.notes)
    correction = _correction(slices[0])
    kinds = words(slices[0].get("CorrectedImage"))
    if kinds and ("DECY" in kinds) is (correction == "NONE"):
        notes.append(
            f"PET: DecayCorrection is {correction or 'not there'} and CorrectedImage has "
            f"{'DECY' if 'DECY' in kinds else 'no DECY'}: the former is taken"
        )
    if correction == "ADMIN":
        elapsed = [0.0] * len(slices)
    elif correction == "NONE":
        elapsed = [
            injection.until(_acquired(one) + _average_count(one, injection)) for one in slices
        ]
    elif correction == "START":
        start, note = _scan_start(slices, injection)
        notes.extend(note)
        elapsed = [injection.until(start)] * len(slices)
    else:
        raise _refused(
            "DecayCorrection", "not there" if not correction else "unknown", "START, ADMIN or NONE"
        )
    factors = tuple(
        scale * grams / (injection.dose_bq * injection.remaining(seconds))
        for seconds, scale in zip(elapsed, scales or [1.0] * len(slices), strict=True)
    )
    return SuvScale(factors, tuple(notes), None if correction == "ADMIN" else min(elapsed))


def _of_philips_counts(slices: Sequence[Dataset]) -> SuvScale:
    suv = [number(_private(one, *PHILIPS_SUV)) or 0.0 for one in slices]
    if all(suv):
        return SuvScale(tuple(suv), ("PET: counts, made SUV with Philips' factor (7053,1000)",))
    activity = [number(_private(one, *PHILIPS_ACTIVITY)) or 0.0 for one in slices]
    if all(activity):
        scale = _of_activity(slices, activity)
        note = "PET: counts, made Bq/mL with Philips' factor (7053,1009)"
        return replace(scale, notes=(note, *scale.notes))
    raise CaseError(
        "PET: Units (0054,1001) are CNTS, and Philips' SUV factor (7053,1000) and activity factor "
        "(7053,1009) are missing or 0; --suv-factor takes what the values are to be multiplied by",
        "pet-not-suv",
    )


def _private(one: Dataset, group: int, creator: str, element: int) -> Any:
    """A vendor's private value; None where it is not there.

    It is in the block that the vendor's name has reserved, and in the first one if that is
    nobody's: tools that leave private elements may take away the names.
    """
    reserved = {
        str(name.value).strip().casefold(): name.tag.element
        for name in one.group_dataset(group)
        if name.tag.is_private_creator
    }
    first = 0 if BLOCKS[0] in reserved.values() else BLOCKS[0]
    block = reserved.get(creator.casefold(), first)
    value = getattr(one.get((group, (block << 8) + element)), "value", None) if block else None
    if isinstance(value, bytes):  # an implicit file without the vendor's dictionary
        return value.decode("ascii", "replace").strip(" \0")
    return value


def _of_other_weight(slices: Sequence[Dataset]) -> SuvScale:
    """Of an image that is a SUV already, perhaps not by body weight."""
    kind = str(slices[0].get("SUVType") or "BW").strip().upper()
    if kind == "BW":
        return SuvScale((1.0,) * len(slices))
    if kind not in NORMALISERS:
        raise _refused("SUVType", "unknown", f"BW, {', '.join(NORMALISERS)}")
    weight, height = _weight_kg(slices[0]), _height_m(slices[0])
    sex = str(slices[0].get("PatientSex") or "").strip().upper()
    if sex not in ("M", "F", "O"):
        raise _refused("PatientSex", "not there" if not sex else "unknown", "M, F or O")
    # Of somebody of another sex, the mean of both, as the reference objects do.
    each = [NORMALISERS[kind](one, weight, height) for one in ("MF" if sex == "O" else sex)]
    mass = sum(each) / len(each)
    if not mass > 0:
        raise _refused("PatientSize", "not of the weight's order", "a height in metres")
    note = f"PET: SUV by {kind}, made SUV by body weight"
    return SuvScale((weight / mass,) * len(slices), (note,))


def lean_body_james_kg(sex: str, weight_kg: float, height_m: float, male: float = 128.0) -> float:
    """James' lean body mass (WHO 1976); ``male`` is the men's constant, 120 in some scanners."""
    ratio = (weight_kg / (100 * height_m)) ** 2
    return 1.10 * weight_kg - male * ratio if sex == "M" else 1.07 * weight_kg - 148 * ratio


def lean_body_janma_kg(sex: str, weight_kg: float, height_m: float) -> float:
    """Janmahasatian's lean body mass (Clin Pharmacokinet 2005)."""
    index = weight_kg / height_m**2
    offset, slope = (6680.0, 216.0) if sex == "M" else (8780.0, 244.0)
    return 9270.0 * weight_kg / (offset + slope * index)


def ideal_body_kg(sex: str, weight_kg: float, height_m: float) -> float:
    """The ideal body weight of Zasadny and Wahl (Radiology 1993) and of Sugawara (1999)."""
    above = 100 * height_m - 152
    return 48.0 + 1.06 * above if sex == "M" else 45.5 + 0.91 * above


def body_surface_cm2(weight_kg: float, height_m: float) -> float:
    """The body's surface after DuBois and DuBois (1916)."""
    return 71.84 * weight_kg**0.425 * (100 * height_m) ** 0.725


NORMALISERS = {
    "LBM": lambda sex, weight, height: lean_body_james_kg(sex, weight, height, 120.0),
    "LBMJAMES128": lean_body_james_kg,
    "LBMJANMA": lean_body_janma_kg,
    "IBW": ideal_body_kg,
}


# --- the patient and the injection ---------------------------------------------------------------


def _weight_kg(one: Dataset) -> float:
    return _measure(one, "PatientWeight", KNOWN_KG, "kg")


def _height_m(one: Dataset) -> float:
    return _measure(one, "PatientSize", KNOWN_M, "m")


def _measure(one: Dataset, keyword: str, known: tuple[float, float], unit: str) -> float:
    value = number(one.get(keyword))  # of a comma the range tells that of thousands
    if value is None or not known[0] <= value <= known[1]:
        found = "not there" if value is None else "0" if value == 0 else "out of range"
        raise _refused(keyword, found, f"{known[0]:g} to {known[1]:g} {unit}")
    return value


def _correction(one: Dataset) -> str:
    return str(one.get("DecayCorrection") or "").strip().upper()


@dataclass(frozen=True)
class _Injection:
    """What was injected, and when.

    Attributes:
        at: None where only the time of the day, or not even that, is known.
        clock: the time of the day.
    """

    dose_bq: float
    half_life_s: float
    at: datetime | None
    clock: time | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, one: Dataset) -> _Injection:
        sequence = one.get("RadiopharmaceuticalInformationSequence")
        if not sequence:
            raise _refused("RadiopharmaceuticalInformationSequence", "not there", "dose and time")
        if any(item != sequence[0] for item in sequence):
            raise _refused("RadiopharmaceuticalInformationSequence", "of several doses", "one")
        info = sequence[0]
        dose, half_life = (
            number(info.get(k)) for k in ("RadionuclideTotalDose", "RadionuclideHalfLife")
        )
        if dose is None or not dose > 0:
            found = "not there" if dose is None else "0" if dose == 0 else "negative"
            raise _refused("RadionuclideTotalDose", found, "Bq above 0")
        if half_life is None and _correction(one) == "ADMIN":
            half_life = math.inf  # nothing decays from the injection to itself
        if half_life is None or not half_life > 0:
            found = "not there" if half_life is None else "not above 0"
            raise _refused("RadionuclideHalfLife", found, "seconds")
        notes = []
        if dose < LEAST_BQ:
            dose *= 1e6
            notes.append("PET: RadionuclideTotalDose taken for MBq: no dose is as small in Bq")
        clock = parse_time(info.get("RadiopharmaceuticalStartTime"))
        at = _own_time(info.get("RadiopharmaceuticalStartDateTime"), one, clock)
        clock = clock or (at.time() if at else None)
        return cls(dose, half_life, at, clock, tuple(notes))

    def remaining(self, seconds: float) -> float:
        """The share of the dose that is left after so many seconds."""
        return math.exp(-math.log(2) * seconds / self.half_life_s)

    def until(self, scan: datetime) -> float:
        """Seconds from the injection to ``scan``.

        Raises:
            CaseError: the time of the injection is missing, after the scan, or too far from it.
        """
        if self.at is not None:
            elapsed = (scan - self.at).total_seconds()
            if 0 <= elapsed <= MOST_HALF_LIVES * self.half_life_s:
                return elapsed
        if self.clock is None:
            raise _refused("RadiopharmaceuticalStartDateTime", "not there", "the injection's time")
        if self.half_life_s > LONG_LIVED_S:
            found = "not there" if self.at is None else "after the scan, or too long before it"
            raise _refused("RadiopharmaceuticalStartDateTime", found, "the injection's date")
        # Its date is missing or made up; within a day there is one scan after this clock time.
        elapsed = (scan - datetime.combine(scan.date(), self.clock)).total_seconds()
        elapsed += DAY_S if elapsed < 0 else 0.0
        if elapsed > MOST_HALF_LIVES * self.half_life_s or (
            self.at is not None and self.at.date() == scan.date() and self.at > scan
        ):
            raise _refused("RadiopharmaceuticalStartTime", "after the scan", "before the scan")
        return elapsed


# --- the time that the decay is corrected to -----------------------------------------------------


def _scan_start(
    slices: Sequence[Dataset], injection: _Injection
) -> tuple[datetime, tuple[str, ...]]:
    """When the scan began: what DecayCorrection START refers to, and notes on how it was found."""
    if (start := _own_time(_private(slices[0], *GE_SCAN_START), slices[0])) is not None:
        return start, ()
    series = _moment(slices[0], "Series")
    acquired = [_acquired(one) for one in slices]
    if series is not None and series <= min(acquired):
        return series, _apart_from_frames(series, slices, acquired, injection)
    # The series' time was written anew: by a reconstruction later on, or when it was anonymised.
    note = "PET: SeriesTime is after the acquisition; the scan's start is taken from the frames"
    return _start_by_frames(slices, acquired, injection), (note,)


def _apart_from_frames(
    series: datetime,
    slices: Sequence[Dataset],
    acquired: Sequence[datetime],
    injection: _Injection,
) -> tuple[str, ...]:
    """That the series' time and those of its frames tell of different starts."""
    try:
        begun = _start_by_frames(slices, acquired, injection)
    except CaseError:  # without a frame's duration they tell of none
        return ()
    apart = abs((begun - series).total_seconds())
    if apart <= MOST_APART_S:
        return ()
    return (
        f"PET: SeriesTime and the frames' times differ by {apart / 60:.0f} minutes about the "
        "scan's start; SeriesTime is taken",
    )


def _start_by_frames(
    slices: Sequence[Dataset], acquired: Sequence[datetime], injection: _Injection
) -> datetime:
    return min(_start_by_frame(one, at, injection) for one, at in zip(slices, acquired))


def _start_by_frame(one: Dataset, acquired: datetime, injection: _Injection) -> datetime:
    """The scan's start by a frame's, whose reference time counts from there to its mean activity.

    One too short for that counts to the frame's begin, as CPS has it.
    """
    offset = timedelta(milliseconds=number(one.get("FrameReferenceTime")) or 0.0)
    if not offset:
        return acquired
    within = _average_count(one, injection)
    return acquired - offset + (within if offset >= within else timedelta())


def _average_count(one: Dataset, injection: _Injection) -> timedelta:
    """How long after a frame's begin its mean activity was reached."""
    duration = number(one.get("ActualFrameDuration"))
    if duration is None or not duration > 0:
        raise _refused("ActualFrameDuration", "not there", "milliseconds")
    rate = math.log(2) / injection.half_life_s
    decayed = rate * duration / 1000
    return timedelta(seconds=math.log(decayed / -math.expm1(-decayed)) / rate)


def _acquired(one: Dataset) -> datetime:
    clock = parse_time(one.get("AcquisitionTime"))
    found = _own_time(one.get("AcquisitionDateTime"), one, clock) or _moment(one, "Acquisition")
    if found is None:
        raise _refused("AcquisitionTime", "not there", "the time of the frame")
    return found


def _own_time(value: object, one: Dataset, clock: time | None = None) -> datetime | None:
    """A DT in the file's own time, in which its dates and times are; None for no such.

    Args:
        clock: the same moment's time of the day, where the file has it, too: that tells the file's
            offset from UTC where the DT has one and the file does not say its own.
    """
    zone = zone_of(one)
    found = parse_datetime(value, zone)
    if found is None or zone is not None or clock is None or _offset(str(value)[-5:]) is None:
        return found
    apart = (datetime.combine(found.date(), clock) - found).total_seconds()
    apart -= DAY_S * round(apart / DAY_S)
    offset = QUARTER_S * round(apart / QUARTER_S)  # they are of whole quarters
    return found + timedelta(seconds=offset) if abs(apart - offset) < MINUTE_S else found


def _moment(one: Dataset, what: str) -> datetime | None:
    """``<what>Date`` and ``<what>Time``; another date of the file's where it was taken out."""
    clock = parse_time(one.get(f"{what}Time"))
    day = next(
        (
            found
            for name in (what, "Acquisition", "Series", "Study")
            if (found := parse_date(one.get(f"{name}Date"))) is not None
        ),
        date(2000, 1, 1),
    )
    return None if clock is None else datetime.combine(day, clock)


# --- DICOM's values ------------------------------------------------------------------------------


def parse_date(value: object) -> date | None:
    """A DA: ``YYYYMMDD``, or as older files have it ``YYYY.MM.DD``; None for anything else."""
    digits = "".join(c for c in str(value or "") if c.isdigit())
    try:
        return datetime.strptime(digits[:8], "%Y%m%d").date() if len(digits) >= 8 else None
    except ValueError:
        return None


def parse_time(value: object) -> time | None:
    """A TM: ``HHMMSS.ffffff``, or less of it; None for anything else."""
    text = str(value or "").strip().replace(":", "")
    whole, _, fraction = text.partition(".")
    if not whole.isdigit() or len(whole) not in (2, 4, 6):
        return None
    try:
        hour, minute, second = (int(whole[i : i + 2] or 0) for i in (0, 2, 4))
        micro = int(fraction[:6].ljust(6, "0")) if fraction.isdigit() else 0
        return time(hour, minute, min(second, 59), micro)  # DICOM allows a leap second
    except ValueError:
        return None


def parse_datetime(value: object, zone: timedelta | None = None) -> datetime | None:
    """A DT in the file's own time; None for no such.

    Args:
        zone: the file's offset from UTC; None: that of the value.
    """
    text = str(value or "").strip()
    found = re.fullmatch(r"(\d{8})([\d.]*)([+-]\d{4})?", text)
    if not found:
        return None
    day, clock = parse_date(found[1]), parse_time(found[2])
    if not day or not clock:
        return None
    own = _offset(found[3] or "")
    moved = zone - own if zone is not None and own is not None else timedelta()
    return datetime.combine(day, clock) + moved


def zone_of(one: Dataset) -> timedelta | None:
    """A file's offset from UTC; None where it does not say."""
    return _offset(str(one.get("TimezoneOffsetFromUTC") or ""))


def _offset(text: str) -> timedelta | None:
    """``+HHMM`` or ``-HHMM``; None for anything else."""
    found = re.fullmatch(r"([+-])(\d\d)(\d\d)", text.strip())
    if not found:
        return None
    offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return -offset if found[1] == "-" else offset


def number(value: object) -> float | None:
    """A DS; None for none. Some consoles write the comma of their language."""
    try:
        found = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def words(value: object) -> list[str]:
    """The values of an element that may have one, several or none, in capitals."""
    if value is None:
        return []
    each = [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
    return [str(word).strip().upper() for word in each]
