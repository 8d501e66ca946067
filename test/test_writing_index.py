"""A cohort's page: a row a patient, sorted by a click, in which no text is code."""

from __future__ import annotations

import io
import json
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from conftest import predicted
from PIL import Image
from test_writing_page import HOSTILE, TWO, Opened, Read, bundle, chromium, in_a_browser  # noqa: F401

from hmvnet.case import Verdict
from hmvnet.exits import RefusedError
from hmvnet.table_files import write_table
from hmvnet.writing.cohort import (
    COHORT,
    FAILURES,
    is_cohort,
    record_failures,
    write_cohort,
    write_failures,
)
from hmvnet.writing.folder import write_folder
from hmvnet.writing.index import INDEX, refuse_foreign, write_index
from hmvnet.writing.thumbnail import write_thumbnail

NAMES = ("P10", "P9", "javascript:alert(1)", HOSTILE.replace("/", ""))


def cohort(output, names=NAMES):
    """Patients with 2, 1, 0 and 2 lesions; one without a result."""
    balls = {"P9": TWO[:1], NAMES[2]: ()}
    for name in names:
        made = predicted(*balls.get(name, TWO))
        verdict = Verdict("review", ("no-lesion",)) if name == NAMES[2] else Verdict()
        object.__setattr__(made, "verdict", verdict)
        assert write_folder(made, bundle(), output / name) == []
    rows = [{"patient": "=x", "why": HOSTILE}, {"patient": "P9", "why": "of before"}]
    write_table(pd.DataFrame(rows), output / "failures-1of2.csv")
    return write_index(output)


def test_a_row_a_patient_with_what_its_report_says(tmp_path):
    data = Read(cohort(tmp_path)).data
    rows = {row["patient"]: row for row in data["rows"]}
    assert set(rows) == {*NAMES, "=x"} and data["counts"].startswith(
        "5 patients: 3 ok, 1 to review"
    )
    report = json.loads((tmp_path / "P10" / "report.json").read_text())
    by_class = {lesion["class"]: lesion for lesion in report["lesions"]}
    row = rows["P10"]
    assert row["GTVp_ml"] == by_class["GTVp"]["volume_ml"] and row["GTVn_lesions"] == 1
    assert [name for name, _ in row["links"]] == ["report", "lesions"]
    assert dict(rows[NAMES[2]]["links"])["report"] == "javascript%3Aalert%281%29/report.json"
    assert rows["=x"]["verdict"] == "none" and rows["=x"]["said"] == HOSTILE
    assert rows["P9"]["verdict"] == "ok"  # it has a result now
    picture = Image.open(io.BytesIO(b64decode(row["thumbnail"])))
    assert picture.format == "PNG" and picture.height == 128


def test_a_picture_that_is_not_there_is_none(tmp_path):
    cohort(tmp_path, ["P10", "P9"])
    (tmp_path / "P9" / "thumbnail.png").unlink()
    (tmp_path / "P10" / "thumbnail.png").write_bytes(bytes(1 << 20))
    assert [row["thumbnail"] for row in Read(write_index(tmp_path)).data["rows"]] == [None] * 3


def test_anothers_page_is_not_replaced(tmp_path):
    (tmp_path / INDEX).write_text("<p>my own site</p>")
    with pytest.raises(RefusedError, match="not what this command writes"):
        write_index(tmp_path)
    assert (tmp_path / INDEX).read_text() == "<p>my own site</p>"
    (tmp_path / INDEX).unlink()
    assert write_index(tmp_path) == write_index(tmp_path)  # without a patient, and again


@pytest.mark.parametrize("name", [COHORT, FAILURES, "failures-2of3.csv", INDEX])
@pytest.mark.parametrize("text", ["name,age\nA,60\n", "", "\xff"])
def test_what_another_wrote_is_found_before_any_work(tmp_path, name, text):
    refuse_foreign(tmp_path)
    write_cohort(tmp_path)
    write_failures({"=a": "broken"}, tmp_path)
    write_failures({"b": "broken"}, tmp_path, "-1of3")
    write_index(tmp_path)
    refuse_foreign(tmp_path)
    (tmp_path / "failures of March.csv").write_text(text)  # a name that none of ours has
    refuse_foreign(tmp_path)
    record_failures({"b"}, {}, tmp_path)
    assert (tmp_path / "failures of March.csv").read_text() == text
    (tmp_path / name).write_text(text, "latin-1")
    with pytest.raises(RefusedError, match=f"{name} is there, and not what"):
        refuse_foreign(tmp_path)
    assert is_cohort(tmp_path) == (name != COHORT)


def test_the_thumbnail_shows_each_lesion_where_it_lies_and_is_small(tmp_path):
    """The primary lies to the left (x 60 of 90) and low in the picture's middle (z 40 of 80)."""
    made = predicted(*TWO)
    pixels = np.asarray(Image.open(write_thumbnail(made, tmp_path / "a.png")).convert("RGB"), int)
    height, width, _ = pixels.shape
    assert (height, width) == (128, round(128 * 90 / 80))
    red, _, blue = np.moveaxis(pixels, -1, 0)
    for is_class, x, z in ((red - blue > 60, 60, 40), (blue - red > 60, 30, 20)):
        rows, columns = np.nonzero(is_class)
        assert columns.mean() / width == pytest.approx((x + 0.5) / 90, abs=0.02)
        assert rows.mean() / height == pytest.approx(1 - (z + 0.5) / 80, abs=0.02)


def test_a_thousand_noisy_thumbnails_are_one_page(tmp_path):
    made = predicted()
    volume = made.segmentation.volume
    volume.raw[1] = np.random.default_rng(0).uniform(0, 7, volume.raw[1].shape) ** 2
    assert write_thumbnail(made, tmp_path / "a.png").stat().st_size * 4 / 3 < 14_000


class TestInABrowser:
    pytestmark = in_a_browser

    def test_a_click_sorts_and_texts_are_texts(self, chromium, tmp_path):  # noqa: F811
        opened = Opened(chromium, cohort(tmp_path))

        def order(key: str) -> list[str]:
            if key:
                opened.page.click(f"th[data-key='{key}'] button")
            script = "[...document.querySelectorAll('tbody tr')].map(row => row.dataset.patient)"
            return opened.page.evaluate(script)

        hostile = NAMES[3]
        assert order("")[-2:] == ["P9", "P10"] and set(order("")) == {*NAMES, "=x"}
        names = order("")
        assert order("patient") == names[::-1]
        assert order("verdict")[:2] == ["=x", NAMES[2]]  # the worst first
        by_volume = order("GTVn_ml")
        assert set(by_volume[:2]) == {"P10", hostile} and by_volume[-1] == "=x"
        assert order("GTVn_ml")[-1] == "=x" and order("")[-2] in ("P10", hostile)
        assert opened.page.get_attribute("th[data-key='GTVn_ml']", "aria-sort") == "ascending"
        row = opened.page.query_selector("tr[data-patient='=x']")
        assert HOSTILE in row.inner_text() and "no result" in row.inner_text()
        widths = opened.page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) == 4 and min(widths) > 50
        opened.page.fill("#filter", "P10")
        assert order("") == ["P10"]
        opened.page.click("tbody tr a >> nth=1")
        assert opened.page.url.endswith("/P10/report.json")
        said = [line for line in opened.said if not line.startswith(("data:", "file:"))]
        assert said == []
