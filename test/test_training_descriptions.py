import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tensors_of, tiny_label, write_patient

from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.case import Outcome
from hmvnet.config import ClinicalSettings, DataSettings, Settings
from hmvnet.reading.folder import find_patients
from hmvnet.training.descriptions import (
    LeakError,
    LesionDescriber,
    load_described,
    unseen_members,
)


def test_a_planted_leak_is_caught(tiny_bundle, tmp_path):
    """A patient whose own segmentation network saw it must not be described by that network."""
    write_patient(tmp_path / "data", "A-1", "plain")
    (patient,) = find_patients(tmp_path / "data")
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.segmentation.model_copy(update={"seen": [[fingerprint("A-1")]]})
    leaky = bundle.manifest.model_copy(update={"segmentation": part})
    folder = write_bundle(tmp_path / "leaky", leaky, tensors_of(bundle))
    describer = LesionDescriber(load_bundle(folder), torch.device("cpu"), 8.0, tmp_path)
    with pytest.raises(LeakError, match="A-1"):
        unseen_members(describer.bundle, "A-1")
    assert unseen_members(describer.bundle, "A-2") == [0]
    with pytest.raises(ValueError, match="no outcome"):
        describer(patient)


def test_outcomes_are_read_as_the_settings_say_and_the_folder_is_told(
    tiny_bundle, tmp_path, capsys
):
    write_patient(tmp_path, "A-1", "plain")
    (tmp_path / "table.csv").write_text("Case,days,status\nA-1,300,1\n")
    bundle, data = load_bundle(tiny_bundle), DataSettings(root=str(tmp_path))
    with pytest.raises(ValueError, match=r"has an outcome \(RFS, Relapse\)"):
        load_described(bundle, Settings(data=data), 8.0, tmp_path / "run")
    alone = Settings(data=data, clinical=ClinicalSettings(tables=("t.csv",)))
    with pytest.raises(ValueError, match=r"clinical.tables=t.csv: .* wants images"):
        load_described(bundle, alone, 8.0, tmp_path / "run")
    said = {"time": "days", "event": "status", "event_codes": "1=0,2=1"}
    settings = Settings(data=data, clinical=ClinicalSettings.model_validate(said))
    (patient,) = load_described(bundle, settings, 8.0, tmp_path / "run")
    assert patient.outcome == Outcome(300.0, False)
    assert (
        f"{tmp_path}: 1 patient, 0 with a health record, 1 with a label, 1 with an outcome\n"
        in (capsys.readouterr().err)
    )


@pytest.fixture
def described(tiny_bundle, tmp_path):
    """Describes the patient A-1, whose outcome is known; and counts how often it is made."""
    write_patient(tmp_path / "data", "A-1", "plain")
    made = []

    def describe(label=..., **changed):
        if label is not ...:
            write_patient(tmp_path / "data", "A-1", "plain", label=label)
        (patient,) = find_patients(tmp_path / "data")
        patient = replace(patient, outcome=Outcome(100.0, True), **changed)
        describer = LesionDescriber(
            load_bundle(tiny_bundle), torch.device("cpu"), 8.0, tmp_path / "cache"
        )
        make = describer._describe
        describer._describe = lambda *given: made.append(given) or make(*given)
        return describer(patient).description

    return describe, made


def equal(one, other) -> bool:
    same = np.array_equal(one.features.values, other.features.values, equal_nan=True)
    return same and one.features.names == other.features.names and (one.image == other.image).all()


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "a bit of the data", "a bit of a name"])
def test_a_damaged_description_is_made_anew(described, tmp_path, damage):
    describe, made = described
    first = describe()
    assert equal(describe(), first) and len(made) == 1
    (file,) = (tmp_path / "cache").glob("lesions-*/A-1-*.npz")
    data = bytearray(file.read_bytes())
    data[data.index(b"names.npy") if damage == "a bit of a name" else len(data) // 2] ^= 1
    kept = {"gone": 0, "empty": 0, "cut": len(data) // 2}.get(damage, len(data))
    file.write_bytes(data[:kept])
    if damage == "gone":
        file.unlink()
    assert equal(describe(), first) and len(made) == 2
    assert equal(describe(), first) and len(made) == 2


def test_a_description_hangs_on_the_content_of_the_files(described, tmp_path):
    """Sizes and times of files may be the same where their content is not, and the other way."""
    describe, made = described
    describe()
    label = next((tmp_path / "data").rglob("A-1.nii.gz"))
    os.utime(label, (1, 1))
    describe()
    assert len(made) == 1
    describe(tiny_label() * 0)
    assert len(made) == 2
    describe(suv_factor=2.0)
    assert len(made) == 3


def test_who_comes_together_makes_a_description_once(described):
    describe, made = described
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: describe(), range(4))
    assert len(made) == 1 and all(equal(one, first) for one in others)


def test_crops_are_described_where_they_are_wanted(tiny_bundle, tmp_path):
    write_patient(tmp_path / "data", "A-1", "plain")
    (patient,) = find_patients(tmp_path / "data")
    patient = replace(patient, outcome=Outcome(100.0, True))
    bundle, cpu = load_bundle(tiny_bundle), torch.device("cpu")
    made = [
        LesionDescriber(bundle, cpu, 8.0, tmp_path / "cache", crops=crops)(patient).description
        for crops in (False, True, True)
    ]
    assert made[0].crops.names == () and len(made[1].crops.names) > 0
    assert made[1].crops.names[0].startswith("crop_primary_mean0_")
    np.testing.assert_array_equal(made[1].crops.values, made[2].crops.values)
    assert equal(made[0], made[1])
