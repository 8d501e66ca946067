import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PATCH, short_training, write_patient
from rich.console import Console

from hmvnet.config import DataSettings, PreprocessingSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.experiments import bench_loader as room


@pytest.fixture
def settings(tmp_path) -> Settings:
    write_patient(tmp_path / "data", "A-0")
    data = DataSettings(root=str(tmp_path / "data"), region="centre")
    return short_training().model_copy(
        update={"data": data, "preprocessing": PreprocessingSettings(spacing_mm=4.0)}
    )


class Both:
    """The same work on both sides, twice as often on theirs; notes what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple] = []

    def __call__(self, augmentation, patch):
        def run(image, segmentation):
            self.given.append((image.shape, image.dtype, segmentation.dtype))
            for _ in range(100):
                image.sqrt()

        return run


def test_a_row_a_set_of_transforms(settings, tmp_path, monkeypatch):
    theirs = Both()
    monkeypatch.setattr(room, "_their_transforms", lambda: theirs)
    table = room.bench_loader(settings, tmp_path / "run", Console(quiet=True), 2, 1, 1)
    assert list(table["transforms"]) == [task.name for task in room.tasks(settings.augmentation)]
    ratio = table["hmvnet /s/core"] / table["batchgeneratorsv2 /s/core"]
    np.testing.assert_allclose(table["times"], ratio)
    # The margin is theirs as well, and both sides have the same precision.
    wide = tuple(n + 2 * room.MARGIN for n in PATCH)
    assert set(theirs.given) == {((2, *wide), torch.float32, torch.int16)}
    assert list(pd.read_csv(tmp_path / "run" / "bench.csv")) == list(table)
    assert (tmp_path / "run" / "bench.md").stat().st_size > 50


def test_without_the_package_one_line_says_so(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "batchgeneratorsv2", None)
    table = room.bench_loader(settings, tmp_path / "run", Console(), 1, 1, 1)
    assert "batchgeneratorsv2 is not installed" in capsys.readouterr().out
    assert list(table) == ["transforms", "hmvnet /s/core"]


def test_only_what_both_sides_have_is_compared():
    usual = Settings().augmentation
    for task in room.tasks(usual):
        assert task.augmentation.misalignment == task.augmentation.drop_modality == 0
        assert task.augmentation.flip in (0, room.FLIP)
        assert task.augmentation.rotation_degrees == usual.rotation_degrees
    assert {t.augmentation.affine for t in room.tasks(usual)[:3]} == {usual.affine}


def test_no_data_is_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"data\.root is not given"):
        room.bench_loader(Settings(), tmp_path, Console(quiet=True), 1, 1, 1)
