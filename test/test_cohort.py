"""Many patients: a folder each, a broken one is a line and never the end."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
import torch
from conftest import HEAD_GRID, head, run_cohort, tiny_ct, tiny_label, tiny_pet
from pydicom import Dataset

from hmvnet import files
from hmvnet.bundle import load_bundle
from hmvnet.case import Case, CaseError, ClinicalRecord, Grid
from hmvnet.cohort import CORRECTED, InTurn, Order, made_of, part_of, predict_cohort
from hmvnet.config import Settings
from hmvnet.exits import Exit, RefusedError
from hmvnet.phantom.dicom import write_dicom
from hmvnet.pipeline import Pipeline
from hmvnet.reading.checks import checked_case
from hmvnet.reading.dicom import Scan
from hmvnet.reading.inputs import Pair, find_sources
from hmvnet.reading.series import Series, Slice
from hmvnet.reading.tables import Known
from hmvnet.writing import folder as writing
from hmvnet.writing.cohort import (
    failures_files,
    read_failures,
    record_failures,
    refuse_foreign_tables,
    write_cohort,
    write_failures,
)

GONE = 2**22 + 1  # no process has this id: Linux gives none above 2**22


@dataclass
class Given:
    """A source that reads the tiny case, or raises, and counts."""

    patient_id: str
    error: Exception | None = None
    reads: int = 0
    files: tuple[Path, ...] = ()

    def read(self) -> Case:
        self.reads += 1
        if self.error:
            raise self.error
        return checked_case(self.patient_id, tiny_ct(), tiny_pet())


WHOLE = ["lesions.csv", "mask.nii.gz", "picture.png", "report.json", "thumbnail.png"]


@pytest.fixture(scope="module")
def pipeline(tiny_bundle) -> Pipeline:
    return Pipeline(load_bundle(tiny_bundle), torch.device("cpu"))


def test_a_folder_a_patient(pipeline, tmp_path):
    result = run_cohort([Given("a"), Given("b")], pipeline, tmp_path)
    assert result.done == ["a", "b"] and result.code == Exit.OK
    for name in ("a", "b"):
        files = sorted(p.name for p in (tmp_path / name).iterdir())
        assert files == WHOLE
        mask = sitk.ReadImage(str(tmp_path / name / "mask.nii.gz"))
        assert Grid.of(mask).same_as(Grid.of(tiny_ct()), 1e-3)
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["device"] == "cpu" and report["bundle"] == "tiny" and report["version"]
        assert len(pd.read_csv(tmp_path / name / "lesions.csv")) == len(report["lesions"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_verdicts_are_kept_and_counted_also_those_of_before(pipeline, tmp_path):
    result = run_cohort([Given("a")], pipeline, tmp_path, picture=False)
    assert "no-head" in result.review["a"] and result.code == Exit.OK
    again = run_cohort(
        [Given("a")], pipeline, tmp_path, existing="skip", picture=False, strict=True
    )
    assert again.review == result.review and again.code == Exit.REVIEW


def test_lesions_and_report_follow_a_corrected_mask(pipeline, tmp_path):
    path, out = tmp_path / "corrected.nii.gz", tmp_path / "out"
    sitk.WriteImage(tiny_label(), str(path))
    result = run_cohort([Given("a")], pipeline, out, picture=False, mask=path)
    assert result.code == Exit.OK
    written = sitk.ReadImage(str(out / "a" / "mask.nii.gz"))
    label = sitk.GetArrayFromImage(tiny_label())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), label)
    report = json.loads((out / "a" / "report.json").read_text())
    assert [lesion["class"] for lesion in report["lesions"]] == ["GTVp", "GTVn"]
    volumes = [(label == k).sum() * 0.08 for k in (1, 2)]  # voxels of 4 x 4 x 5 mm
    found = [lesion["volume_ml"] for lesion in report["lesions"]]
    assert found == pytest.approx(volumes, rel=0.15)
    assert "the mask is a corrected one, not the network's" in report["notes"]


def test_a_mask_that_a_caller_gives_may_be_of_any_type_and_is_labels(pipeline):
    case, label = Given("a").read(), tiny_label()
    found = pipeline(case, mask=sitk.Cast(label, sitk.sitkFloat64))
    assert found.mask.GetPixelID() == sitk.sitkUInt8
    assert [lesion.label for lesion in found.lesions] == [1, 2]
    with pytest.raises(CaseError, match=r"the corrected mask: label values .*expected 0, 1 and 2"):
        pipeline(case, mask=sitk.Cast(label, sitk.sitkFloat64) * 0.5)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (tiny_label()[:20], "not on the CT's grid"),
        (tiny_label() * 3, "expected 0, 1 and 2"),
    ],
)
def test_a_corrected_mask_that_cannot_be_one(pipeline, tmp_path, mask, said):
    path = tmp_path / "corrected.nii.gz"
    sitk.WriteImage(mask, str(path))
    result = run_cohort([Given("a")], pipeline, tmp_path / "out", picture=False, mask=path)
    assert said in result.refused["a"] and not (tmp_path / "out" / "a").exists()
    with pytest.raises(RefusedError, match="goes with one patient, found 2"):
        run_cohort([Given("a"), Given("b")], pipeline, tmp_path / "out", mask=path)


def test_a_broken_patient_is_a_line_and_not_the_end(pipeline, tmp_path):
    begun, told = [], []
    empty = CaseError("patient a: ct.mha: image file is empty (0 bytes)")
    sources = [Given("a", empty), Given("b")]
    result = predict_cohort(
        sources,
        InTurn(pipeline),
        Order(tmp_path, picture=False),
        on_begin=begun.append,
        on_outcome=told.append,
    )
    assert begun == [0] and [one.status for one in told] == ["refused", "done"]
    assert told[1].prediction is not None and result.outcomes[1].prediction is None
    assert result.refused == result.failures == {"a": "ct.mha: image file is empty (0 bytes)"}
    assert result.done == ["b"] and result.code == Exit.REFUSED
    assert not (tmp_path / "a").exists() and (tmp_path / "b" / "report.json").is_file()


def test_what_is_there_is_refused_written_again_or_skipped(pipeline, tmp_path):
    run_cohort([Given("a")], pipeline, tmp_path, picture=False)
    mask = tmp_path / "a" / "mask.nii.gz"
    stamp = mask.stat().st_mtime_ns
    sources = [Given("a"), Given("b")]
    with pytest.raises(RefusedError, match=r"there already \(1 of 2 patients\); --force"):
        run_cohort(sources, pipeline, tmp_path, picture=False)
    assert [s.reads for s in sources] == [0, 0]
    result = run_cohort(sources, pipeline, tmp_path, existing="skip", picture=False)
    assert result.skipped == ["a"] and result.done == ["b"] and mask.stat().st_mtime_ns == stamp
    run_cohort([Given("a")], pipeline, tmp_path, existing="replace", picture=False)
    assert mask.stat().st_mtime_ns != stamp


def test_half_a_folder_is_not_taken_for_a_whole_one(pipeline, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mask.nii.gz").write_bytes(b"half")
    result = run_cohort([Given("a")], pipeline, tmp_path, existing="skip", picture=False)
    assert result.done == ["a"] and (tmp_path / "a" / "report.json").is_file()


def test_what_a_kill_leaves_does_not_stand_in_the_way(pipeline, tmp_path):
    """Half a picture in a patient's folder; a folder that was moved away and not yet replaced."""
    for name in ("a", "b"):
        run_cohort([Given(name)], pipeline, tmp_path, picture=False)
    mark = f"{files.MACHINE}-{GONE}-1"
    (tmp_path / "a" / f".part-{mark}.picture.png").write_bytes(b"half")
    (tmp_path / "b").rename(tmp_path / f".old-{mark}.b")
    sources = [Given("a"), Given("b")]
    result = run_cohort(sources, pipeline, tmp_path, existing="skip", picture=False)
    assert result.skipped == ["a", "b"]
    assert not list(tmp_path.rglob(".*"))  # also in a folder that is whole without it
    (tmp_path / "a" / f".part-{mark}.picture.png").write_bytes(b"half")
    result = run_cohort(sources, pipeline, tmp_path, existing="skip")
    assert result.done == ["a", "b"] and result.code == Exit.OK
    for name in ("a", "b"):
        found = sorted(p.name for p in (tmp_path / name).iterdir())
        assert found == WHOLE


@pytest.mark.parametrize("existing", ["refuse", "replace", "skip"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_ours_is_never_replaced(pipeline, tmp_path, existing, kind):
    """With ``-o .`` and a patient called src, ``--force`` would have removed the folder src."""
    mine = tmp_path / "a"
    if kind == "folder":
        mine.mkdir()
        mine = mine / "thesis.txt"
    mine.write_text("years of work")
    source = Given("a")
    with pytest.raises(RefusedError, match="not what this command writes"):
        run_cohort([source], pipeline, tmp_path, existing=existing, picture=False)
    assert mine.read_text() == "years of work" and source.reads == 0


def test_a_picture_that_fails_costs_only_itself(pipeline, tmp_path, monkeypatch):
    def fail(*_):
        raise ImportError("no matplotlib here")

    monkeypatch.setattr(writing, "write_picture", fail)
    result = run_cohort([Given("a")], pipeline, tmp_path)
    assert result.code == Exit.INCOMPLETE and result.done == ["a"]
    said = result.failures["a"]
    assert "picture.png not written" in said and "no matplotlib here" in said
    assert (tmp_path / "a" / "mask.nii.gz").is_file()


PATHS = [
    "",
    ".",
    "..",
    "a/b",
    "/etc",
    "../x",
    "..\\x",
    "C:x",
    "C:\\x",
    "\\\\host\\x",
    "NUL",
    "com1.x",
]
UNPRINTABLE = ["a\0b", "a\nb", "a\x1b[2Jb", "a\u202eb", "a\udcffb"]


@pytest.mark.parametrize("name", [*PATHS, *UNPRINTABLE])
def test_ids_that_leave_the_folder_are_refused(pipeline, tmp_path, name):
    with pytest.raises(RefusedError, match="cannot be the name of a folder"):
        run_cohort([Given(name)], pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["<script>alert(1)", "=1+1", "a b", "P01:1", "κ-1"])
def test_strange_names_are_names(pipeline, tmp_path, name):
    assert run_cohort([Given(name)], pipeline, tmp_path, picture=False).done == [name]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("files", [[], ["mask.nii.gz"]])
def test_a_link_in_a_patients_place_is_replaced_and_never_followed(pipeline, tmp_path, files):
    (tmp_path / "elsewhere").mkdir()
    for file in files:
        (tmp_path / "elsewhere" / file).write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    result = run_cohort([Given("a")], pipeline, tmp_path / "out", existing="replace")
    assert result.done == ["a"] and not (tmp_path / "out" / "a").is_symlink()
    assert (tmp_path / "out" / "a" / "mask.nii.gz").stat().st_size > 100
    assert [p.name for p in (tmp_path / "elsewhere").iterdir()] == files
    assert all((tmp_path / "elsewhere" / file).read_text() == "mine" for file in files)


def test_two_patients_of_one_id_are_refused(pipeline, tmp_path):
    with pytest.raises(RefusedError, match="A is there 2 times"):
        run_cohort([Given("A"), Given("a")], pipeline, tmp_path / "out")
    with pytest.raises(RefusedError, match="a is there 2 times"):
        run_cohort([Given("a"), Given("a")], pipeline, tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("NaN"), MemoryError(), OSError(5, "disk")])
def test_a_fault_of_ours_is_a_line_and_not_the_end_either(pipeline, tmp_path, error):
    result = run_cohort([Given("a", error), Given("b")], pipeline, tmp_path, picture=False)
    assert result.done == ["b"] and list(result.failed) == ["a"] and result.code == Exit.FAULT


def test_going_on_makes_anew_what_lacks_its_picture_or_is_of_another_bundle(pipeline, tmp_path):
    run_cohort([Given("a"), Given("b")], pipeline, tmp_path, picture=False)
    again = run_cohort([Given("a")], pipeline, tmp_path, existing="skip")
    assert again.done == ["a"] and (tmp_path / "a" / "picture.png").is_file()
    report = tmp_path / "b" / "report.json"
    stored = json.loads(report.read_text())
    report.write_text(json.dumps(stored | {"made": "of something else"}))
    sources = [Given("a"), Given("b")]
    again = run_cohort(sources, pipeline, tmp_path, existing="skip", picture=False)
    assert again.skipped == ["a"] and again.done == ["b"]


def test_going_on_makes_anew_what_is_of_other_files_settings_or_masks(
    tiny_bundle, pipeline, tmp_path
):
    out, files = tmp_path / "out", tmp_path / "files"
    files.mkdir()
    for name, image in (("ct", tiny_ct()), ("pet", tiny_pet()), ("mask", tiny_label())):
        sitk.WriteImage(image, str(files / f"{name}.nii.gz"))
    pair = Pair(files / "ct.nii.gz", files / "pet.nii.gz", name="a")
    settings = {"postprocessing": {"threshold_gtvp": 0.9}}
    bundle, _ = load_bundle(tiny_bundle).adjusted(Settings.model_validate(settings))
    other = Pipeline(bundle, torch.device("cpu"))
    assert other.manifest.name == pipeline.manifest.name

    def made(source=pair, by=pipeline, **order):
        order = {"existing": "skip", "picture": False} | order
        return run_cohort([source], by, out, **order).done == ["a"]

    assert made() and not made()
    assert made(settings=("inference.flips=true",)) and not made(settings=("inference.flips=true",))
    assert made() and made(by=other) and not made(by=other) and made()
    assert made(replace(pair, suv_factor=0.5)) and made()
    assert made(replace(pair, known=Known(ClinicalRecord({"Age": 60.0})))) and made()
    assert made(mask=files / "mask.nii.gz") and not made(mask=files / "mask.nii.gz")
    corrected = (out / "a" / "mask.nii.gz").read_bytes()
    assert not made() and not made(by=other)  # the network's is not to replace it
    (kept,) = run_cohort([pair], pipeline, out, existing="skip", picture=False).outcomes
    assert kept.notes == (CORRECTED,) and (out / "a" / "mask.nii.gz").read_bytes() == corrected
    assert made(existing="replace") and not made()
    os.utime(pair.pet, (0, 0))
    assert made() and not made()


@pytest.mark.parametrize("existing", ["replace", "skip"])
def test_what_is_refused_now_has_no_result_of_before(pipeline, tmp_path, existing):
    run_cohort([Given("a"), Given("b")], pipeline, tmp_path, picture=False)
    broken = Given("a", CaseError("patient a: broken"))
    order = {"picture": existing == "skip"}  # so that what is there is not whole
    result = run_cohort([broken, Given("b")], pipeline, tmp_path, existing=existing, **order)
    assert list(result.refused) == ["a"] and result.done == ["b"]
    assert not (tmp_path / "a").exists()
    write_cohort(tmp_path)
    assert list(pd.read_csv(tmp_path / "cohort.csv")["patient"]) == ["b"]


def test_what_is_not_there_for_now_keeps_its_result_of_before(pipeline, tmp_path):
    """A disk that is not mounted: what cannot be made anew is not thrown away."""
    out = tmp_path / "out"
    run_cohort([Given("a")], pipeline, out, picture=False)
    mask = (out / "a" / "mask.nii.gz").read_bytes()
    gone = Given("a", CaseError("ct.nii.gz: image file not found"), files=(tmp_path / "gone",))
    result = run_cohort([gone], pipeline, out, existing="skip")
    assert result.refused == {"a": "ct.nii.gz: image file not found; the result of before is kept"}
    assert (out / "a" / "mask.nii.gz").read_bytes() == mask


def examined(name: str, study: str, numbered: bool = True) -> Scan:
    """A scan of a study that cannot be read: its files are not there."""
    header = Dataset()
    header.StudyInstanceUID, header.FrameOfReferenceUID = study, f"{study}.1"
    place = Slice(Path("gone"), np.zeros(3), np.eye(3)[:2], (1, 1), (1, 1), 1.0, 0.0, header)
    ct, pet = (
        Series(study + end, kind, "1", (place,)) for end, kind in ((".2", "CT"), (".3", "PT"))
    )
    return Scan(name, ct, pet, numbered=numbered)


def test_a_number_that_was_another_examinations_is_refused(pipeline, tmp_path):
    """One folder after the other of lone patients, or of patients that were added or removed."""

    def left(name: str, one: Scan) -> None:
        run_cohort([Given(name)], pipeline, tmp_path, existing="replace", picture=False)
        path = tmp_path / name / "report.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"scan": one.examination}))

    def again(*scans: Scan, existing="skip"):
        return run_cohort(scans, pipeline, tmp_path, existing=existing, picture=False)

    first, second, third = (examined(f"patient-00{n}", f"1.2.{n}") for n in (1, 2, 3))
    left("patient-001", first)
    left("patient-003", third)
    before = (tmp_path / "patient-001" / "report.json").read_bytes()
    with pytest.raises(RefusedError, match=r"patient-001 is of another examination: names of"):
        again(replace(second, patient_id="patient-001"))
    for existing in ("skip", "refuse"):
        with pytest.raises(RefusedError, match=r"patient-003 is of patient-002's examination"):
            again(replace(third, patient_id="patient-002"), existing=existing)
    assert (tmp_path / "patient-001" / "report.json").read_bytes() == before
    # The same again, one that is new, one whose name is its own, and --force: not for this reason.
    named = replace(second, patient_id="patient-001", numbered=False)
    for scans in ([first, second, third], [named]):
        assert len(again(*scans).failures) == len(scans)
    left("patient-001", first)
    other = replace(second, patient_id="patient-001")
    assert again(other, existing="replace").failures


def test_what_somebody_put_beside_a_result_meanwhile_is_not_removed(pipeline, tmp_path):
    run_cohort([Given("a")], pipeline, tmp_path, picture=False)

    class Writing(Given):
        def read(self):
            (tmp_path / "a" / "notes.txt").write_text("a reader's")
            return super().read()

    result = run_cohort([Writing("a")], pipeline, tmp_path, existing="replace", picture=False)
    assert "not what this command writes" in result.refused["a"]
    assert (tmp_path / "a" / "notes.txt").is_file() and (tmp_path / "a" / "mask.nii.gz").is_file()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("patient,why,\na,broken,x\n", "a column has no name"),
        ("patient,why\na,broken,more\n", "a row has more cells"),
        ('patient,why\na,"broken\n', "not readable as a table"),
    ],
)
def test_failures_that_somebody_damaged_are_refused_before_any_work(tmp_path, table, said):
    write_failures({"b": "broken"}, tmp_path)
    refuse_foreign_tables(tmp_path)
    (tmp_path / "failures.csv").write_text(table)
    with pytest.raises(RefusedError, match=rf"failures.csv: {said}.*as this command wrote it"):
        refuse_foreign_tables(tmp_path)
    assert (tmp_path / "failures.csv").read_text() == table


def test_one_patients_call_mends_the_cohorts_failures(tmp_path):
    write_failures({"a": "broken", "b": "broken"}, tmp_path)
    write_failures({"c": "broken"}, tmp_path, "-1of2")
    record_failures({"c"}, {}, tmp_path)
    record_failures({"a"}, {}, tmp_path)
    (only,) = failures_files(tmp_path)
    assert pd.read_csv(only).values.tolist() == [["b", "broken"]]
    record_failures({"d"}, {"d": "1,5 is no number"}, tmp_path)
    assert pd.read_csv(only).values.tolist() == [["b", "broken"], ["d", "1,5 is no number"]]
    record_failures({"b"}, {}, tmp_path)
    record_failures({"d"}, {}, tmp_path)
    assert not failures_files(tmp_path)
    # What the table makes harmless is said once, however often it is mended.
    record_failures({"-e"}, {"-e": "=no image"}, tmp_path)
    before = only.read_bytes()
    record_failures({"f"}, {}, tmp_path)
    assert only.read_bytes() == before
    record_failures({"-e"}, {}, tmp_path)
    assert not failures_files(tmp_path)


def test_a_page_is_written_where_asked_for_and_made_anew_where_it_lacks(pipeline, tmp_path):
    run_cohort([Given("a")], pipeline, tmp_path, picture=False)
    for done in (["a"], []):
        again = run_cohort(
            [Given("a")], pipeline, tmp_path, existing="skip", picture=False, page=True
        )
        assert again.done == done and again.code == Exit.OK
        assert (tmp_path / "a" / "page.html").is_file()
    run_cohort([Given("a")], pipeline, tmp_path, existing="replace", picture=False)
    assert not (tmp_path / "a" / "page.html").exists()


def test_an_entropy_map_is_written_where_asked_for_and_what_lacks_is_made_anew(pipeline, tmp_path):
    run_cohort([Given("a")], pipeline, tmp_path, picture=False)
    order = {"existing": "skip", "picture": False, "entropy": True}
    for done in (["a"], []):
        again = run_cohort([Given("a")], pipeline, tmp_path, **order)
        assert again.done == done and again.code == Exit.OK
    for name in ("entropy.nii.gz", "thumbnail.png"):  # as of a call that was killed
        (tmp_path / "a" / name).unlink()
        again = run_cohort([Given("a")], pipeline, tmp_path, **order)
        assert again.done == ["a"] and (tmp_path / "a" / name).is_file()
    found = sitk.ReadImage(str(tmp_path / "a" / "entropy.nii.gz"))
    array = sitk.GetArrayFromImage(found)
    assert found.GetSpacing() == (4.0, 4.0, 4.0) and 0 <= array.min() < array.max() <= 1
    inside = [found.TransformPhysicalPointToIndex(p) for p in ((0, 0, 0), (20, 0, 0))]
    assert all(0 <= i < n for index in inside for i, n in zip(index, found.GetSize()))
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["disagreement"] is None
    sure = [lesion["confidence"] for lesion in report["lesions"]]
    table = pd.read_csv(tmp_path / "a" / "lesions.csv")
    assert table["confidence"].tolist() == sure and all(0 < one <= 1 for one in sure)


def test_a_page_that_fails_costs_only_itself(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "write_page", lambda *_: 1 / 0)
    result = run_cohort([Given("a")], pipeline, tmp_path, page=True)
    assert result.code == Exit.INCOMPLETE and result.done == ["a"]
    assert "page.html not written" in result.incomplete["a"]
    assert (tmp_path / "a" / "picture.png").is_file()


def test_what_is_whole_is_skipped_whatever_lies_beside_it(pipeline, tmp_path):
    run_cohort([Given("a")], pipeline, tmp_path, picture=False)
    (tmp_path / "a" / "notes.txt").write_text("a reader's")
    again = run_cohort([Given("a")], pipeline, tmp_path, existing="skip", picture=False)
    assert again.skipped == ["a"] and (tmp_path / "a" / "notes.txt").is_file()


def test_an_output_folder_that_cannot_be_made_is_refused_before_any_work(pipeline, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    source = Given("a")
    with pytest.raises(RefusedError, match="cannot be made"):
        run_cohort([source], pipeline, tmp_path / "file")
    assert source.reads == 0


def test_memory_that_is_short_is_said_of_the_patient(pipeline, tmp_path):
    result = run_cohort([Given("a", MemoryError())], pipeline, tmp_path)
    assert result.code == Exit.FAULT and result.failed["a"].startswith("out of memory")


def test_the_next_patient_is_read_ahead_and_each_once(pipeline, tmp_path):
    sources = [Given("a"), Given("b", CaseError("patient b: no")), Given("c"), Given("d")]
    result = run_cohort(sources, pipeline, tmp_path, picture=False)
    assert [source.reads for source in sources] == [1, 1, 1, 1]
    assert result.done == ["a", "c", "d"] and result.refused == {"b": "no"}
    again = [Given("a"), Given("b"), Given("c")]
    run_cohort(again, pipeline, tmp_path, existing="skip", picture=False)
    assert [source.reads for source in again] == [0, 1, 0]


def test_a_file_that_changes_once_it_was_read_makes_the_result_one_of_before(pipeline, tmp_path):
    """The next patient is read while another is predicted, and may be rewritten then."""
    files = tmp_path / "files"
    files.mkdir()
    for name, image in (("ct", tiny_ct()), ("pet", tiny_pet())):
        sitk.WriteImage(image, str(files / f"{name}.nii.gz"))

    class Rewritten(Pair):
        def read(self):
            case = super().read()
            os.utime(self.pet, (1, 1))
            return case

    out, paths = tmp_path / "out", (files / "ct.nii.gz", files / "pet.nii.gz")
    assert run_cohort([Rewritten(*paths, name="a")], pipeline, out, picture=False).done == ["a"]
    again = run_cohort([Pair(*paths, name="a")], pipeline, out, existing="skip", picture=False)
    assert again.done == ["a"]
    whole = run_cohort([Pair(*paths, name="a")], pipeline, out, existing="skip", picture=False)
    assert whole.skipped == ["a"]


def test_a_thin_corrected_mask_is_measured_as_far_as_it_can_be(pipeline):
    """Between voxels of the working grid; one that leaves the region is refused."""
    case = Given("a").read()
    fine = Grid((400, 192, 160), (1.0, 1.0, 1.25), (-97.5, -97.5, -101.875))
    ct = sitk.Resample(case.ct, fine.image(np.zeros(fine.shape, np.int16)), defaultPixelValue=-1000)
    case, noted = replace(case, ct=ct), 0
    for plane in range(80, 84):
        thin = np.zeros(fine.shape, np.uint8)
        thin[plane, 90:110, 90:110] = 1
        found = pipeline(case, mask=fine.image(thin))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(found.mask), thin)
        noted += any("thin parts lie between voxels of 4 mm" in note for note in found.notes)
    assert noted >= 2
    thin[80:90, 90:110, 380:399] = 1
    with pytest.raises(CaseError, match=r"leaves the region that is looked at: 9\d% of it"):
        pipeline(case, mask=fine.image(thin))


def test_parts_of_a_cohort_are_all_of_it_once():
    sources = [Given(name) for name in "abcdefg"]
    parts = [part_of(sources, f"{k}/3") for k in (1, 2, 3)]
    assert sorted(s.patient_id for part in parts for s in part) == list("abcdefg")
    assert [len(part) for part in parts] == [3, 2, 2] and part_of(sources[:1], "2/3") == []
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0", "-1/3"):
        with pytest.raises(RefusedError, match="expected k/n"):
            part_of(sources, wrong)


def test_a_cohort_is_one_table_whoever_made_which_part(pipeline, tmp_path):
    for name in ("b", "a"):
        run_cohort([Given(name)], pipeline, tmp_path, picture=False)
    (tmp_path / "other").mkdir()
    table = pd.read_csv(write_cohort(tmp_path))
    assert table["patient"].tolist() == ["a", "b"] and set(table["verdict"]) == {"review"}
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    volume = sum(r["volume_ml"] for r in report["lesions"] if r["class"] == "GTVp")
    assert table.loc[0, "GTVp_ml"] == pytest.approx(volume)
    assert table.loc[0, "risk"] == pytest.approx(report["risk"]["value"])


@pytest.mark.parametrize(
    "text",
    [
        '{"lesions": [{"a": 1}], "bundle": "x"}',
        '{"lesions": 3, "bundle": "x"}',
        '{"lesions": [], "verdict": "ok", "bundle": "x"}',
        '{"lesions": [], "risk": null, "bundle": "x"}',
        '{"summary": "x"}',
        "[1, 2]",
    ],
)
def test_another_programs_report_is_no_patient_of_the_cohort(pipeline, tmp_path, text):
    run_cohort([Given("a")], pipeline, tmp_path, picture=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text(text)
    write_cohort(tmp_path)
    assert list(pd.read_csv(tmp_path / "cohort.csv")["patient"]) == ["a"]


def test_failures_are_a_table_that_goes_when_there_are_none(tmp_path):
    path = write_failures({"=a": "no\nimage"}, tmp_path, "-1of2")
    assert path.name == "failures-1of2.csv" and "'=a" in path.read_text()
    assert write_failures({}, tmp_path, "-1of2") is None and not path.exists()


def test_a_call_does_not_remove_what_another_made_meanwhile(pipeline, tmp_path):
    other = Given("a")

    class Failing(Given):
        def read(self):
            run_cohort([other], pipeline, tmp_path, picture=False)
            raise MemoryError

    result = run_cohort([Failing("a")], pipeline, tmp_path, picture=False)
    assert list(result.failures) == ["a"] and other.reads == 1
    assert (tmp_path / "a" / "report.json").is_file()


def test_a_call_for_all_mends_the_failures_of_parts(tmp_path):
    write_failures({"a": "broken", "z": "broken"}, tmp_path, "-1of2")
    write_failures({"b": "broken"}, tmp_path, "-2of2")
    record_failures({"a", "b", "c"}, {"c": "broken"}, tmp_path)
    assert {p.name: list(read_failures(p)) for p in failures_files(tmp_path)} == {
        "failures-1of2.csv": ["z"],
        "failures.csv": ["c"],
    }


def test_dicom_files_that_changed_are_other_files(tmp_path):
    """Their series' names stay where a weight was corrected or slices came later."""
    ct, pet = head()
    write_dicom(HEAD_GRID.image(ct), HEAD_GRID.image(pet), tmp_path / "in", "1")

    def made(path):
        (source,) = find_sources([path])
        return made_of(source, "bundle", Order(tmp_path))

    first = made(tmp_path / "in")
    assert made(tmp_path / "in") == first
    zipped = shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "in")
    assert made(Path(zipped)) == made(Path(zipped))  # unpacked anew, with the zip's times
    (source,) = find_sources([tmp_path / "in"])
    weighed = source.pet.slices[3].path
    data = pydicom.dcmread(weighed)
    data.PatientWeight = 2 * data.PatientWeight
    data.save_as(weighed)
    assert made(tmp_path / "in") != first
    second = made(tmp_path / "in")
    source.ct.slices[-1].path.unlink()
    assert made(tmp_path / "in") != second
