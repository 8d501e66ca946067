"""Every hostile input in both modes: refused without a file, or answered as well as can be."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import CT_GRID, HEAD_GRID, PET_GRID, head, tiny_ct, tiny_pet
from fuzz.metaimage import MHA
from fuzz.nifti import NII_GZ
from fuzz.records import EHR
from fuzz.samples import Kind, Mutation, Right
from fuzz.sockets import INPUTS
from fuzz.tiff import TIF
from hypothesis import HealthCheck, Phase, given, seed, settings
from test_answering_supervisor import answered

from hmvnet import container
from hmvnet.answering import supervisor
from hmvnet.answering.fallback import BY_UPTAKE, best_answer, by_uptake, risk_of_record
from hmvnet.answering.salvage import SALVAGED, salvage
from hmvnet.bundle import find_bundle, load_bundle, write_bundle
from hmvnet.case import ClinicalRecord, Grid
from hmvnet.exits import Exit
from hmvnet.pipeline import Pipeline
from hmvnet.prognosis.risk import Prognosis
from hmvnet.writing.challenge import RISK_PATH


@pytest.fixture
def here(monkeypatch):
    """Attempts in this process: another costs seconds."""

    def attempt(command, way, seconds):
        assert command[1:3] == ["-m", "hmvnet.container"]
        return container.main(list(command[3:]))

    monkeypatch.setattr(supervisor, "_attempt", attempt)


def run(folder: Path, output: Path, bundle: Path, mode: str, *options: str) -> int:
    words = ["--input", str(folder), "--output", str(output), "--weights", str(bundle)]
    words += ["--device", "cpu", "--interface", "2026", "--on-error", mode]
    return container.main([*words, *options])


def with_nan(image: sitk.Image, share: float) -> sitk.Image:
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    array.ravel()[: int(share * array.size)] = np.nan
    return Grid.of(image).image(array)


def moved(image: sitk.Image, mm: float) -> sitk.Image:
    other = sitk.Image(image)
    other.SetOrigin((mm, 0.0, 0.0))
    return other


HOSTILE = {
    "no CT": {"ct": None},
    "no PET": {"pet": None},
    "neither": {"ct": None, "pet": None},
    "no overlap": {"pet": moved(tiny_pet(), 9999.0)},
    "a PET without signal": {"pet": tiny_pet() * 0},
    "a CT of one value": {"ct": tiny_ct() * 0},
    "a CT that is no HU": {"ct": tiny_ct() * 0 + tiny_ct() * 7},
    "a PET of NaN": {"pet": with_nan(tiny_pet(), 0.5)},
    "a CT of NaN": {"ct": with_nan(tiny_ct(), 1.0)},
    "a PET of negative values": {"pet": tiny_pet() * -1.0 + 0.5},
    "a PET in Bq/mL": {"pet": tiny_pet() * 5000.0},
    "CT and PET exchanged": {"ct": tiny_pet(), "pet": tiny_ct()},
    "a record that is not JSON": {"ehr": "nonsense"},
    "a record that is a list": {"ehr": "[1, 2]"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_input_is_refused_or_answered(
    write_case, tmp_path, tiny_bundle, here, name, capfd
):
    folder = write_case(**HOSTILE[name])
    assert run(folder, tmp_path / "refused", tiny_bundle, "refuse") == Exit.REFUSED
    assert not [p for p in (tmp_path / "refused").rglob("*") if p.is_file()]
    refusal = capfd.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")
    assert run(folder, tmp_path / "answered", tiny_bundle, "answer") == Exit.OK
    mask, _ = answered(tmp_path / "answered")
    said = capfd.readouterr()
    assert refusal[:60] in " ".join((said.err + said.out).split()), "the reason is said"
    if "CT" not in name and "exchanged" not in name and name != "neither":
        assert Grid.of(mask).same_as(CT_GRID, 1e-6)


def test_what_is_not_refused_is_answered_the_same(write_case, tmp_path, tiny_bundle, here):
    """What is repaired too: a CT whose intercept is missing."""
    ct, pet = head()
    images = {"ct": HEAD_GRID.image((ct + 1024).astype(np.int16)), "pet": HEAD_GRID.image(pet)}
    for name, folder in (("plain", write_case()), ("mended", write_case(**images, folder="m"))):
        for mode in ("refuse", "answer"):
            assert run(folder, tmp_path / name / mode, tiny_bundle, mode) == Exit.OK
        one, other = (answered(tmp_path / name / mode) for mode in ("refuse", "answer"))
        np.testing.assert_array_equal(*(sitk.GetArrayFromImage(m) for m in (one[0], other[0])))
        assert one[1] == other[1]


@pytest.mark.parametrize("damage", ["manifest.json", "fold0.safetensors", "prognosis0.safetensors"])
def test_damaged_weights_are_answered_by_what_is_whole(
    write_case, tmp_path, tiny_bundle, here, damage, capfd
):
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / damage).write_bytes(b"{}")
    ct, pet = head()
    case = write_case(ct=HEAD_GRID.image(ct), pet=HEAD_GRID.image(pet))
    assert run(case, tmp_path / "out", bundle, "answer") == Exit.OK
    mask, _ = answered(tmp_path / "out")
    assert sitk.GetArrayViewFromImage(mask).any(), "what takes up FDG, at least"
    said = capfd.readouterr().err
    assert damage in said or "bundle" in said, "what is damaged is named"


def test_a_bundle_without_a_survival_model_is_asked_for_its_masks(
    write_case, tmp_path, tiny_bundle, here, capfd
):
    """As segmentation train and import nnunet write them: its networks count, the risk cannot."""
    whole = load_bundle(tiny_bundle)
    part = whole.manifest.segmentation
    tensors = {name: whole.tensors(name) for name in part.all_files}
    manifest = whole.manifest.model_copy(update={"prognosis": None})
    bundle = write_bundle(tmp_path / "bundle", manifest, tensors)
    assert run(write_case(), tmp_path / "refused", bundle, "refuse") == Exit.REFUSED
    assert "holds no survival model, which a risk wants: expected" in capfd.readouterr().err
    for name, weights in (("with", tiny_bundle), ("without", bundle)):
        assert run(write_case(), tmp_path / name, weights, "answer") == Exit.OK
    said = capfd.readouterr().err
    assert "no risk but the least" in said and "ended with exit code" not in said
    one, other = (answered(tmp_path / name) for name in ("with", "without"))
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(m) for m in (one[0], other[0])))
    assert one[1] != other[1]


@pytest.mark.parametrize("mode", ["refuse", "answer"])
def test_an_upload_that_is_no_bundle_is_said(
    write_case, tmp_path, tiny_bundle, here, capfd, monkeypatch, mode
):
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "fold0.safetensors").touch()
    monkeypatch.setattr("hmvnet.bundle.PLATFORM_MODEL_DIR", tmp_path / "opt")
    monkeypatch.setattr(find_bundle, "__defaults__", (None, (tiny_bundle,)))
    words = ["--input", str(write_case()), "--output", str(tmp_path / "out"), "--on-error", mode]
    code = container.main([*words, "--device", "cpu", "--interface", "2026"])
    said = capfd.readouterr().err
    assert "opt holds no bundle, found fold0.safetensors; expected manifest.json" in said
    assert code == (Exit.OK if mode == "answer" else Exit.REFUSED)
    if mode == "answer":
        assert "the image's own weights are used" in said and "ended with exit code" not in said
        assert run(write_case(), tmp_path / "tiny", tiny_bundle, mode) == Exit.OK
        one, other = (answered(tmp_path / name) for name in ("out", "tiny"))
        np.testing.assert_array_equal(*(sitk.GetArrayFromImage(m) for m in (one[0], other[0])))
        assert one[1] == other[1]


def test_a_network_that_fails_is_answered_without(
    write_case, tmp_path, tiny_bundle, here, monkeypatch, capfd
):
    def failing(self, volume):
        raise RuntimeError("the network gave NaN or infinite probabilities")

    monkeypatch.setattr("hmvnet.segmentation.ensemble.Ensemble.__call__", failing)
    ct, pet = head()
    case = write_case(ct=HEAD_GRID.image(ct), pet=HEAD_GRID.image(pet))
    assert run(case, tmp_path / "out", tiny_bundle, "answer") == Exit.OK
    mask, values = answered(tmp_path / "out")
    assert sitk.GetArrayViewFromImage(mask).any() and values[RISK_PATH.name] != 0.0
    assert "infinite probabilities" in capfd.readouterr().err


def test_a_risk_that_fails_costs_the_mask_nothing(
    write_case, tmp_path, tiny_bundle, here, monkeypatch
):
    assert run(write_case(), tmp_path / "whole", tiny_bundle, "answer") == Exit.OK
    monkeypatch.setattr("hmvnet.pipeline.describe", lambda *_: 1 / 0)
    assert run(write_case(), tmp_path / "less", tiny_bundle, "answer") == Exit.OK
    whole, less = (answered(tmp_path / name) for name in ("whole", "less"))
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(m) for m in (whole[0], less[0])))


@pytest.mark.parametrize(
    ("name", "value"),
    [("HMVNET_TASK", "3"), ("HMVNET_DEVICE", "gpu"), ("HMVNET_INTERFACE", "2027")],
)
def test_an_environment_that_is_wrong_is_answered_by_its_defaults(
    write_case, tmp_path, tiny_bundle, here, monkeypatch, name, value, capfd
):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("HMVNET_ON_ERROR", "answer\r")
    words = ["--input", str(write_case()), "--output", str(tmp_path / "out")]
    assert container.main([*words, "--weights", str(tiny_bundle)]) == Exit.OK
    answered(tmp_path / "out", "2025")
    assert f"{name}" in capfd.readouterr().err


def test_a_task_alone_is_none_of_2026(write_case, tmp_path, tiny_bundle, here, capfd):
    folder = write_case()
    assert run(folder, tmp_path / "a", tiny_bundle, "refuse", "--task", "1") == Exit.REFUSED
    assert "no tasks" in capfd.readouterr().err
    assert run(folder, tmp_path / "b", tiny_bundle, "answer", "--task", "1") == Exit.OK
    answered(tmp_path / "b")


def test_a_bundle_of_its_own_interface(write_case, tmp_path, tiny_bundle, here):
    """The setting is the bundle's; what the first process wrote for another year is gone."""
    words = ["--input", str(write_case()), "--output", str(tmp_path / "out")]
    words += ["--weights", str(tiny_bundle), "--set", "data.interface=2026"]
    assert container.main([*words, "--on-error", "answer"]) == Exit.OK
    answered(tmp_path / "out")


def test_without_networks_what_takes_up_fdg_is_found(write_case):
    ct, pet = head()
    images = {"ct": HEAD_GRID.image(ct), "pet": HEAD_GRID.image(pet)}
    case = by_uptake(salvage(write_case(**images)).case)
    assert case.lesions and BY_UPTAKE in case.verdict.codes and case.verdict.status == "review"


@pytest.mark.parametrize("turned", [False, True])
def test_a_pet_in_another_unit_is_scaled_whatever_else_is_wrong_with_it(
    write_case, tiny_bundle, turned
):
    """One that lies upside down as well is refused for that, which comes first."""
    ct, pet = head()
    pet = pet[::-1].copy() if turned else pet
    seen = {}
    for name, factor in (("suv", 1.0), ("bq", 5000.0)):
        images = {"ct": HEAD_GRID.image(ct), "pet": HEAD_GRID.image(pet * factor)}
        model = Pipeline(load_bundle(tiny_bundle), torch.device("cpu"))
        found = best_answer(write_case(**images, folder=name), model, lambda name: None)
        seen[name] = found.prediction.segmentation.volume
    usual = np.median(seen["suv"].raw[1][seen["suv"].raw[0] > -500])
    scaled = np.median(seen["bq"].raw[1][seen["bq"].raw[0] > -500])
    assert 0.3 < scaled / usual < 3
    codes = {finding.code for finding in seen["bq"].findings}
    assert ("pet-turned" in codes) is turned and "pet-not-suv" not in codes


def test_what_is_missing_or_broken_is_put_right_as_far_as_can_be(write_case):
    apart = salvage(write_case(pet=moved(tiny_pet(), 9999.0), folder="apart")).case
    middles = [Grid.of(image).corners().mean(axis=0) for image in (apart.ct, apart.pet)]
    np.testing.assert_allclose(*middles, atol=1e-6)
    broken = salvage(write_case(ct=with_nan(tiny_ct(), 0.3), folder="broken")).case
    assert np.isfinite(sitk.GetArrayViewFromImage(broken.ct)).all()
    outlined = sitk.GetArrayFromImage(salvage(write_case(ct=None, folder="none")).case.ct)
    assert set(np.unique(outlined)) == {-1000.0, 0.0} and 0.1 < (outlined == 0).mean() < 0.9


def test_large_uptake_alone_is_no_tumour(write_case):
    """The skull is left out, so that no rule but that of the size knows the brain."""
    ct, pet = head()
    ct = np.where(ct > 500, 40, ct).astype(np.int16)
    images = {"ct": HEAD_GRID.image(ct), "pet": HEAD_GRID.image(pet)}
    lesions = by_uptake(salvage(write_case(**images)).case).lesions
    assert lesions and max(lesion.volume_ml for lesion in lesions) < 50


def test_where_images_fail_the_record_still_orders_patients(
    write_case, tmp_path, tiny_bundle, here
):
    risks = []
    for age in (40, 80):
        record = json.dumps({"Age": age, "Gender": 1})
        folder = write_case(ct=None, pet=None, ehr=record, folder=f"age{age}")
        assert run(folder, tmp_path / f"out{age}", tiny_bundle, "answer") == Exit.OK
        risks.append(answered(tmp_path / f"out{age}")[1][RISK_PATH.name])
    assert risks[0] != risks[1]


def test_what_is_salvaged_says_so(write_case):
    found = salvage(write_case(ct=None))
    assert found.case is not None and "images/ct" in found.refusal
    assert {finding.code for finding in found.case.findings} == {SALVAGED}
    assert Grid.of(found.case.ct).same_as(PET_GRID)
    assert found.record.values["Age"] == 62


def test_the_record_alone_orders_patients(tiny_bundle):
    model = Prognosis(load_bundle(tiny_bundle))
    risks = [risk_of_record(model, ClinicalRecord({"Age": age})).value for age in (40, 60, 80)]
    assert np.isfinite(risks).all() and len(set(risks)) > 1


def lay(kind: Kind, sample, folder: Path, write_case) -> Path:
    """A challenge folder in which one input is a fuzzed one."""
    if kind is INPUTS:
        folder.mkdir()
        sample.lay(folder)
        return folder
    case = write_case(folder=folder.name)
    place = case if kind is EHR else case / "images" / "ct"
    for path in [case / "ehr.json"] if kind is EHR else place.iterdir():
        path.unlink()
    sample.lay(place)
    return case


FUZZED = [
    (kind, mutation)
    for kind in (MHA, NII_GZ, TIF, EHR, INPUTS)
    for mutation in kind.mutations
    if mutation.right in (Right.REFUSED, Right.EITHER)
]


@pytest.mark.parametrize(
    ("kind", "mutation"),
    # Of what declares many voxels, a mask of as many is written.
    [
        pytest.param(kind, m, marks=pytest.mark.slow if "more_declared" in m.name else ())
        for kind, m in FUZZED
    ],
    ids=[f"{kind.name} {m.name}" for kind, m in FUZZED],
)
def test_what_the_fuzzer_damages_is_answered(
    kind: Kind, mutation: Mutation, write_case, tmp_path, tiny_bundle, here, monkeypatch
):
    # The networks say nothing of such volumes; what is asked here is whether there is an answer.
    monkeypatch.setattr(supervisor, "WAYS", supervisor.WAYS[-1:])

    @seed(7)
    @settings(
        max_examples=1,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs(mutation))
    def each(drawn) -> None:
        number = len(list(tmp_path.glob("in*")))
        folder = lay(kind, drawn.sample, tmp_path / f"in{number}", write_case)
        output = tmp_path / f"out{number}"
        assert run(folder, output, tiny_bundle, "answer") == Exit.OK
        answered(output)

    each()


def test_what_the_platform_of_2026_gives(write_case, tmp_path, tiny_bundle):
    """Its form: a record with an HPV status and a trailing comma, sockets by ``inputs.json``."""
    record = '{"CenterID": 3, "Age": 58, "Gender": 0, "Treatment": 1, "HPV Status": 1,\n}'
    folder = write_case(ehr=record)
    sockets = {
        "ct-image": "images/ct",
        "pet-image": "images/pet",
        "electronic-health-record": "ehr.json",
    }
    entries = [{"socket": {"slug": s, "relative_path": p}} for s, p in sockets.items()]
    (folder / "inputs.json").write_text(json.dumps(entries))
    words = ["--input", str(folder), "--output", str(tmp_path / "out")]
    assert container.main([*words, "--weights", str(tiny_bundle)]) == Exit.OK
    _, values = answered(tmp_path / "out")
    assert 500 <= values[RISK_PATH.name] <= 2000  # days
