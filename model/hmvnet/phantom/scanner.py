"""Scanners: how a scene of tissues becomes a CT and a PET image on their own grids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from .anatomy import AIR, FAT, MUSCLE, Anatomy
from .shapes import Array, Blob, Ellipsoid, Field, Lattice, Point, Shape, label, paint

ACTIVITY_MM = 2.8
SKIN_SUV = 0.4


@dataclass(frozen=True)
class Style:
    """A make of scanner and its protocol. Lengths in mm; pairs are (in plane, between slices)."""

    ct_spacing: tuple[float, float]
    ct_matrix: int
    ct_noise_hu: float
    contrast: float
    pet_spacing: tuple[float, float]
    pet_matrix: int
    pet_fwhm: float
    pet_noise: float
    suv_scale: float = 1.0


# Styles only: named after the centres of HECKTOR, in the order of their CenterID, but invented.
CENTERS: Mapping[str, Style] = {
    "HGJ": Style((1.17, 3.27), 288, 12.0, 0.2, (3.52, 3.27), 144, 6.0, 0.09),
    "CHUS": Style((1.17, 3.0), 288, 16.0, 0.2, (4.0, 4.0), 128, 6.5, 0.12),
    "HMR": Style((1.2, 3.27), 288, 14.0, 0.3, (3.52, 3.27), 144, 6.0, 0.10),
    "CHUM": Style((1.1, 2.0), 288, 18.0, 0.4, (4.0, 4.0), 144, 6.5, 0.13),
    "CHUV": Style((1.37, 3.27), 256, 10.0, 0.2, (2.73, 3.27), 168, 5.0, 0.09),
    "CHUP": Style((0.98, 2.5), 320, 15.0, 0.9, (4.07, 2.0), 144, 5.0, 0.12),
    "MDA": Style((1.0, 2.5), 320, 9.0, 0.95, (5.47, 3.27), 104, 7.0, 0.08),
    "USZ": Style((1.37, 3.27), 256, 12.0, 0.5, (2.34, 3.27), 168, 4.5, 0.13),
}


@dataclass(frozen=True)
class PaintedLesion:
    """A lesion in one modality: its value (or field of values), that of its necrotic core apart.

    ``spared`` is the share of the anatomy's barriers that is left where it overlaps them.
    """

    blob: Blob
    core: Blob | None
    value: float | Field
    spared: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A sampling grid with the identity direction: size and spacing (x, y, z), origin in LPS mm."""

    size: tuple[int, int, int]
    spacing: Point
    origin: Point


@dataclass(frozen=True)
class Scan:
    """Pose of the patient and the two grids. world = rotation @ (scale * canonical) + position."""

    center: str
    scale: Point
    rotation: Point
    position: Point
    pet_shift: Point
    pet_turn: Point
    ct: Frame
    pet: Frame
    contrast: bool
    arms_up: bool
    style: Style

    def lattice(self, frame: Frame, moved: bool = False) -> Lattice:
        """Voxel centres of a frame in the canonical frame; ``moved`` adds the PET misalignment."""
        turn, position = Rotation.from_euler("xyz", self.rotation, degrees=True), self.position
        if moved:
            turn = Rotation.from_euler("xyz", self.pet_turn, degrees=True) * turn
            position = tuple(np.add(position, self.pet_shift))
        inverse = np.linalg.inv(turn.as_matrix() @ np.diag(self.scale))
        return Lattice(
            shape=frame.size[::-1],
            matrix=inverse @ np.diag(frame.spacing),
            offset=inverse @ np.subtract(frame.origin, position),
        )


def draw_scan(
    rng: np.random.Generator, center: str, whole_body: bool, style: Style | None = None
) -> Scan:
    """Draw body size, pose, misalignment and both fields of view; of another style than usual."""
    style = style or CENTERS[center]
    scale = tuple(np.clip(rng.normal(1.0, 0.03, 3) * rng.normal(1.0, 0.03), 0.88, 1.12))
    tilted = rng.random() < 0.2
    # the whole body turns about the throat, so a large angle would take the legs out of the picture
    limit = (3.0, 2.0, 8.0) if whole_body else (15.0, 8.0, 10.0)
    tilt = rng.uniform(-1, 1, 3) * limit if tilted else np.zeros(3)
    position = tuple(rng.normal(0, (25, 40, 1)) + (0, -150, rng.uniform(-800, 400)))
    shift = rng.normal(size=3)
    length = 6.0 if rng.random() < 0.05 else rng.uniform(0, 3)
    # head and neck: from above the vertex, or from below the brain, to the upper mediastinum
    below_brain = not whole_body and rng.random() < 0.12
    top = (55.0 if below_brain else 175.0) + rng.uniform(-8, 8)
    bottom = -860.0 if whole_body else rng.uniform(-200, -160)
    if whole_body:
        ct_spacing, ct_matrix, pet_matrix = (2.34, 3.75), 216, style.pet_matrix
    else:
        ct_spacing, ct_matrix, pet_matrix = style.ct_spacing, style.ct_matrix, style.pet_matrix
    middle = np.add(position, (*rng.normal(0, 8, 2), 0.0)) + (0, -2, 0)
    ct = _frame(middle, ct_spacing, ct_matrix, position[2] + bottom, position[2] + top)
    ends = rng.uniform(-12, 12, 2)
    pet_middle = np.add(position, (*rng.normal(0, 10, 2), 0.0))
    pet_low, pet_high = position[2] + bottom + ends[0], position[2] + top + ends[1]
    pet = _frame(pet_middle, style.pet_spacing, pet_matrix, pet_low, pet_high)
    return Scan(
        center=center,
        scale=_point(scale),
        rotation=_point(tilt),
        position=_point(position),
        pet_shift=_point(shift / np.linalg.norm(shift) * length),
        pet_turn=_point(rng.uniform(-0.7, 0.7, 3)),
        ct=ct,
        pet=pet,
        contrast=bool(rng.random() < style.contrast),
        arms_up=bool(whole_body and rng.random() < 0.5),
        style=style,
    )


def acquire_ct(
    scan: Scan,
    anatomy: Anatomy,
    lesions: Iterable[PaintedLesion],
    rng: np.random.Generator,
    compact: bool,
) -> sitk.Image:
    """CT in HU, int16, on ``scan.ct``; the lesions' values are HU."""
    lattice = scan.lattice(scan.ct)
    hu = np.full(lattice.shape, AIR, dtype=np.float32)
    lesions = list(lesions)
    _fill_body(hu, lattice, anatomy, [lesion.blob for lesion in lesions], (AIR, FAT, MUSCLE))
    for tissue in anatomy.tissues:
        if tissue.hu is not None:
            paint(hu, lattice, tissue.shape, tissue.hu)
    _paint_lesions(hu, lattice, lesions, 18.0, anatomy.barriers)
    outside = hu == AIR if compact else None
    if anatomy.metal is not None:
        _streaks(hu, lattice, anatomy.metal, rng)
    _add_ct_noise(hu, scan.style.ct_noise_hu, rng)
    if outside is not None:
        hu *= 0.25
        np.rint(hu, out=hu)
        hu *= 4.0
        hu[outside] = AIR
    np.clip(hu, -1024, 3071, out=hu)
    return _image(hu.astype(np.int16), scan.ct)


def _paint_lesions(
    volume: Array,
    lattice: Lattice,
    lesions: Iterable[PaintedLesion],
    core_value: float,
    barriers: Sequence[Shape],
) -> None:
    """Each lesion into ``volume``, its necrotic core with ``core_value``, barriers as it spares."""
    for lesion in lesions:
        window = lattice.window(lesion.blob, lattice.voxel) if lesion.spared else None
        before = None if window is None else volume[window].copy()
        paint(volume, lattice, lesion.blob, lesion.value)
        if lesion.core is not None:
            paint(volume, lattice, lesion.core, core_value)
        if window is not None and before is not None:
            depth = -_distance(barriers, lattice, window)
            cover = np.clip(depth / np.float32(lattice.voxel) + np.float32(0.5), 0.0, 1.0)
            volume[window] += np.float32(lesion.spared) * cover * (before - volume[window])


def _distance(
    shapes: Sequence[Shape], lattice: Lattice, window: tuple[slice, slice, slice]
) -> Array:
    """Signed distance in mm to the nearest of some shapes, in a window."""
    x, y, z = lattice.coordinates(window)
    nearest = np.full(tuple(s.stop - s.start for s in window), np.inf, dtype=np.float32)
    for shape in shapes:
        np.minimum(nearest, shape.distance(x, y, z), out=nearest)
    return nearest


def acquire_pet(
    scan: Scan,
    anatomy: Anatomy,
    lesions: Iterable[PaintedLesion],
    rng: np.random.Generator,
    compact: bool,
) -> sitk.Image:
    """PET in SUV, float32, on ``scan.pet``; the lesions' values are SUV."""
    style = scan.style
    frame = _activity_frame(scan)
    lattice = scan.lattice(frame, moved=True)
    suv = np.zeros(lattice.shape, dtype=np.float32)
    lesions = list(lesions)
    _fill_body(suv, lattice, anatomy, [lesion.blob for lesion in lesions], (0.02, SKIN_SUV, 0.7))
    for tissue in anatomy.tissues:
        if tissue.suv is not None:
            paint(suv, lattice, tissue.shape, tissue.suv)
    _paint_lesions(suv, lattice, lesions, 1.2, anatomy.barriers)
    suv = gaussian_filter(suv, style.pet_fwhm / 2.355 / ACTIVITY_MM, truncate=3.0)
    reference = sitk.Image(*scan.pet.size, sitk.sitkFloat32)
    reference.SetSpacing(scan.pet.spacing)
    reference.SetOrigin(scan.pet.origin)
    image = sitk.Resample(_image(suv, frame), reference, sitk.Transform(), sitk.sitkLinear, 0.0)
    pet = sitk.GetArrayFromImage(image)
    _add_pet_noise(pet, style.pet_noise, rng)
    if style.suv_scale != 1.0:
        pet *= np.float32(style.suv_scale)
    if compact:
        pet = np.rint(pet * 256.0) / np.float32(256.0)
    return _image(pet.astype(np.float32), scan.pet)


def draw_mask(
    scan: Scan, lesions: Iterable[tuple[int, Blob, float]], barriers: Sequence[Shape] = ()
) -> sitk.Image:
    """Label map, uint8, on the CT grid; where two lesions meet the smaller label wins.

    ``lesions`` are (label, blob, spared); of one that spares all, barriers are no part.
    """
    lattice = scan.lattice(scan.ct)
    mask = np.zeros(lattice.shape, dtype=np.uint8)
    for value, blob, spared in sorted(lesions, key=lambda lesion: -lesion[0]):
        window = lattice.window(blob, 0.0) if spared >= 1 else None
        before = None if window is None else mask[window].copy()
        label(mask, lattice, blob, value)
        if window is not None and before is not None:
            kept = _distance(barriers, lattice, window) < 0
            mask[window][kept] = before[kept]
    return _image(mask, scan.ct)


def _fill_body(
    volume: Array,
    lattice: Lattice,
    anatomy: Anatomy,
    lesions: list[Blob],
    values: tuple[float, float, float],
) -> None:
    """Background, subcutaneous fat, and the inside: muscle in the head, mostly fat in the neck."""
    background, fat, muscle = values
    volume[...] = background
    body = anatomy.body
    for limb in body.limbs:
        paint(volume, lattice, limb, 0.4 * fat + 0.6 * muscle)
    # a lump near the skin bulges instead of sticking out of it
    for blob in lesions:
        paint(volume, lattice, blob.scaled(1.0 + 5.0 / min(blob.radii)), fat)
    window = lattice.window(body.outline, lattice.voxel)
    if window is None:
        return
    x, y, z = lattice.coordinates(window)
    depth = -body.outline.distance(x, y, z)
    part = volume[window]
    # how much of the inside is muscle, by height
    share = np.interp(z, (-180, -130, -100, -45, -25, 60), (0.9, 0.6, 0.25, 0.2, 0.75, 0.95))
    inside = np.float32(fat) + share.astype(np.float32) * np.float32(muscle - fat)
    edge = np.float32(1.0 / lattice.voxel)
    fill = np.clip((depth - np.float32(body.fat_mm)) * edge + np.float32(0.5), 0, 1)
    fill = np.float32(fat) + fill * (inside - np.float32(fat))
    cover = np.clip(depth * edge + np.float32(0.5), 0, 1)
    part += cover * (fill - part)


def _streaks(hu: Array, lattice: Lattice, metal: Point, rng: np.random.Generator) -> None:
    """Bright and dark rays around a filling, in the slices that cut it."""
    window = lattice.window(Ellipsoid(metal, (70, 70, 3)), 0.0)
    if window is None:
        return
    x, y, z = lattice.coordinates(window)
    angle = np.arctan2(y - np.float32(metal[1]), x - np.float32(metal[0]))
    away = np.hypot(y - np.float32(metal[1]), x - np.float32(metal[0]))
    rays = sum(np.cos(m * angle + rng.uniform(0, 6.28)) for m in (4, 7, 11))
    strength = 120.0 * np.exp(-away / 30.0 - ((z - np.float32(metal[2])) / 2.5) ** 2)
    part = hu[window]
    part += np.where(part > -300, rays * strength, 0).astype(np.float32)


def _add_ct_noise(hu: Array, sd: float, rng: np.random.Generator) -> None:
    """Noise with a little in-plane correlation, slice by slice to stay in the cache."""
    _, rows, columns = hu.shape
    for part in hu:
        noise = rng.standard_normal((rows + 1, columns + 1), dtype=np.float32)
        noise = noise[:-1] + np.float32(0.6) * noise[1:]
        noise = noise[:, :-1] + np.float32(0.6) * noise[:, 1:]
        noise *= np.float32(sd / 1.36)
        part += noise


def _add_pet_noise(pet: Array, level: float, rng: np.random.Generator) -> None:
    """Noise whose variance grows with the activity, with the grain of a reconstruction."""
    noise = gaussian_filter(rng.standard_normal(pet.shape, dtype=np.float32), 0.6, truncate=2.0)
    noise *= np.float32(level) / noise.std() * np.sqrt(pet + np.float32(0.02))
    pet += noise
    np.maximum(pet, 0.0, out=pet)


def _activity_frame(scan: Scan) -> Frame:
    """A fine grid over the part of the PET field of view that can hold the patient."""
    low = np.asarray(scan.pet.origin) - 8.0
    high = np.add(scan.pet.origin, np.multiply(scan.pet.size, scan.pet.spacing)) + 8.0
    low[:2] = np.maximum(low[:2], np.subtract(scan.position[:2], (285, 175)))
    high[:2] = np.minimum(high[:2], np.add(scan.position[:2], (285, 175)))
    x, y, z = (int(n) + 1 for n in np.ceil((high - low) / ACTIVITY_MM))
    return Frame((x, y, z), (ACTIVITY_MM,) * 3, _point(low))


def _frame(
    middle: NDArray[np.float64], spacing: tuple[float, float], matrix: int, low: float, high: float
) -> Frame:
    plane, slices = spacing
    size = (matrix, matrix, max(8, round((high - low) / slices)))
    half = plane * (matrix - 1) / 2
    origin = (round(middle[0] - half, 2), round(middle[1] - half, 2), round(low, 2))
    return Frame(size, (plane, plane, slices), _point(origin))


def _image(array: NDArray, frame: Frame) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(frame.spacing)
    image.SetOrigin(frame.origin)
    return image


def _point(values: Iterable[float]) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z
