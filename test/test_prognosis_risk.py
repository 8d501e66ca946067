import pytest
from conftest import described_patients, nothing_found

from hmvnet.bundle import load_bundle
from hmvnet.prognosis.encoder import ClinicalEncoder
from hmvnet.prognosis.member import PrognosisMember
from hmvnet.prognosis.risk import Prognosis, describe


def test_bundle_refuses_features_it_was_not_trained_on(tiny_bundle):
    prognosis = Prognosis(load_bundle(tiny_bundle))
    description = describe(nothing_found((20, 20, 20)), 8.0)
    with pytest.raises(ValueError, match="parts do not fit"):
        prognosis(description, described_patients(1)[0].record)


def test_a_file_without_the_model_it_weighs_is_refused(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    part = bundle.manifest.prognosis
    state = bundle.tensors(part.files[0])
    options = {k: v for k, v in part.settings.items() if k != "image_spacing_mm"}
    encoder = ClinicalEncoder.from_state(part.clinical[0])
    whole = PrognosisMember.from_tensors(encoder, options, state)
    assert set(whole.named) == {"direct", "linear", "forest"}
    lacking = {k: v for k, v in state.items() if not k.startswith("linear.")}
    with pytest.raises(ValueError, match=r"linear_weight is 0\.45, and its file lacks"):
        PrognosisMember.from_tensors(encoder, options, lacking)
