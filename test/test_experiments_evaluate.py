import pandas as pd
import pytest
from conftest import write_patient
from rich.console import Console

from hmvnet.config import DataSettings, Settings
from hmvnet.experiments.evaluate import evaluate_segmentation


def test_scores_of_ours_and_the_platform_stand_in_one_table(tiny_bundle, tmp_path):

    for name in ("A-1", "A-2"):
        write_patient(tmp_path / "data", name, "plain")
    wanted = Settings(data=DataSettings(root=str(tmp_path / "data")))
    table = evaluate_segmentation(wanted, tiny_bundle, tmp_path, 0, Console(quiet=True))
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["patient_id"].tolist() == ["A-1", "A-2"]
    assert rows["gtvp_dice"].mean() == pytest.approx(table.gtvp_mean_dice)
    for name in ("gtvp", "gtvn"):
        some = rows[rows[f"{name}_truth_mm3"] + rows[f"{name}_prediction_mm3"] > 0]
        assert some[f"{name}_platform_dice"].tolist() == pytest.approx(
            some[f"{name}_dice"].tolist()
        )
        assert some[f"{name}_platform_jaccard"].between(0, 1).all()
