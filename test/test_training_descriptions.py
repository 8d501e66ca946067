import pytest
import torch
from conftest import tensors_of, write_patient

from hmvnet.bundle import fingerprint, load_bundle, write_bundle
from hmvnet.reading.folder import find_patients
from hmvnet.training.descriptions import LeakError, LesionDescriber


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
