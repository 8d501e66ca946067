from shutil import copytree

import numpy as np
import pytest
from conftest import CT_GRID, ball, tensors_of, write_patient
from rich.console import Console

from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.config import PostprocessingSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments.tune import Kept, search, tune


def test_postprocessing_is_tuned_on_unseen_patients_only(tiny_bundle, tmp_path):

    write_patient(tmp_path / "data", "A-1", "plain")
    wanted = Settings(data={"root": str(tmp_path / "data")})
    quiet = Console(quiet=True)
    tuned = load_bundle(tune(wanted, tiny_bundle, tmp_path / "run", 0, quiet))
    # The survival model was fitted to lesions of the old postprocessing: it does not come along.
    assert list(tuned.manifest.files) == ["fold0.safetensors"] and not tuned.manifest.prognosis
    part = tuned.manifest.segmentation.model_copy(update={"seen": [[fingerprint("A-1")]]})
    known = tuned.manifest.model_copy(update={"segmentation": part})
    folder = write_bundle(tmp_path / "known", known, tensors_of(tuned))
    with pytest.raises(ValueError, match="trained on A-1"):
        tune(wanted, folder, tmp_path / "run2", 0, quiet)


def test_a_tuned_bundle_does_not_take_the_place_of_its_source(tiny_bundle, tmp_path):
    source = copytree(tiny_bundle, tmp_path / "bundle")
    with pytest.raises(RefusedError, match="another --run"):
        tune(Settings(), source, tmp_path, 0, Console(quiet=True))
    assert load_bundle(source).manifest.prognosis


def test_tuning_finds_the_threshold_that_fits():
    """A lesion of probability 0.35 is found once the threshold is below that."""

    lesion = ball(CT_GRID, (0, 0, 0), 25)
    probabilities = np.zeros((3, *CT_GRID.shape), np.float16)
    probabilities[1] = np.where(lesion, 0.35, 0.0)
    ct = np.full(CT_GRID.shape, 0.5, np.float32)
    kept = [Kept("A", CT_GRID, probabilities, ct, lesion.astype(np.uint8))]
    found = search(PostprocessingSettings(), kept, "head-neck", Console(quiet=True))
    assert found.threshold_gtvp < 0.35
