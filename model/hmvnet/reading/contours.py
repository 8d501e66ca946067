"""Contours (RTSTRUCT) and segments (SEG) of DICOM as labels on a CT's grid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from scipy.ndimage import distance_transform_edt, find_objects
from skimage.draw import polygon2mask

from hmvnet.case import CLASSES, CaseError, Grid
from hmvnet.exits import shown
from hmvnet.reading.folder import checked_labels
from hmvnet.reading.images import has_image_suffix, read_image
from hmvnet.reading.series import Series, drawn_on, open_dicom, read_header

# What drawers call them, in small letters without blanks, points, dashes and underscores; the first
# that fits counts. Whoever has other names says so.
USUAL_NAMES: tuple[tuple[str, int], ...] = (
    (r"gtv(n|ln|nodes?|nodal|lymphnodes?)(left|right|l|r|\d+[a-z]?)*", 2),
    (r"gtv(p|t|primary|tumou?r|mass)?(ct|left|right|l|r|\d+)*", 1),
)
# Slices from one contour to the next that may be a gap within a lesion; how many of them, and
# what share of all such steps, make a region one that is drawn sparsely.
STEPS, LEAST_GAPS, SPARSE = (2, 3), 3, 0.8
OFF_PLANE = 0.2  # of a slice's distance, that a contour may lie beside its slice
MOST_GAP = 3  # times a SEG's slice thickness from one slice to the next


class GivenNames(dict[str, int]):
    """Names of contours and the classes that they are to be.

    Attributes:
        met: those that any contour had.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met: set[str] = set()

    @property
    def missing(self) -> list[str]:
        """Those that no contour had: perhaps written otherwise, and then not learnt."""
        return [name for name in self if name not in self.met]


def label_of(name: str, given: Mapping[str, int] | None = None) -> int | None:
    """The class that a contour's name stands for: 1 = GTVp, 2 = GTVn; None: neither.

    Args:
        given: names and their classes, in the place of the usual ones.
    """
    if given is not None:
        for key, label in given.items():
            if key.strip().lower() == name.strip().lower():
                if isinstance(given, GivenNames):
                    given.met.add(key)
                return label
        return None
    plain = re.sub(r"[\s._\-]+", "", name.lower())
    return next((label for way, label in USUAL_NAMES if re.fullmatch(way, plain)), None)


def parse_names(texts: Sequence[str]) -> GivenNames:
    """``name=gtvp`` and ``name=gtvn`` as names and their classes.

    Raises:
        ValueError: another form or class.
    """
    classes = {name.lower(): label for label, name in enumerate(CLASSES) if label}
    given = GivenNames()
    for text in texts:
        name, _, kind = text.rpartition("=")
        if not name.strip() or kind.strip().lower() not in classes:
            raise ValueError(f"--contour {text}: expected name=gtvp or name=gtvn")
        given[name.strip()] = classes[kind.strip().lower()]
    return given


def read_truth(
    path: Path, grid: Grid, given: Mapping[str, int] | None = None
) -> tuple[sitk.Image | None, tuple[str, ...]]:
    """Labels of an RTSTRUCT or SEG on a CT's grid, and notes on what was taken for what.

    A voxel is inside where its centre is; contours of one region in one slice exclude each other
    where they overlap, as holes are drawn. Of a region that is drawn on every second slice, or
    more sparsely, the slices between are interpolated. Where GTVp and GTVn overlap, GTVp counts.

    Args:
        path: the DICOM file.
        given: as for ``label_of``.

    Returns:
        None where no name stands for GTVp or GTVn.

    Raises:
        CaseError: not readable, contours that lie between the slices or outside the grid.
    """
    sparse: list[str] = []
    try:
        with pydicom.config.disable_value_validation():
            file = open_dicom(path)
            parts = (
                _regions(file, grid, given, sparse)
                if file.Modality == "RTSTRUCT"
                else _segments(file, grid, given)
            )
            found = list(parts)
    except (CaseError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise CaseError("contours: cut, damaged, or neither RTSTRUCT nor SEG") from error
    _refuse_whole(found, given)
    labels, used, unused = np.zeros(grid.shape, np.uint8), [], []
    for name, mask in found:
        label = label_of(name, given)
        if label is None:
            unused.append(shown(name))
            continue
        if not mask.any():
            unused.append(f"{shown(name)} (empty)")
            continue
        labels[mask & ((labels == 0) | (label == 1))] = label
        used.append(f"{shown(name)} is {CLASSES[label]}")
    notes = [f"contours: {', '.join(used)}", *sparse] if used else []
    if unused:
        notes.append(f"contours not used: {', '.join(unused)}")
    return (grid.image(labels) if used else None), tuple(notes)


def _refuse_whole(found: Sequence[tuple[str, np.ndarray]], given: Mapping[str, int] | None) -> None:
    """A contour of all of the tumour beside those of its parts would make every node a GTVp.

    Raises:
        CaseError: one of a GTVp holds most of a GTVn.
    """
    of = {
        label: [(name, mask) for name, mask in found if label_of(name, given) == label]
        for label in (1, 2)
    }
    for (name, mask), (node, inside) in product(of[1], of[2]):
        if inside.any() and 2 * (mask & inside).sum() > inside.sum():
            raise CaseError(
                f"contours of {shown(name)}: they hold most of {shown(node)}, as those of all "
                "do; expected those of GTVp and GTVn alone (hmvnet convert --contour NAME=gtvp "
                "--contour NAME=gtvn says which count)"
            )


def read_mask(
    path: Path, grid: Grid, ct: Series | None = None
) -> tuple[sitk.Image, tuple[str, ...]]:
    """A mask that somebody corrected: an image of labels, or an RTSTRUCT or SEG drawn on the CT.

    With notes on what was taken for what.

    Args:
        grid: the CT's.
        ct: its series, where it was read from DICOM.

    Raises:
        CaseError: not readable, other labels than 0, 1 and 2, no contour of GTVp or GTVn, or drawn
            in another frame of reference than the CT's.
    """
    if has_image_suffix(path):
        return checked_labels(read_image(path)[0], path.name), ()
    header = read_header(path)
    place = drawn_on(header) if ct and header is not None else None
    if ct and place and ct.uid not in place[1]:
        own = str(ct.header.get("FrameOfReferenceUID") or "")
        if own and place[0] != own:
            raise CaseError(
                f"{path.name}: drawn in another frame of reference, and not on this CT; expected "
                "contours of this scan"
            )
    truth, notes = read_truth(path, grid)
    if truth is None:
        raise CaseError(f"{path.name}: no contour of a name that stands for GTVp or GTVn")
    return truth, notes


def _regions(
    file: Dataset, grid: Grid, given: Mapping[str, int] | None, sparse: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The regions of an RTSTRUCT: names, and boolean ``[z, y, x]`` on the grid.

    Args:
        sparse: notes on those that are not drawn on every slice, or twice, are added to it.
    """
    names = {roi.ROINumber: str(roi.ROIName) for roi in file.StructureSetROISequence}
    for roi in file.ROIContourSequence:
        name = names.get(roi.ReferencedROINumber, "")
        if label_of(name, given) is None:  # it may lie anywhere
            yield name, np.zeros(0, bool)
            continue
        inside, seen, again = np.zeros(grid.shape, bool), set[bytes](), 0
        for contour in roi.get("ContourSequence") or ():
            if contour.ContourGeometricType not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                continue
            points = np.reshape(np.array(contour.ContourData, dtype=float), (-1, 3))
            if (drawn := points.round(3).tobytes()) in seen:  # one more would make a hole of it
                again += 1
                continue
            seen.add(drawn)
            index = grid.indices(points)
            z = round(float(index[:, 2].mean()))
            if np.abs(index[:, 2] - z).max() > OFF_PLANE:
                raise CaseError(
                    f"contours of {shown(name)}: they lie between the slices of the CT, expected "
                    "in them"
                )
            if not 0 <= z < grid.shape[0]:
                raise CaseError(f"contours of {shown(name)}: they lie outside the CT")
            inside[z] ^= polygon2mask(grid.shape[1:], index[:, [1, 0]])
        if again:
            sparse.append(f"contours of {shown(name)}: {again} are there twice, and taken once")
        gaps = np.diff(np.flatnonzero(inside.any(axis=(1, 2))))
        left_out = gaps[np.isin(gaps, STEPS)]
        if left_out.size:
            is_sparse = len(left_out) >= max(LEAST_GAPS, SPARSE * (gaps <= max(STEPS)).sum())
            became = "are interpolated" if is_sparse else "stay empty"
            sparse.append(
                f"contours of {shown(name)} leave out {(left_out - 1).sum()} slices between "
                f"others, which {became}"
            )
            if is_sparse:
                interpolate_slices(inside, grid.spacing[1::-1])
        yield name, inside


def interpolate_slices(inside: np.ndarray, spacing_yx: tuple[float, float]) -> None:
    """Fill the empty slices between slices that lie one of ``STEPS`` apart, in place.

    By the distance to the outline, positive inside, linear from one slice to the next (Raya and
    Udupa, "Shape-based interpolation of multidimensional objects", IEEE Trans Med Imaging 1990).

    Args:
        inside: boolean ``[z, y, x]``.
    """
    at = np.flatnonzero(inside.any(axis=(1, 2)))
    box = (slice(None), *find_objects(inside.any(axis=0).astype(int))[0])

    def depth(plane: np.ndarray) -> np.ndarray:
        padded = np.pad(plane, 1)
        inner, outer = (distance_transform_edt(p, spacing_yx) for p in (padded, ~padded))
        return (inner - outer)[1:-1, 1:-1]

    part = inside[box]
    for low, high in pairwise(at):
        if (step := high - low) in STEPS:
            first, last = depth(part[low]), depth(part[high])
            for i in range(1, step):
                part[low + i] = first + (last - first) * (i / step) > 0


def _segments(
    file: Dataset, ct: Grid, given: Mapping[str, int] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The segments of a SEG: names, and boolean ``[z, y, x]`` on the CT's grid.

    Of a frame a segment each, or a label map's (DICOM supplement 243), whose voxels are numbers of
    segments.
    """
    names = {s.SegmentNumber: str(s.SegmentLabel) for s in file.SegmentSequence}
    is_map = file.get("SegmentationType") == "LABELMAP"
    if is_map:
        names.pop(file.get("PixelPaddingValue", 0), None)  # background may be described, too
    pixels = np.atleast_3d(file.pixel_array)
    if pixels.shape[:1] != (int(file.NumberOfFrames),):
        pixels = pixels.reshape(int(file.NumberOfFrames), int(file.Rows), int(file.Columns))
    shared = file.SharedFunctionalGroupsSequence[0]
    frames = file.PerFrameFunctionalGroupsSequence

    def of(frame: Dataset, sequence: str) -> Dataset:
        return (frame.get(sequence) or shared.get(sequence))[0]

    most = float(file.get("MaximumFractionalValue") or 1)  # of a BINARY one there is none
    measures = of(frames[0], "PixelMeasuresSequence")
    axes = np.reshape(
        [float(v) for v in of(frames[0], "PlaneOrientationSequence").ImageOrientationPatient],
        (2, 3),
    )
    normal = np.cross(*axes)
    down, across = (float(v) for v in measures.PixelSpacing)
    places = np.array(
        [
            [float(v) for v in of(frame, "PlanePositionSequence").ImagePositionPatient]
            for frame in frames
        ]
    )
    depth = places @ normal
    apart = np.diff(np.unique(np.round(depth, 3)))
    step = float(measures.get("SpacingBetweenSlices") or 0) or _step(
        apart, normal, float(measures.get("SliceThickness") or 0), ct
    )
    index = np.rint((depth - depth.min()) / step).astype(int)
    first = places[depth.argmin()]
    grid = Grid(
        (int(file.Columns), int(file.Rows), int(index.max()) + 1),
        (across, down, step),
        tuple(first.tolist()),
        tuple(np.stack([*axes, normal], axis=1).ravel().tolist()),
    )
    for number, name in names.items():
        if label_of(name, given) is None:  # of an atlas there may be a hundred
            yield name, np.zeros(0, bool)
            continue
        volume = np.zeros(grid.shape, np.uint8)
        for frame, z, plane in zip(frames, index, pixels, strict=True):
            if is_map:
                volume[z] |= plane == number
            elif of(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber == number:
                volume[z] |= (2 * plane.astype(float) >= most).astype(np.uint8)
        yield name, _onto(grid.image(volume), ct)


def _step(apart: np.ndarray, normal: np.ndarray, thickness: float, ct: Grid) -> float:
    """The distance of a SEG's slices, mm, where the file does not say it.

    Frames need not follow each other: those of one node on every second slice would be taken for
    slices of twice the thickness. Where they lie on the CT's slices, it is the CT's, but for frames
    that are as thick as the closest two are apart: those follow each other on a coarser series.
    Elsewhere it is the closest two's distance, or the thickness where frames are sparse.

    Args:
        apart: distances from one frame to the next, mm.
        normal: unit vector across the slices.
    """
    across_ct = np.reshape(ct.direction, (3, 3))[:, 2]
    closest = float(apart.min()) if apart.size else 0.0
    if thickness and abs(closest - thickness) < OFF_PLANE * thickness:
        return closest
    if abs(normal @ across_ct) > 0.999 and _are_steps(apart, ct.spacing[2]):
        return ct.spacing[2]
    if not thickness or 0 < closest < thickness:  # overlapping ones are thicker
        return closest or ct.spacing[2]
    uneven = apart.size > 1 and float(np.ptp(apart)) > OFF_PLANE * thickness
    sparse = closest > MOST_GAP * thickness or (uneven and _are_steps(apart, thickness))
    return thickness if sparse or not closest else closest


def _are_steps(apart: np.ndarray, step: float) -> bool:
    """Whether all distances are whole numbers of steps."""
    steps = apart / step
    return bool((np.abs(steps - np.rint(steps)) < OFF_PLANE).all())


def _onto(image: sitk.Image, grid: Grid) -> np.ndarray:
    """A segment on another grid, nearest neighbour, boolean ``[z, y, x]``."""
    moved = sitk.Resample(
        image,
        grid.size,
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
        grid.origin,
        grid.spacing,
        grid.direction,
        0.0,
        sitk.sitkUInt8,
    )
    return sitk.GetArrayFromImage(moved) > 0
