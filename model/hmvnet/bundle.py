"""Weight bundles: a folder with ``manifest.json`` and safetensors files. Nothing is unpickled.

The manifest says which network this is and with which settings, how images were preprocessed,
what it was trained on and what it reached, and the sha256 of every file; loading refuses a file
whose hash differs.
"""

from __future__ import annotations

import re
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from hmvnet import __version__
from hmvnet.case import CLASSES, CaseError
from hmvnet.config import (
    InterfaceName,
    PostprocessingSettings,
    PreprocessingSettings,
    RegionName,
    Settings,
    Windows,
)
from hmvnet.exits import RefusedError, shown
from hmvnet.files import (
    SHORT,
    clear_leftovers,
    digest,
    lies_inside,
    read_bounded,
    replacing,
    sha256,
    visible,
    write_text,
)
from hmvnet.imaging.network_input import NetworkInput
from hmvnet.reading.names import first
from hmvnet.reading.records import read_json

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 1 << 24
MAX_WEIGHT_BYTES = 1 << 31
PLATFORM_MODEL_DIR = Path("/opt/ml/model")
DEFAULT_BUNDLE = "hmvnet-base"
UNPACKED = ".unpacked"  # marks a downloaded bundle that is there whole
# In a wheel the weights lie in the package; in a checkout and in the container beside model/.
SHIPPED = (Path(__file__).parent / "weights", Path(__file__).parents[2] / "weights")


class WeightsError(RefusedError):
    """A weight bundle is missing, damaged or of another format."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _windows(value: object) -> object:
    """As bundles of before said it."""
    return {True: "always", False: "never"}[value] if isinstance(value, bool) else value


class SegmentationPart(_Part):
    """The networks of the ensemble: one file a fold.

    Attributes:
        windows: whether they are run in sliding windows, though they may see a whole region in one
            pass: never, always, or both, whose mean counts. Bundles of before say true or false.
        input: the preprocessing that the networks bring; None: they see the working volume.
        seen: for every file, the fingerprints of the patients it was trained on
            (``fingerprint``), so that Task 2 can keep its lesion features out of sample without
            the bundle naming a patient.
        beside: networks of other kinds, averaged with these.
    """

    network: str
    options: dict[str, Any] = {}
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt]
    windows: Annotated[Windows, BeforeValidator(_windows)] = "never"
    files: list[str]
    input: NetworkInput | None = None
    seen: list[list[str]] = []
    beside: list[SegmentationPart] = []

    @property
    def parts(self) -> list[SegmentationPart]:
        """These networks, and those beside them."""
        return [self, *(part for other in self.beside for part in other.parts)]

    @property
    def all_files(self) -> list[str]:
        """A file a network, whatever its kind."""
        return [file for part in self.parts for file in part.files]

    @property
    def all_seen(self) -> list[list[str]]:
        """For each of ``all_files`` what it has seen; too few where a part does not say."""
        return [marks for part in self.parts for marks in part.seen]

    def part_of(self, file: str) -> SegmentationPart:
        """The networks that one of ``all_files`` belongs to."""
        return next(part for part in self.parts if file in part.files)


class RecordFreePart(_Part):
    """The survival model of images and lesions alone, for patients without a health record.

    ``shift + scale * risk`` is the risk of the same hazard by the model that sees the record.
    """

    settings: dict[str, Any]
    files: Annotated[list[str], Field(min_length=1)]
    shift: FiniteFloat
    scale: Annotated[FiniteFloat, Field(gt=0)]


class PrognosisPart(_Part):
    """The survival model: tensors of the fusion network and of the ICARE head, a file a fold.

    ``curve`` is the state of a ``hmvnet.prognosis.curve.SurvivalCurve``; bundles of before know
    ``expected_days`` for a few risks in its place. ``crop_features`` are the encoder features of
    the lesions' crops that it looks at, if any. ``seen`` are fingerprints of the patients it was
    fitted to.
    """

    settings: dict[str, Any]
    clinical: list[dict[str, Any]]
    lesion_features: list[str]
    crop_features: list[str] = []
    risk_quantiles: Annotated[list[FiniteFloat], Field(min_length=1)]
    expected_days: list[Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]] = []
    curve: dict[str, Any] | None = None
    without_record: RecordFreePart | None = None
    seen: list[str] = []
    files: Annotated[list[str], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> PrognosisPart:
        if len(self.clinical) != len(self.files):
            raise ValueError(f"{len(self.clinical)} clinical states for {len(self.files)} files")
        for risks in (self.risk_quantiles, [risk for risk, _ in self.expected_days]):
            if risks != sorted(risks):
                raise ValueError("risks that do not rise")
        return self

    @property
    def all_files(self) -> list[str]:
        """Those of the model without a record too."""
        return [*self.files, *(self.without_record.files if self.without_record else ())]


class StagingPart(_Part):
    """The staging models of T and N: their features by name, and one file of tensors.

    ``file`` holds the arrays of ``hmvnet.staging.model.StageModel`` as ``t.<name>`` and
    ``n.<name>``; ``seen`` are fingerprints of the patients that they were fitted to.
    """

    t_features: Annotated[list[str], Field(min_length=1)]
    n_features: Annotated[list[str], Field(min_length=1)]
    seen: list[str] = []
    file: str


class Manifest(_Part):
    """``manifest.json``.

    Attributes:
        other_settings: whether region or preprocessing are not those that the networks were
            trained with, but asked for since.
        volumes_ml: by class, the smallest and the largest volume of it that a training patient had
            in all, of those that had any; only for the bundle's own region.
        files: file names to sha256.
    """

    format: int = FORMAT
    name: str
    classes: list[str] = list(CLASSES)
    region: RegionName = "head-neck"
    interface: InterfaceName = "auto"
    preprocessing: PreprocessingSettings
    postprocessing: PostprocessingSettings
    segmentation: SegmentationPart
    other_settings: bool = False
    prognosis: PrognosisPart | None = None
    volumes_ml: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}
    staging: StagingPart | None = None
    trained_on: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, str] = {}


def fingerprint(patient_id: str) -> str:
    """A patient's name, hashed: enough to recognise it, not to read it."""
    return sha256(unicodedata.normalize("NFC", patient_id).encode())[:SHORT]


def _recognised(patient_ids: Iterable[str], marks: set[str]) -> list[str]:
    """Those of the patients whose fingerprint is among the marks."""
    return [name for name in patient_ids if fingerprint(name) in marks]


class Bundle:
    """A loaded manifest and checked access to its files.

    Attributes:
        manifest: with what was asked for in the place of its own (``adjusted``).
        stored: as it lies in the folder.
    """

    def __init__(self, folder: Path, manifest: Manifest, stored: Manifest | None = None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.stored = stored or manifest

    @property
    def says_whom_it_saw(self) -> bool:
        """Whether of each segmentation network it is known which patients it was trained on."""
        part = self.manifest.segmentation
        return len(part.all_seen) == len(part.all_files)

    def seen_among(self, patient_ids: Iterable[str]) -> list[str]:
        """Those of the patients that any of the segmentation networks is known to have seen."""
        marks = {mark for marks in self.manifest.segmentation.all_seen for mark in marks}
        return _recognised(patient_ids, marks)

    def fitted_among(self, patient_ids: Iterable[str]) -> list[str]:
        """Those of the patients that the survival model was fitted to."""
        part = self.manifest.prognosis
        return _recognised(patient_ids, set(part.seen) if part else set())

    def staged_among(self, patient_ids: Iterable[str]) -> list[str]:
        """Those of the patients that the staging models were fitted to."""
        part = self.manifest.staging
        return _recognised(patient_ids, set(part.seen) if part else set())

    def all_tensors(self, without: Iterable[str] = ()) -> dict[str, dict[str, Tensor]]:
        """The tensors of every part's files by file, but of those in ``without``.

        What was made of them, such as ONNX files, is not among them.
        """
        left_out = set(without)
        names = [name for name in self.manifest.files if name.endswith(".safetensors")]
        return {name: self.tensors(name) for name in names if name not in left_out}

    def adjusted(self, settings: Settings) -> tuple[Bundle, tuple[str, ...]]:
        """With what the settings say explicitly in the place of the bundle's own, and notes on it.

        Of the sections ``preprocessing`` and ``postprocessing``, and ``data.region`` and
        ``data.interface``; what is only a default there leaves the bundle's value as it is.
        """
        manifest, notes = self.manifest, []
        changes: dict[str, Any] = {}
        for name in ("preprocessing", "postprocessing"):
            own, given = getattr(manifest, name), getattr(settings, name)
            other = {
                key: getattr(given, key)
                for key in sorted(given.model_fields_set)
                if getattr(given, key) != getattr(own, key)
            }
            changes[name] = own.model_copy(update=other)
            notes += [
                f"{name}.{k}={v}, the bundle's is {getattr(own, k)}" for k, v in other.items()
            ]
        if "region" in settings.data.model_fields_set and settings.data.region != manifest.region:
            changes |= {"region": settings.data.region, "volumes_ml": {}}
            notes.append(f"data.region={settings.data.region}, the bundle's is {manifest.region}")
        if changes["preprocessing"] != manifest.preprocessing or "region" in changes:
            changes["other_settings"] = True  # of what is made of this bundle, too
        if "interface" in settings.data.model_fields_set:
            changes["interface"] = settings.data.interface
        return Bundle(self.folder, manifest.model_copy(update=changes), self.stored), tuple(notes)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one safetensors file, those of float16 as float32.

        Raises:
            WeightsError: the file is not in the manifest, missing, or its hash differs.
        """
        try:
            state = load_tensors(self.read(name))
        except (SafetensorError, KeyError) as error:  # KeyError: a type that torch has not
            raise WeightsError(f"{name}: not a safetensors file") from error
        return {k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()}

    def size(self, name: str) -> int:
        """Bytes of one file; 0 where it is missing."""
        path = self.folder / name
        return path.stat().st_size if path.is_file() else 0

    def read(self, name: str) -> bytes:
        """The bytes of one file, hash checked."""
        expected = self.manifest.files.get(name)
        if expected is None or Path(name).name != name:
            raise WeightsError(f"{shown(name)}: not a file of the bundle '{self.manifest.name}'")
        try:
            data = read_bounded(_inside(self.folder, name), MAX_WEIGHT_BYTES)
        except RefusedError as error:
            raise WeightsError(f"weights of '{self.manifest.name}': {error}") from error
        found = sha256(data)
        if found != expected:
            raise WeightsError(
                f"{name}: sha256 {found[:12]}... differs from the manifest's {expected[:12]}..."
            )
        return data


def find_bundle(
    explicit: Path | str | None = None,
    shipped: Sequence[Path] = SHIPPED,
    *,
    uploaded: bool = True,
) -> Path:
    """The bundle's folder: explicit, else the platform's model upload, else the shipped one.

    Args:
        explicit: a folder, or an address as ``fetch_bundle`` takes it.
        shipped: where the shipped bundles lie.
        uploaded: whether the platform's upload is looked at.

    A folder without a manifest of its own may hold exactly one bundle, or the default one.

    Raises:
        WeightsError: nothing found; says where it looked. Or an upload that holds no bundle: the
            shipped weights are not to be taken for it.
    """
    if explicit and "://" in str(explicit):
        explicit = fetch_bundle(str(explicit))
    upload = [PLATFORM_MODEL_DIR] if uploaded else []
    places = [Path(explicit)] if explicit else [*upload, *shipped]
    for place in places:
        clear_leftovers(place.parent, place.name)
        clear_leftovers(place)
        for folder in (place, place / DEFAULT_BUNDLE):
            if (folder / MANIFEST).is_file():
                return folder
        inner = visible(p.parent for p in place.glob(f"*/{MANIFEST}"))
        if len(inner) == 1:
            return inner[0]
        if inner:
            names = ", ".join(p.name for p in inner)
            raise WeightsError(f"weights: several bundles ({names}); name one of them")
        if place in upload and place.is_dir() and (found := visible(place.iterdir())):
            names = first([shown(p.name) for p in found])
            raise WeightsError(
                f"weights: {place} holds no bundle, found {names}; expected "
                f"{MANIFEST} there or one folder below, as export.sh model packs it"
            )
    raise WeightsError(f"weights: no bundle ({MANIFEST}) in {' or '.join(map(str, places))}")


def fetch_bundle(address: str, cache: Path | None = None) -> Path:
    """A bundle from the network, kept: nothing is downloaded but what the user gave the hash of.

    Args:
        address: ``https://.../bundle.tar.gz#sha256=<64 hexadecimal digits>``, a tar archive of a
            bundle's folder or of its files, as ``export.sh model`` writes it.
        cache: where downloads are kept; default: the user's cache folder.

    Raises:
        WeightsError: no hash is given, nothing can be had from there, the hash is another, or it is
            no archive.
    """
    import pooch

    url, _, known = address.partition("#sha256=")
    known = known.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", known):
        raise WeightsError(
            f"{url}: expected <URL>#sha256=<64 hexadecimal digits>; nothing is downloaded without "
            "the hash of what it has to be"
        )
    cache = cache or pooch.os_cache("hmvnet")
    folder = cache / known
    if (folder / UNPACKED).is_file() and _manifests(folder):
        return folder
    pooch.get_logger().setLevel("WARNING")
    with TemporaryDirectory() as scratch:
        try:
            archive = pooch.retrieve(url, f"sha256:{known}", path=scratch, progressbar=False)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise WeightsError(f"{url}: {error}") from error
        try:
            with replacing(folder) as temporary, tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
                (temporary / UNPACKED).touch()
                if not _manifests(temporary):
                    raise tarfile.TarError(f"no {MANIFEST} in it")
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's
                raise
            raise WeightsError(f"{url}: not an archive of a bundle: {error}") from error
    return folder


def _manifests(folder: Path) -> list[Path]:
    """The manifests of a folder and of those in it."""
    return [*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")]


def load_bundle(folder: Path) -> Bundle:
    """A bundle with its manifest checked; file hashes are checked when files are read.

    Raises:
        WeightsError: the manifest is missing, too large, not JSON, of another format, incomplete,
            or a link that leaves the folder.
    """
    clear_leftovers(folder.parent, folder.name)
    path = _inside(folder, MANIFEST)
    try:
        raw, repairs = read_json(path, MAX_MANIFEST_BYTES)
    except CaseError as error:
        raise WeightsError(f"{path}: not a readable manifest: {error}") from error
    if repairs:  # written by a program, and changed since
        raise WeightsError(f"{path}: not a manifest as it was written: {repairs[0]}")
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        raise WeightsError(f"{path}: bundle format {shown(repr(found))}, expected {FORMAT}")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = shown(".".join(map(str, first["loc"])))
        raise WeightsError(f"{path}: {where}: {shown(first['msg'], 200)}") from error
    if manifest.classes != list(CLASSES):
        found = shown(repr(manifest.classes))
        raise WeightsError(f"{path}: classes {found}, expected {list(CLASSES)}")
    if not all(part.files for part in manifest.segmentation.parts):
        raise WeightsError(f"{path}: segmentation without files, expected one a network")
    return Bundle(folder, manifest)


def _inside(folder: Path, name: str) -> Path:
    if not lies_inside(folder, name):
        raise WeightsError(f"{folder}: '{shown(name)}' leaves the bundle's folder, or is no path")
    return folder / name


def write_bundle(
    folder: Path, manifest: Manifest, files: Mapping[str, Mapping[str, Tensor]]
) -> Path:
    """Write a bundle in the place of ``folder``, whole or not at all.

    Args:
        manifest: its ``files`` are filled in here.
        files: file name -> tensors. Those of float32 with more than one axis are stored as
            float16, which halves the bundle; float64 (the ICARE head) stays as it is, and so do
            networks with a preprocessing of their own: they are to say what they said elsewhere.

    Raises:
        WeightsError: a file is larger than one of a bundle may be.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        hashes = {}
        whole = {f for part in manifest.segmentation.parts if part.input for f in part.files}
        for name, tensors in files.items():
            halve = name not in whole
            data = save_tensors({k: _compact(v, halve) for k, v in tensors.items()})
            if len(data) > MAX_WEIGHT_BYTES:  # it could not be read again
                raise WeightsError(
                    f"{name}: {len(data)} bytes, a file of a bundle has at most {MAX_WEIGHT_BYTES}"
                )
            (temporary / name).write_bytes(data)
            hashes[name] = sha256(data)
        _write_manifest(manifest.model_copy(update={"files": hashes}), temporary)
    return folder


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def state_of(manifest: Manifest) -> str:
    """This version and a bundle, with what was put in the place of its settings, as a digest."""
    return digest(__version__, manifest.model_dump(mode="json"))


def check_other(target: Path, source: Path) -> None:
    """A bundle made of another is not to take its place.

    Raises:
        RefusedError: they are one folder.
    """
    if target.resolve() == source.resolve():
        raise RefusedError(f"{target} is the bundle that a new one is to be made of: another --run")


def refuse_loss(target: Path, source: Bundle, made: Callable[[Manifest], object]) -> None:
    """What is made of a bundle takes neither its place nor that of other networks.

    Args:
        made: whether what is there was made in the same way before.

    Raises:
        RefusedError: as ``check_other``, or networks or models on top of them would be lost.
    """
    check_other(target, source.folder)
    try:
        present = load_bundle(target).manifest
    except WeightsError:  # nothing, or damaged
        return
    if not made(present) and not set(present.files.values()) <= set(source.manifest.files.values()):
        raise RefusedError(
            f"{target}: holds networks, or models on top of them, that '{source.manifest.name}' "
            "lacks, and would be lost; use another --run, or give --weights of those, from another "
            "folder"
        )


def add_file(folder: Path, name: str) -> None:
    """Enter a file that was put into a bundle's folder into its manifest."""
    manifest = load_bundle(folder).manifest
    files = manifest.files | {name: sha256(folder / name)}
    _write_manifest(manifest.model_copy(update={"files": files}), folder)


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    write_text(manifest.model_dump_json(indent=2) + "\n", folder / MANIFEST)


def _compact(tensor: Tensor, halve: bool) -> Tensor:
    half = halve and tensor.dtype == torch.float32 and tensor.ndim > 1
    return tensor.detach().cpu().to(torch.float16 if half else tensor.dtype).contiguous().clone()
