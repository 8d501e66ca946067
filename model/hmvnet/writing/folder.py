"""A patient's folder: what is said of one patient, as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hmvnet.bundle import Manifest
from hmvnet.exits import RefusedError, leave_where_asked
from hmvnet.files import is_leftover, replacing
from hmvnet.pipeline import Prediction
from hmvnet.reading.images import write_image
from hmvnet.reading.series import Series
from hmvnet.segmentation.confidence import entropy as entropy_of
from hmvnet.writing.page import write_page
from hmvnet.writing.report import UNSAID, Origin, write_lesions, write_report
from hmvnet.writing.thumbnail import write_thumbnail

MASK, REPORT, LESIONS = "mask.nii.gz", "report.json", "lesions.csv"
ENTROPY = "entropy.nii.gz"
PICTURE, PAGE, THUMBNAIL = "picture.png", "page.html", "thumbnail.png"
SEG, SR, RTSTRUCT = "seg.dcm", "report.dcm", "rtstruct.dcm"


def is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what ``write_folder`` writes, and so may be replaced."""
    ours = (MASK, REPORT, LESIONS, ENTROPY, PICTURE, PAGE, THUMBNAIL, SEG, SR, RTSTRUCT)
    return folder.is_dir() and all(p.name in ours or is_leftover(p) for p in folder.iterdir())


def write_folder(
    prediction: Prediction,
    manifest: Manifest,
    folder: Path,
    *,
    device: str = "",
    picture: bool = False,
    page: bool = False,
    entropy: bool = False,
    ct: Series | None = None,
    origin: Origin = UNSAID,
) -> list[str]:
    """Write mask, report and lesion table, the folder whole or not at all; then what is optional.

    The thumbnail is always made: a patient predicted alone may be one of a cohort's later.

    Args:
        origin: what the result is of, for the report.
        ct: the DICOM series that the CT was read from, where DICOM objects are wanted too.

    Returns:
        What could not be written of what is optional (pictures, maps, DICOM objects), a line each.

    Raises:
        RefusedError: the folder holds something else, which would be lost.
    """
    folder = folder.absolute()
    if folder.exists() and not is_ours(folder):
        raise RefusedError(f"{folder} is there, and not what this command writes")
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_image(prediction.mask, temporary / MASK)
        write_report(prediction, manifest, temporary / REPORT, device, origin)
        write_lesions(prediction, temporary / LESIONS)
    writers: dict[Path, Callable[[], object]] = {
        folder / THUMBNAIL: lambda: write_thumbnail(prediction, folder / THUMBNAIL)
    }
    problems = []
    if picture:
        writers[folder / PICTURE] = lambda: write_picture(prediction, folder / PICTURE)
    if entropy:
        writers[folder / ENTROPY] = lambda: write_entropy(prediction, folder / ENTROPY)
    if page:
        writers[folder / PAGE] = lambda: write_page(prediction, manifest, folder / PAGE, device)
    if ct is not None:
        from hmvnet.writing.dicom import dicom_writers  # highdicom only where it is asked for

        try:
            writers.update(dicom_writers(prediction, manifest, ct, folder))
        except Exception as error:  # of the CT's files, say, that are gone: the rest is whole
            leave_where_asked()
            # A path or a tag would say who the patient is.
            said = f": {error}" if isinstance(error, ImportError) else ""
            problems.append(f"DICOM objects not written: {type(error).__name__}{said}")
    return [*write_optional(writers).values(), *problems]


def write_picture(prediction: Prediction, path: Path) -> Path:
    """Slices and projections as PNG."""
    from hmvnet.writing.pictures import draw_prediction  # matplotlib only where pictures are made

    return draw_prediction(prediction, path)


def write_entropy(prediction: Prediction, path: Path) -> Path:
    """How unsure each voxel's class is, from 0 to 1, on the grid of the probabilities."""
    segmentation = prediction.segmentation
    write_image(segmentation.field.grid.image(entropy_of(segmentation.probabilities)), path)
    return path


def write_optional(writers: Mapping[Path, Callable[[], object]]) -> dict[Path, str]:
    """Call each file's writer; one that fails costs itself alone.

    A file of an earlier call is removed first: it is not to be taken for what could not be written.

    Returns:
        A line for each file that could not be written, on why.
    """
    failed = {}
    for path, write in writers.items():
        try:
            path.unlink(missing_ok=True)
            write()
        except Exception as error:  # whatever it is, what is required is whole
            leave_where_asked()
            failed[path] = f"{path.name} not written: {type(error).__name__}: {error}"
    return failed
