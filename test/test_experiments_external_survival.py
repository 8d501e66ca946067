import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from hmvnet.experiments import external_survival
from hmvnet.experiments.external_survival import compare_elsewhere
from hmvnet.settings_file import load_settings
from hmvnet.survival.validation import score

SETTINGS = """<hmvnet><clinical><tables>all.csv</tables><patient>id</patient>
<time>days</time><event>relapse</event>
<column name="age" kind="numeric" low="0" high="120"/>
<column name="grade" kind="categorical"/><column name="hpv" kind="categorical"/>
</clinical></hmvnet>"""


def write_site(folder, seed: int, count: int, **changes) -> None:
    """A hospital's table; the grade shortens the time, by as much everywhere."""
    rng = np.random.default_rng(seed)
    grade = rng.integers(1, 4, count)
    days = rng.exponential(3000 * np.exp(-0.9 * grade))
    until = rng.uniform(300, 2500, count)
    table = pd.DataFrame(
        {
            "id": [f"{folder.name}{i:03d}" for i in range(count)],
            "days": np.ceil(np.minimum(days, until)),
            "relapse": (days <= until).astype(int),
            "age": rng.integers(40, 80, count),
            "grade": [f"G{g}" for g in grade],
            "hpv": rng.choice(["neg", "pos"], count),
        }
    ).assign(**changes)
    folder.mkdir()
    table.drop(columns=[c for c in table if table[c].isna().all()]).to_csv(
        folder / "all.csv", index=False
    )


@pytest.fixture
def sites(tmp_path):
    write_site(tmp_path / "A", 0, 160)
    write_site(tmp_path / "B", 1, 120, hpv=None)
    (tmp_path / "settings.xml").write_text(SETTINGS)
    return tmp_path


def test_models_of_one_hospital_at_another(sites) -> None:
    settings = load_settings(sites / "settings.xml", [f"data.root={sites / 'A'}"])
    file, run = io.StringIO(), sites / "run"
    console = Console(file=file, width=200)
    table = compare_elsewhere(settings, sites / "B", None, run, console, ["coxph", "icare"])
    text = file.getvalue()
    assert "120 patients of another cohort" in text and "fitted to 160" in text
    assert "hpv: no such column" in text
    cox = table.loc["coxph"]
    assert float(cox["C (95% CI)"].split()[0]) > 0.6
    assert 0.4 < cox["calibration slope"] < 2.5 and cox["Brier"] < 0.25
    decisions = pd.read_csv(run / "decision.csv")
    assert list(decisions) == ["threshold", "coxph", "everyone"]
    assert (decisions["coxph"] >= decisions["everyone"] - 0.05).all()
    for name in ("survival.md", "risks.csv", "calibration.png", "decision.png"):
        assert (run / name).stat().st_size > 100


def test_censoring_is_that_of_the_patients_scored(sites, monkeypatch) -> None:
    """Who were followed otherwise than those fitted to."""
    followed = []

    def scored(*args, **named):
        followed.append(named["followed"])
        return score(*args, **named)

    monkeypatch.setattr(external_survival, "score", scored)
    settings = load_settings(sites / "settings.xml", [f"data.root={sites / 'A'}"])
    console = Console(file=io.StringIO())
    compare_elsewhere(settings, sites / "B", None, sites / "run", console, ["coxph"])
    assert [len(one) for one in followed] == [120]


def test_a_category_that_nobody_fitted_to_had_is_said(sites) -> None:
    write_site(sites / "C", 2, 60, grade="G9")
    settings = load_settings(sites / "settings.xml", [f"data.root={sites / 'A'}"])
    file = io.StringIO()
    console = Console(file=file, width=200)
    compare_elsewhere(settings, sites / "C", None, sites / "run", console, ["coxph"])
    assert "grade: 60 values with a category not seen in training" in file.getvalue()


def test_a_patient_in_both_cohorts_is_refused(sites) -> None:
    settings = load_settings(sites / "settings.xml", [f"data.root={sites / 'A'}"])
    with pytest.raises(ValueError, match="160 patients in both cohorts, A000 among them"):
        compare_elsewhere(settings, sites / "A", None, sites / "run", Console(quiet=True))
