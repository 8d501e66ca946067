"""The challenge's output folder: mask and risk, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk

from hmvnet.case import CaseError
from hmvnet.files import lies_inside, make_folder, write_text
from hmvnet.reading.images import write_image

MASK_PATH = Path("images/tumor-lymph-node-segmentation/output.mha")
RISK_PATH = Path("rfs.json")


class OutputFolder:
    """Writes the outputs of one case: all of them or none.

    Outputs of an earlier run are removed on entry, so that a failure cannot leave a stale mask to
    be taken for a result.
    """

    def __init__(self, output_dir: Path) -> None:
        self.root = output_dir
        self.written: list[Path] = []

    def __enter__(self) -> OutputFolder:
        try:
            make_folder(self.root)
            for stale in (MASK_PATH, RISK_PATH):
                if not lies_inside(self.root, stale.parent):  # a link itself is replaced
                    raise CaseError(f"{stale}: a link leads out of the output folder {self.root}")
                (self.root / stale).unlink(missing_ok=True)
        except OSError as error:
            raise CaseError(f"output folder {self.root} cannot be written") from error
        return self

    def write_mask(self, mask: sitk.Image) -> Path:
        """The uint8 label mask on the CT grid."""
        return self._write(MASK_PATH, lambda path: write_image(mask, path))

    def write_json(self, value: float, relative: Path = RISK_PATH) -> Path:
        """One finite number: risk (or expected days, for the 2026 interface)."""
        text = json.dumps(float(value), allow_nan=False)
        return self._write(relative, lambda path: write_text(text, path))

    def _write(self, relative: Path, write: Callable[[Path], None]) -> Path:
        path = self.root / relative
        self.written.append(path)
        write(path)
        return path

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            for path in self.written:
                path.unlink(missing_ok=True)
