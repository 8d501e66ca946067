import json
import math

import pytest
import SimpleITK as sitk
from conftest import tiny_ct, tiny_pet

from hmvnet.case import CaseError
from hmvnet.reading.challenge import read_case, recognised_year
from hmvnet.writing.challenge import INTERFACES, RISK_PATH, OutputFolder

MASK_PATH = INTERFACES["2025"].mask

SOCKETS = [
    {"slug": "ct-image", "relative_path": "images/ct"},
    {"slug": "pet-image", "relative_path": "images/pet"},
    {"slug": "electronic-health-record", "relative_path": "ehr.json"},
]


@pytest.mark.parametrize("key", ["socket", "interface", None])
def test_inputs_json_of_every_kind(write_case, key):
    root = write_case()
    if key:
        (root / "inputs.json").write_text(json.dumps([{key: socket} for socket in SOCKETS]))
    case = read_case(root)
    assert case.ct.GetSize() == tiny_ct().GetSize()
    assert case.record.values["Age"] == 62


def test_inputs_json_names_other_folders(write_case):
    root = write_case()
    (root / "images" / "ct").rename(root / "images" / "another")
    moved = [{"socket": {"slug": "ct-image", "relative_path": "images/another"}}]
    (root / "inputs.json").write_text(json.dumps(moved))
    assert read_case(root).ct.GetSize() == tiny_ct().GetSize()


@pytest.mark.parametrize("relative", ["../../etc", "/etc"])
def test_inputs_json_that_leaves_the_input_folder(write_case, relative):
    root = write_case()
    entry = [{"socket": {"slug": "ct-image", "relative_path": relative}}]
    (root / "inputs.json").write_text(json.dumps(entry))
    with pytest.raises(CaseError, match="leaves the input folder"):
        read_case(root)


@pytest.mark.parametrize("relative", ["images/\0ct", "a" * 5000, "a/" * 3000, "\ud800", "loop/x"])
@pytest.mark.parametrize("slug", ["ct-image", "electronic-health-record"])
def test_inputs_json_with_what_is_no_path(write_case, relative, slug):
    root = write_case()
    (root / "loop").symlink_to("loop")
    entry = [{"socket": {"slug": slug, "relative_path": relative}}]
    (root / "inputs.json").write_text(json.dumps(entry))
    with pytest.raises(CaseError, match=rf"inputs.json: relative_path of '{slug}' .* is no path"):
        read_case(root)


def test_inputs_json_with_entries_of_any_kind(write_case):
    """A slug that is a list once was a TypeError."""
    strange = [None, 7, "ct-image", [], {}, {"socket": None}, {"socket": {"slug": ["ct-image"]}}]
    strange += [{"socket": {"slug": "dose", "relative_path": "../.."}}]
    root = write_case()
    (root / "inputs.json").write_text(json.dumps([*strange, *({"socket": s} for s in SOCKETS)]))
    case = read_case(root)
    assert case.record.values["Age"] == 62 and not case.notes


def test_inputs_json_with_two_places_of_one_image(write_case):
    root = write_case()
    other = {"slug": "pet", "relative_path": "images/other"}
    (root / "inputs.json").write_text(json.dumps([{"socket": s} for s in (*SOCKETS, other)]))
    with pytest.raises(CaseError, match=r"inputs.json: two places of 'pet', expected one"):
        read_case(root)


def test_inputs_json_that_is_no_list_is_said(write_case):
    root = write_case()
    (root / "inputs.json").write_text('{"inputs": []}')
    assert any("not a list of sockets; standard paths used" in w for w in read_case(root).notes)


def test_damaged_inputs_json_falls_back_with_a_warning(write_case):
    root = write_case()
    (root / "inputs.json").write_text("[{")
    assert any("standard paths" in w for w in read_case(root).notes)


@pytest.mark.parametrize("suffix", [".mha", ".nii", ".nii.gz"])
def test_image_suffixes(write_case, suffix):
    assert read_case(write_case(suffix=suffix)).pet.GetSize() == tiny_pet().GetSize()


def test_input_is_a_symlink(write_case, tmp_path):
    root = write_case()
    (tmp_path / "link").symlink_to(root)
    assert read_case(tmp_path / "link").ct.GetSize() == tiny_ct().GetSize()


def test_2026_record_with_a_trailing_comma(write_case):
    text = '{\n "CenterID": 9,\n "Age": 62,\n "HPV Status": 1,\n}'
    case = read_case(write_case(ehr=text))
    assert case.record.values["HPV Status"] == 1
    assert any("trailing comma" in w for w in case.notes)


@pytest.mark.parametrize("modality", ["ct", "pet"])
def test_missing_image(write_case, modality):
    with pytest.raises(CaseError, match=f"no image in images/{modality}"):
        read_case(write_case(**{modality: None}))


def test_two_images_in_one_socket(write_case):
    root = write_case()
    sitk.WriteImage(tiny_ct(), str(root / "images" / "ct" / "second.mha"))
    with pytest.raises(CaseError, match="2 images in images/ct"):
        read_case(root)


def test_companions_of_a_mac_are_no_images(write_case):
    root = write_case()
    for file in [p for p in root.rglob("*.mha")]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\xff")
    assert read_case(root).ct.GetSize() == tiny_ct().GetSize()


def test_link_that_leaves_the_input_folder(write_case, tmp_path):
    root = write_case(ct=None)
    sitk.WriteImage(tiny_ct(), str(tmp_path / "outside.mha"))
    (root / "images" / "ct" / "a.mha").symlink_to(tmp_path / "outside.mha")
    with pytest.raises(CaseError, match="leaves the input folder"):
        read_case(root)


@pytest.mark.parametrize("name", ["ehr.json", "inputs.json", "images/pet"])
def test_no_link_leaves_the_input_folder(write_case, tmp_path, name):
    root, outside = write_case(), tmp_path / "outside"
    (root / "inputs.json").write_text(json.dumps([{"socket": s} for s in SOCKETS[:2]]))
    (root / name).rename(outside)
    (root / name).symlink_to(outside)
    with pytest.raises(CaseError, match=r"leaves the input folder"):
        read_case(root, needs_record=False)


def test_links_inside_the_input_folder_are_followed(write_case):
    root = write_case()
    for name in ("ehr.json", "images/pet"):
        (root / name).rename(root / f"{name}-elsewhere")
        (root / name).symlink_to(root / f"{name}-elsewhere")
    assert read_case(root).record.values["Age"] == 62


def test_pet_and_ct_that_do_not_overlap(write_case):
    pet = tiny_pet()
    pet.SetOrigin((5000.0, 0.0, 0.0))
    with pytest.raises(CaseError, match="do not overlap"):
        read_case(write_case(pet=pet))


@pytest.mark.parametrize("value", [0.0, -5.0])
def test_pet_without_signal(write_case, value):
    with pytest.raises(CaseError, match="PET image: no voxel holds a positive value"):
        read_case(write_case(pet=tiny_pet() * 0 + value))


def test_constant_ct(write_case):
    with pytest.raises(CaseError, match="CT image: every voxel has the same value"):
        read_case(write_case(ct=tiny_ct() * 0))


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", '{"Age": ', "\x00\xff"])
def test_record_that_is_not_json(write_case, text):
    root = write_case(ehr=text)
    with pytest.raises(CaseError, match=r"ehr\.json"):
        read_case(root)
    assert not read_case(root, needs_record=False).record.values


def test_missing_record_is_a_warning(write_case):
    assert any("ehr.json" in w for w in read_case(write_case(ehr=None)).notes)


def test_outputs_are_all_or_nothing(tmp_path):
    (tmp_path / RISK_PATH).write_text("0.5")
    with pytest.raises(RuntimeError), OutputFolder(tmp_path) as output:
        assert not (tmp_path / RISK_PATH).exists(), "a stale output is removed at the start"
        output.write_mask(tiny_ct())
        output.write_rfs(1.0)
        raise RuntimeError
    assert not (tmp_path / MASK_PATH).exists()
    assert not (tmp_path / RISK_PATH).exists()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_risk_that_is_not_finite_is_never_written(tmp_path, value):
    with pytest.raises(ValueError), OutputFolder(tmp_path) as output:
        output.write_rfs(value)
    assert not (tmp_path / RISK_PATH).exists()


def test_outputs_never_go_through_a_link_out_of_the_folder(tmp_path):
    theirs = tmp_path / "elsewhere" / MASK_PATH.relative_to("images")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").symlink_to(tmp_path / "elsewhere")
    output = OutputFolder(tmp_path / "out")
    with pytest.raises(CaseError, match="a link leads out of the output folder"), output:
        output.write_mask(tiny_ct())
    assert theirs.read_text() == "mine"
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    with OutputFolder(tmp_path / "alias") as output:  # the folder itself may be one
        output.write_rfs(1.0)
    assert (tmp_path / "real" / RISK_PATH).is_file()


@pytest.mark.parametrize("name", ["M-stage", "M-Stage", "M stage", "mstage"])
def test_the_year_is_seen_by_a_field_however_it_is_written(write_case, name):
    root = write_case(ehr={"Age": 60, name: "M0"})
    (root / "inputs.json").write_text("[]")
    assert recognised_year(root)[0] == "2025"
