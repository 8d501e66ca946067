import pytest
import torch
from conftest import tensors_of, write_patient

from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.case import Outcome
from hmvnet.config import ClinicalSettings, DataSettings, Settings
from hmvnet.reading.folder import find_patients
from hmvnet.training.descriptions import LeakError, LesionDescriber, load_described


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
        describer.unseen_members("A-1")
    assert describer.unseen_members("A-2") == [0]
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
    said = {"time": "days", "event": "status", "event_codes": "1=0,2=1"}
    settings = Settings(data=data, clinical=ClinicalSettings.model_validate(said))
    (patient,) = load_described(bundle, settings, 8.0, tmp_path / "run")
    assert patient.outcome == Outcome(300.0, False)
    assert (
        f"{tmp_path}: 1 patient, 0 with a health record, 1 with a label, 1 with an outcome\n"
        in (capsys.readouterr().err)
    )
