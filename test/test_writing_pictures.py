from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import predicted
from matplotlib.image import AxesImage
from matplotlib.text import Text

from hmvnet.case import GTVN, GTVP, IDENTITY, SYNTHETIC
from hmvnet.writing.pictures import draw_prediction, prediction_figure
from hmvnet.writing.views import point_of_interest

PRIMARY, NODE = (40, 30, 60), (20, 40, 30)  # z, y, x
Z_TURNED = (*IDENTITY[:8], -1.0)
ALL_TURNED = tuple(-value for value in IDENTITY)


TWO = ((GTVP, PRIMARY, 8), (GTVN, NODE, 6))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def seen(axes) -> np.ndarray:
    """The PET of a panel as it lies on the page, ``[row, column]`` from the upper left."""
    image = axes.findobj(AxesImage)[-1]
    array = np.asarray(image.get_array())
    return array if image.origin == "upper" else array[::-1]


@pytest.mark.parametrize("direction", [IDENTITY, Z_TURNED, ALL_TURNED])
def test_right_is_on_the_left_and_marked(direction) -> None:
    figure = prediction_figure(predicted(*TWO, direction=direction))
    marks = [[t.get_text() for t in axes.texts if len(t.get_text()) == 1] for axes in figure.axes]
    assert marks[:5] == [["R", "L"], ["R", "L"], ["A", "P"], ["R", "L"], ["A", "P"]]
    turned = direction[0] < 0
    z, y, x = PRIMARY
    column, row = (89 - x, 59 - y) if turned else (x, y)
    axial, coronal, sagittal = (seen(axes) for axes in figure.axes[:3])
    # Mean of where the uptake of the ball lies.
    assert np.argwhere(axial > 5).mean(0) == pytest.approx([row, column], abs=1)
    assert np.argwhere(coronal > 5).mean(0) == pytest.approx([79 - z, column], abs=1)
    assert np.argwhere(sagittal > 5).mean(0) == pytest.approx([79 - z, row], abs=1)


@pytest.mark.parametrize("direction", [IDENTITY, Z_TURNED, ALL_TURNED])
def test_titles_say_where_the_slices_lie_in_lps(direction) -> None:
    figure = prediction_figure(predicted(*TWO, direction=direction))
    signs = np.diag(np.reshape(direction, (3, 3)))
    x, y, z = np.array([10, 20, 300]) + signs * PRIMARY[::-1]
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == [
        f"axial, z = {z:.0f} mm",
        f"coronal, y = {y:.0f} mm",
        f"sagittal, x = {x:.0f} mm",
    ]


def test_scale_bars_are_as_long_as_they_say() -> None:
    figure = prediction_figure(predicted(*TWO))
    figure.canvas.draw()
    for axes in figure.axes[:5]:
        (words,) = [t.get_text() for t in axes.texts if t.get_text().endswith(" mm")]
        ends = axes.transData.inverted().transform(
            axes.transAxes.transform(axes.lines[-1].get_xydata())
        )
        assert ends[1, 0] - ends[0, 0] == pytest.approx(float(words.split()[0]))


def test_all_panels_have_one_isotropic_scale() -> None:
    figure = prediction_figure(predicted(*TWO))
    figure.canvas.draw()
    for axes in figure.axes[:5]:
        (x0, y0), (x1, y1) = axes.transData.transform([(0, 0), (10, 10)])
        assert abs(y1 - y0) == pytest.approx(x1 - x0, rel=1e-3)
        assert x1 - x0 == pytest.approx(
            np.diff(figure.axes[0].transData.transform([(0, 0), (10, 0)])[:, 0])[0], rel=1e-3
        )


def test_suv_window_lesions_and_purpose_are_written() -> None:
    said = texts(prediction_figure(predicted(*TWO, note="scan starts below the brain")))
    assert {"SUV 0 to 7, slices, over CT", "SUV 0 to 7, MIP"} <= set(said)
    assert any(text.startswith("GTVp: 1 lesion, ") for text in said)
    assert any(text.startswith("GTVn: 1 lesion, ") for text in said)
    assert any("research only, not for clinical use" in text for text in said)
    assert "scan starts below the brain" in said


def test_synthetic_is_said_of_phantoms_only() -> None:
    assert not any("SYNTHETIC" in text for text in texts(prediction_figure(predicted(*TWO))))
    phantom = predicted(*TWO, notes=(f"ct.nii.gz: {SYNTHETIC}",))
    assert any("SYNTHETIC" in text for text in texts(prediction_figure(phantom)))


def test_low_uptake_leaves_the_ct_as_it_is() -> None:
    axes = prediction_figure(predicted(*TWO)).axes[0]
    shown = axes.findobj(AxesImage)[-1]
    alpha = [shown.cmap(shown.norm(suv))[3] for suv in (0, 2, 4, 7)]
    assert alpha[0] == 0
    assert alpha[1] < 0.15
    assert alpha[2] > 0.4
    assert alpha[3] > 0.8


def test_slices_meet_in_primary_then_node_then_hottest_voxel() -> None:
    pet = np.zeros((10, 12, 14))
    pet[1, 2, 3] = 9
    labels = np.zeros(pet.shape, np.uint8)
    assert point_of_interest(labels, pet) == (1, 2, 3)
    labels[7, 7, 7:9] = GTVN
    assert point_of_interest(labels, pet) == (7, 7, 7)
    labels[2, 2, 2] = GTVP
    labels[4:7, 4:7, 4:7] = GTVP
    z, y, x = point_of_interest(labels, pet)
    assert labels[4:7, 4:7, 4:7].all() and 4 <= min(z, y, x) <= max(z, y, x) < 7


def test_a_picture_is_sharp_small_and_leaves_pyplot_alone(tmp_path: Path) -> None:
    before = plt.get_fignums()
    path = draw_prediction(predicted(*TWO), tmp_path / "new" / "picture.png")
    assert path.stat().st_size < 1_000_000
    assert plt.imread(path).shape[1] == 2800
    assert plt.get_fignums() == before


def test_a_case_without_lesions_draws(tmp_path: Path) -> None:
    empty = predicted()
    said = texts(prediction_figure(empty))
    assert "GTVp: 0 lesions" in said
    assert draw_prediction(empty, tmp_path / "empty.png").stat().st_size > 1000
    cold = replace(empty.segmentation.volume, raw=np.zeros_like(empty.segmentation.volume.raw))
    nothing = replace(empty, segmentation=replace(empty.segmentation, volume=cold))
    assert draw_prediction(nothing, tmp_path / "cold.png").stat().st_size > 1000
