"""The page: its data are the volumes, in their place; no text in it is code; a browser runs it."""

from __future__ import annotations

import json
import math
import re
import shutil
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import COARSE, predicted

from hmvnet.bundle import Manifest, SegmentationPart
from hmvnet.case import GTVN, GTVP, IDENTITY, SYNTHETIC, Verdict
from hmvnet.config import PostprocessingSettings
from hmvnet.pipeline import Prediction
from hmvnet.prognosis.curve import RiskGroup, SurvivalCurve
from hmvnet.prognosis.member import Contribution
from hmvnet.prognosis.risk import PatientCurve, Risk
from hmvnet.writing import page as writing
from hmvnet.writing.page import MOST_BYTES, coded, suv_steps, write_page
from hmvnet.writing.report import report

Z_TURNED = (*IDENTITY[:8], -1.0)
ALL_TURNED = tuple(-value for value in IDENTITY)
SLANTED = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
TWO = ((GTVP, (40, 30, 60), 8), (GTVN, (20, 40, 30), 6))
HOSTILE = """</script><script>alert(1)</script>"><img src=x onerror=alert(1)><!--<script>"""
RISK = Risk(
    0.4, 0.7, 900.0, {"image": 0.1}, (Contribution("Age", 0.3), Contribution("TLG", -0.1)), ()
)
MODEL = SurvivalCurve(
    days=(100.0, 400.0, 900.0, 1500.0),
    cumulative_hazard=(0.1, 0.3, 0.5, 0.6),
    slope=1.0,
    centre=0.0,
    horizon_days=1200.0,
    groups=tuple(RiskGroup(20, (1 - p, 1 - 2 * p, 1 - 3 * p, 1 - 3 * p)) for p in (0.05, 0.1, 0.2)),
)
CURVED = replace(RISK, interval=(0.1, 0.8), curve=PatientCurve.of(MODEL, RISK.value))


def bundle(name: str = "tiny") -> Manifest:
    part = SegmentationPart(network="hmvnet", patch_size=(32, 32, 32), files=["a.safetensors"])
    settings = PostprocessingSettings()
    return Manifest(name=name, preprocessing=COARSE, postprocessing=settings, segmentation=part)


class Read(HTMLParser):
    """A page's elements, in order, and the text of its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = path.read_text("utf-8")
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data) -> None:
        if self.lasttag == "script" and data.strip():
            self.scripts[-1] += data

    @property
    def data(self) -> dict:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON: a browser would not read the page")

        return json.loads(self.scripts[0], parse_constant=refuse)


def written(prediction: Prediction, folder: Path, manifest: Manifest | None = None) -> Read:
    return Read(write_page(prediction, manifest or bundle(), folder / "page.html", "cpu"))


def values(volume: dict, shape: tuple[int, ...]) -> np.ndarray:
    """What a volume's codes say, ``[z, y, x]``."""
    steps = np.frombuffer(zlib.decompress(b64decode(volume["deflated"])), np.uint8).reshape(shape)
    return np.array(volume["table"])[np.cumsum(steps, axis=0, dtype=np.uint8)]


def check_places(data: dict, prediction: Prediction) -> None:
    """Every voxel of the page holds what the working grid holds at its position."""
    volume = prediction.segmentation.volume
    shape = tuple(data["size"][::-1])
    index = np.indices(shape)[::-1].reshape(3, -1).T
    affine = np.array(data["affine"])
    there = volume.grid.indices(index @ affine[:3, :3].T + affine[:3, 3])
    x, y, z = there.round().astype(int).T
    assert np.abs(there - there.round()).max() < 1e-6
    ct, pet = (array[z, y, x].reshape(shape) for array in volume.raw)
    # Half a step: of soft tissue, of air, of the SUV.
    found = values(data["ct"], shape)
    assert np.abs(found - ct)[ct > -100].max() <= 2.1 and (found[ct < -900] < -970).all()
    assert np.abs(values(data["pet"], shape) - pet).max() <= pet.max() / 510 + 0.001
    packed = np.frombuffer(zlib.decompress(b64decode(data["numbers"])), "<u2").reshape(shape)
    classes = np.array([0, *(lesion.label for lesion in prediction.lesions)])[packed]
    assert np.array_equal(classes, prediction.segmentation.labels[z, y, x].reshape(shape))


@pytest.mark.parametrize("direction", [IDENTITY, Z_TURNED, ALL_TURNED, SLANTED])
def test_every_voxel_has_its_value_and_its_place(direction, tmp_path) -> None:
    prediction = predicted(*TWO, direction=direction)
    data = written(prediction, tmp_path).data
    check_places(data, prediction)
    affine = np.array(data["affine"])
    assert affine[0, 0] > 0 and affine[1, 1] > 0  # to the left, to the back
    found = report(prediction, bundle())["lesions"]
    assert [lesion["class"] for lesion in data["report"]["lesions"]] == ["GTVp", "GTVn"]
    for lesion, voxel in zip(found, data["places"], strict=True):
        position = affine @ [*voxel, 1]
        assert position[:3] == pytest.approx(lesion["centroid_lps_mm"], abs=0.6)


def test_a_lesion_that_is_hollow_is_shown_where_it_is(tmp_path) -> None:
    prediction = predicted((GTVP, (40, 30, 60), 9), (0, (40, 30, 60), 6))
    (voxel,) = written(prediction, tmp_path).data["places"]
    x, y, z = voxel
    assert prediction.segmentation.labels[z, y, x] == GTVP


def test_codes_are_within_half_a_step_and_cut_off_at_the_ends() -> None:
    hu = np.array([[[-3000.0, -1000, -150, 37, 299, 800, 3000, 9000]]], np.float32)
    found = values(coded(hu, writing.HU_STEPS), hu.shape)
    assert np.abs(found - hu.clip(-1000, 3071)).ravel() == pytest.approx(0, abs=32)
    assert np.abs(found - hu)[0, 0, 2:6] == pytest.approx(0, abs=7.1)
    for hottest in (0.0, 0.3, 15.0, 300.0):
        suv = np.linspace(-1, hottest, 5000, dtype=np.float32).reshape(50, 10, 10)
        found = values(coded(suv, suv_steps(hottest)), suv.shape)
        usual = suv <= 20
        assert np.abs(found - suv.clip(0))[usual].max() <= 0.051 + hottest / (1 << 15)


def test_no_text_is_code(tmp_path) -> None:
    harmless = predicted(*TWO, notes=("a note",))
    harmless = replace(harmless, risk=RISK)
    named = replace(RISK, contributions=(Contribution(HOSTILE, 0.3),), branches={HOSTILE: 0.1})
    hostile = replace(
        harmless,
        notes=(HOSTILE, "[[script]] [[data]]"),
        risk=named,
        verdict=Verdict("review", (HOSTILE,)),
    )
    folder = tmp_path / HOSTILE.replace("/", "")
    page = written(hostile, folder, bundle(HOSTILE))
    assert [tag for tag, _ in page.tags] == [
        tag for tag, _ in written(harmless, tmp_path / "harmless").tags
    ]
    found = page.data["report"]
    assert found["notes"] == [HOSTILE, "[[script]] [[data]]"]
    assert found["bundle"] == HOSTILE and found["verdict"]["codes"] == [HOSTILE]
    assert list(found["risk"]["variables"]) == list(found["risk"]["branches"]) == [HOSTILE]


def test_the_page_names_no_patient(tmp_path) -> None:
    page = written(predicted(*TWO), tmp_path / "Jane Doe")
    assert "Jane" not in page.text


def test_a_browser_may_run_its_script_alone_and_load_nothing(tmp_path) -> None:
    page = written(predicted(*TWO), tmp_path)
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    _, script = page.scripts
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not {"src", "href", "srcset", "action"} & {name for _, a in page.tags for name in a}
    assert set(re.findall(r"\w+://[^\"\s]*", page.text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


def test_a_page_that_would_be_too_large_shows_every_second_voxel(tmp_path, monkeypatch) -> None:
    prediction = predicted(*TWO)
    whole = write_page(prediction, bundle(), tmp_path / "whole.html")
    most = whole.stat().st_size - 1
    monkeypatch.setattr(writing, "MOST_BYTES", most)
    page = written(prediction, tmp_path)
    assert (tmp_path / "page.html").stat().st_size <= most < MOST_BYTES
    assert page.data["size"] == [45, 30, 40] and page.data["spacing"] == [2, 2, 2]
    check_places(page.data, prediction)


def test_what_is_not_finite_does_not_end_the_page(tmp_path) -> None:
    prediction = predicted(*TWO)
    strange = replace(prediction.lesions[0], sphericity=math.nan)
    page = written(replace(prediction, lesions=[strange, *prediction.lesions[1:]]), tmp_path)
    assert page.data["report"]["lesions"][0]["sphericity"] is None


def test_synthetic_is_said_of_phantoms_only(tmp_path) -> None:
    assert not written(predicted(*TWO), tmp_path).data["synthetic"]
    assert written(predicted(*TWO, notes=(f"ct: {SYNTHETIC}",)), tmp_path).data["synthetic"]


def test_a_case_without_lesions_or_risk_has_a_page(tmp_path) -> None:
    data = written(predicted(), tmp_path).data
    assert data["places"] == [] and "risk" not in data["report"]


def test_the_curves_begin_at_one_and_are_the_models(tmp_path) -> None:
    data = written(replace(predicted(*TWO), risk=CURVED), tmp_path).data
    found, risk = data["curve"], data["report"]["risk"]
    expected = np.exp(-np.array(MODEL.cumulative_hazard[:3]) * math.exp(RISK.value)).round(4)
    assert found["days"] == [0.0, 100.0, 400.0, 900.0, 1200.0]  # to the horizon
    assert found["patient"] == [1.0, *expected, expected[-1]]
    assert [g["survival"][1] for g in found["groups"]] == [0.95, 0.9, 0.8]
    assert risk["interval_95"] == [0.1, 0.8] and risk["horizon_days"] == 1200
    by_year = risk["chance_without_recurrence_by_year"]
    assert list(by_year) == ["1", "2", "3"] and by_year["2"] == pytest.approx(expected[1], abs=1e-3)


def test_a_risk_without_a_curve_has_a_page(tmp_path) -> None:
    data = written(replace(predicted(*TWO), risk=RISK), tmp_path).data
    assert data["curve"] is None and "horizon_days" not in data["report"]["risk"]


# --- in a browser --------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="of the extra 'dev'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page in a browser, and what it complained of or asked for."""

    def __init__(self, browser, path: Path, width: int = 1280, height: int = 800) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda r: r.url == path.as_uri() or self.said.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def state(self) -> dict[str, str]:
        """The root's data attributes, after the next frame."""
        script = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.page.evaluate(script)
        return self.page.evaluate("({...document.documentElement.dataset})")

    def position(self) -> list[float]:
        """Where the planes meet, LPS mm."""
        return [float(self.state()[axis]) for axis in "xyz"]

    def pixels(self) -> list[str]:
        """What is drawn in each of the five."""
        self.state()
        script = "[...document.querySelectorAll('.plane canvas')].map(c => c.toDataURL())"
        return self.page.evaluate(script)


def changed(before: list[str], after: list[str]) -> list[bool]:
    return [one != other for one, other in zip(before, after, strict=True)]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Prediction, Path]:
    prediction = replace(predicted(*TWO, notes=(HOSTILE,)), risk=CURVED)
    path = tmp_path_factory.mktemp("page") / "page.html"
    return prediction, write_page(prediction, bundle(HOSTILE), path, "cpu")


class TestInABrowser:
    pytestmark = in_a_browser

    def test_a_row_shows_its_lesion_and_texts_are_texts(self, chromium, shown, tmp_path) -> None:
        prediction, path = shown
        opened = Opened(chromium, path)
        for number, lesion in enumerate(report(prediction, bundle())["lesions"], start=1):
            opened.page.click(f"tr[data-lesion='{number}']")
            assert opened.position() == pytest.approx(lesion["centroid_lps_mm"], abs=0.6)
            assert opened.state()["lesion"] == str(number)
            marked = opened.page.evaluate(
                "[...document.querySelectorAll('tr.here')].map(row => row.dataset.lesion)"
            )
            assert marked == [str(number)]
        assert HOSTILE in opened.page.inner_text("#notes li")
        assert opened.page.inner_text("#made dd >> nth=0") == HOSTILE
        opened.page.screenshot(path=tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert opened.said == []

    def test_the_patients_curve_lies_among_those_of_the_groups(self, chromium, shown) -> None:
        opened = Opened(chromium, shown[1])
        drawing = "#risk svg[aria-label='chance of no recurrence']"
        texts = opened.page.query_selector_all(f"{drawing} text")
        words = [text.text_content() for text in texts]
        assert words[-4:] == ["low (20)", "middle (20)", "high (20)", "this patient"]
        boxes = [b.bounding_box() for b in opened.page.query_selector_all(f"{drawing} path")[::2]]
        depths = [box["y"] + box["height"] for box in boxes]
        assert depths[0] < depths[1] < depths[3] < depths[2]
        assert opened.said == []

    def test_wheel_keys_and_clicks_move_the_planes(self, chromium, shown) -> None:
        opened = Opened(chromium, shown[1])
        x, y, z = opened.position()
        boxes = [box.bounding_box() for box in opened.page.query_selector_all(".plane")]
        centres = [(b["x"] + b["width"] / 2, b["y"] + b["height"] / 2) for b in boxes]
        opened.page.mouse.move(*centres[0])
        opened.page.mouse.wheel(0, 100)  # two slices down
        assert opened.position() == pytest.approx([x, y, z - 2])
        opened.page.keyboard.press("ArrowUp")
        assert opened.position() == pytest.approx([x, y, z - 1])
        opened.page.mouse.move(*centres[1])
        opened.page.mouse.wheel(0, -50)  # a slice to the front
        assert opened.position() == pytest.approx([x, y - 1, z - 1])
        before = opened.pixels()
        opened.page.mouse.click(*centres[0])  # of the grid, 90 x 60 x 80 from 10, 20, 300
        assert opened.position() == pytest.approx([55, 50, z - 1], abs=1)
        assert changed(before, opened.pixels())[:3] == [True, True, True]
        opened.page.mouse.click(centres[2][0], centres[2][1])
        assert opened.position() == pytest.approx([55, 50, 340], abs=1)
        assert opened.said == []

    def test_a_click_in_a_projection_finds_the_hottest_voxel(self, chromium, shown) -> None:
        opened = Opened(chromium, shown[1])
        opened.page.click("tr[data-lesion='2']")
        node = opened.position()
        places = opened.page.evaluate(
            """() => { const {left, top, wide, tall} = place(planes[3]);
                const box = planes[3].canvas.getBoundingClientRect();
                return [box.left + left + 60.5 * wide, box.top + top + (79 - 40 + 0.5) * tall]; }"""
        )
        opened.page.mouse.click(*places)  # on the primary, whose centre is x 60, z 40
        x, y, z = opened.position()
        assert (x, z) == pytest.approx((70, 340)) and abs(y - 50) <= 8 and node != [x, y, z]
        assert opened.state()["lesion"] == "1"

    def test_head_up_and_the_right_on_the_left(self, chromium, shown) -> None:
        """Uptake is drawn where the node lies, and not where it would lie turned over."""
        opened = Opened(chromium, shown[1])
        opened.page.click("tr[data-lesion='2']")  # z 20 of 80, y 40 of 60, x 30 of 90
        for key in "cx":
            opened.page.keyboard.press(key)
        opened.state()
        seen = opened.page.evaluate(
            """() => planes.map((plane) => [[0, 0], [1, 0], [0, 1]].map(([mirrored, turned]) => {
                const { left, top, wide, tall } = place(plane);
                const [width, height] = [size[plane.across], size[plane.down]];
                const at = { 0: 30, 1: 40, 2: plane.upwards ? 80 - 1 - 20 : 20 };
                const x = mirrored ? width - 1 - at[plane.across] : at[plane.across];
                const y = turned ? height - 1 - at[plane.down] : at[plane.down];
                return [...plane.canvas.getContext("2d").getImageData(
                    left + (x + 0.5) * wide, top + (y + 0.5) * tall, 1, 1).data];
            }))"""
        )
        for fused in seen[:3]:
            amber = [red - blue > 30 for red, _, blue, _ in fused]
            assert amber == [True, False, False]
        for projected in seen[3:]:
            dark = [red < 80 for red, *_ in projected]
            assert dark == [True, False, False]

    def test_switches_change_what_is_drawn(self, chromium, shown) -> None:
        opened = Opened(chromium, shown[1])
        begun = opened.pixels()
        for label, drawn in (("1", [True] * 5), ("2", [False, False, False, True, True])):
            opened.page.click(f"input[data-label='{label}']")
            assert changed(begun, opened.pixels()) == drawn  # the node lies in no plane
            opened.page.click(f"input[data-label='{label}']")
        for key in "cx":
            opened.page.keyboard.press(key)
            assert changed(begun, opened.pixels()) == [True] * 5
            opened.page.keyboard.press(key)
        assert opened.pixels() == begun
        opened.page.click("text=bone")
        assert changed(begun, opened.pixels()) == [True] * 3 + [False] * 2
        opened.page.keyboard.press("w")
        opened.page.fill("#high", "4")
        assert changed(begun, opened.pixels()) == [True] * 5
        opened.page.fill("#high", "7")
        opened.page.fill("#opacity", "0")
        assert changed(begun, opened.pixels()) == [True] * 3 + [False] * 2
        assert opened.said == []

    @pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)])
    def test_nothing_overlaps_or_is_cut_off(self, chromium, shown, size) -> None:
        opened = Opened(chromium, shown[1], *size)
        wide, tall = opened.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        assert wide <= size[0] and tall <= size[1]
        names = "header, #tools, .plane, #readout, #lesions, aside"
        boxes = [box.bounding_box() for box in opened.page.query_selector_all(names)]
        assert len(boxes) == 10
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = (
                    a["x"] >= b["x"] + b["width"] - 1
                    or b["x"] >= a["x"] + a["width"] - 1
                    or a["y"] >= b["y"] + b["height"] - 1
                    or b["y"] >= a["y"] + a["height"] - 1
                )
                assert apart, (a, b)
