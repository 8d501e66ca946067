from dataclasses import replace

from conftest import predicted
from test_writing_page import TWO

from hmvnet.staging.estimate import StageEstimate, Staging
from hmvnet.writing.summary import Narrator


def test_what_is_to_be_known_of_a_stage_is_shown_with_it(capfd):
    t = StageEstimate("T4", {"T4": 0.8}, ("bone is lost", "30 mm"))
    staging = Staging(t, StageEstimate("N0"), "model", ("by size, number and side alone: T2 N0",))
    prediction = replace(predicted(*TWO), staging=staging)
    Narrator().summary(prediction, "tiny", "cpu", [])
    said = " ".join(capfd.readouterr().out.split())
    assert "T4: bone is lost, 30 mm" in said
    assert "note stage: by size, number and side alone: T2 N0" in said
