"""nnU-Net's own predictor on the case of ``bench case`` (extra ``nnunet``).

Its planner plans for this case's spacing and size (preset ResEnc-M); the network has random
weights, as only time counts, and nothing is mirrored. On a CPU the whole case takes long: some of
its windows can be timed, and the others be counted as the median of those.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hmvnet.case import GTVP, Grid
from hmvnet.experiments.bench import Ledger
from hmvnet.experiments.nnunet_process import NUMBER, Workshop, run_job
from hmvnet.files import remove
from hmvnet.reading.challenge import read_case
from hmvnet.reading.images import read_image
from hmvnet.writing.nnunet import ENDING, DatasetWriter

PRESET, CONFIGURATION = "ResEncM", "3d_fullres"
ROUNDS_BEFORE = 1  # windows that warm up


@dataclass(frozen=True)
class Timed:
    """What nnU-Net's predictor took.

    Attributes:
        patch: its window, z, y, x.
        timed, windows: how many were timed, of how many.
    """

    ledger: Ledger
    patch: tuple[int, ...]
    timed: int
    windows: int

    @property
    def title(self) -> str:
        """What was done."""
        patch = " x ".join(map(str, self.patch))
        counted = f"{self.timed} of {self.windows} windows timed, the others at their median"
        return (
            f"nnU-Net's own predictor on the same case: plan {PRESET}, windows of {patch}, no "
            f"mirroring ({counted if self.timed < self.windows else f'{self.windows} windows'})"
        )


def run_nnunet(folder: Path, mask: Path, windows: int = 0) -> Timed:
    """Plan for the case in ``folder`` and predict it, in a process of its own.

    Args:
        folder: of the case, as a grand-challenge input folder; nnU-Net's files go below it.
        mask: labels on the CT's grid, which its fingerprint of the data wants.
        windows: so many are timed; 0: all.

    Raises:
        RefusedError: nnU-Net is not installed.
        RuntimeError: it failed; names its log.
    """
    shop = Workshop(folder / "nnunet")
    remove(shop.folder)
    case = read_case(folder, needs_record=False)
    writer = DatasetWriter(shop.raw)
    writer.write(replace(case, truth=_with_any(read_image(mask)[0])))
    writer.close()
    images = [str(shop.raw / f"imagesTr/{case.patient_id}_{n:04d}{ENDING}") for n in (0, 1)]
    order = {"images": images, "out": str(shop.folder / f"mask{ENDING}"), "windows": windows}
    found = run_job(shop, "bench", order, "nnU-Net's windows")
    return Timed(Ledger(**found["ledger"]), tuple(found["patch"]), found["timed"], found["windows"])


def _with_any(labels: sitk.Image) -> sitk.Image:
    """Labels that are not all background: a plan without any foreground cannot be made."""
    array = sitk.GetArrayFromImage(labels)
    if not array.any():
        array[tuple(slice(n // 2, n // 2 + 8) for n in array.shape)] = GTVP
    return Grid.of(labels).image(array)


def predict_case(say: Any, images: list[str], out: str, windows: int) -> dict[str, Any]:
    """The job in nnU-Net's process: its plan, and its predictor step by step."""
    import torch
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as on_ct,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from hmvnet.experiments.nnunet_job import PLANNERS, plan, preprocessed

    plan(say, NUMBER, PRESET, CONFIGURATION, images=False)
    folder = preprocessed(NUMBER)
    plans = PlansManager(str(folder / f"{PLANNERS[PRESET][1]}.json"))
    dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    own = plans.get_configuration(CONFIGURATION)
    network = get_network_from_plans(
        own.network_arch_class_name,
        own.network_arch_init_kwargs,
        own.network_arch_init_kwargs_req_import,
        len(dataset["channel_names"]),
        len(dataset["labels"]),
        deep_supervision=False,
    ).eval()
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, plans, own, [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    clock = _Windows(predictor, windows, say)
    ledger = Ledger()
    with ledger("read"):
        reader = plans.image_reader_writer_class()
        data, properties = reader.read_images(images)
    with ledger("resample"):  # its crop and its normalisation among it
        made = own.preprocessor_class(verbose=False).run_case_npy(
            data, None, properties, plans, own, dataset
        )
        data, properties = torch.from_numpy(made[0]), made[-1]
    with ledger("network"):
        logits = predictor.predict_logits_from_preprocessed_data(data)
    ledger.seconds["network"] += clock.left_out
    logits = torch.nan_to_num(logits)  # where no window was
    with ledger("mask"):
        labels = on_ct(logits, plans, own, predictor.label_manager, properties)
    with ledger("write"):
        reader.write_seg(labels, out, properties)
    return {
        "ledger": asdict(ledger),
        "patch": [int(n) for n in own.patch_size],
        "timed": clock.timed,
        "windows": clock.windows,
    }


class _Windows:
    """Lets a predictor have some of its windows only, and times them."""

    def __init__(self, predictor: Any, wanted: int, say: Any) -> None:
        self.windows = self.timed = 0
        self.wanted, self.say = wanted, say
        self.starts: list[float] = []
        self.laid = predictor._internal_get_sliding_window_slicers
        self.network = predictor._internal_maybe_mirror_and_predict
        predictor._internal_get_sliding_window_slicers = self.lay
        predictor._internal_maybe_mirror_and_predict = self.predict

    def lay(self, size: Any) -> list[Any]:
        """The windows, or the first of them."""
        all_of_them = self.laid(size)
        self.windows = len(all_of_them)
        # One more, whose start is the end of the last that is timed.
        kept = all_of_them[: self.wanted + ROUNDS_BEFORE + 1] if self.wanted else all_of_them
        self.kept = len(kept)
        self.timed = self.wanted if self.kept < self.windows else self.windows
        return kept

    def predict(self, x: Any) -> Any:
        """A window; a window's seconds are those from its start to the next one's."""
        self.starts.append(time.perf_counter())
        self.say(done=len(self.starts), total=self.kept)
        return self.network(x)

    @property
    def left_out(self) -> float:
        """Seconds of the windows that were not predicted, at the median of those timed."""
        if self.kept == self.windows:
            return 0.0
        each = float(np.median(np.diff(self.starts)[ROUNDS_BEFORE:]))
        return (self.windows - self.kept) * each
