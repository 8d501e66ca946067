from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from hmvnet.case import ClinicalRecord
from hmvnet.prognosis.encoder import MISSING, ClinicalEncoder
from hmvnet.reading.records import HECKTOR, ClinicalSchema, parse_record

NAN = float("nan")
TRAINING = {
    "Age": [50.0, 60.0, 70.0, NAN],
    "Gender": [0, 1, 1, 1],
    "Tobacco Consumption": [0.0, 1.0, NAN, 1.0],
    "Alcohol Consumption": [0, 1, 0, 1],
    "Performance Status": [0, 1, 2, 1],
    "Treatment": [1, 1, 1, 1],
    "M-stage": ["M0", "M0", "M1", "Mx"],
    "HPV Status": [NAN, 1.0, 0.0, NAN],
    "CenterID": [1, 2, 3, 4],
}
# What a missing value looks like, by JSON, numpy, either pandas, and the people who type.
NOTHING = [None, NAN, np.float64("nan"), pd.NA, pd.NaT, "nan", "NaN", "", " ", "NA", "-", "?"]


def parsed(values: dict[str, object]) -> ClinicalRecord:
    return parse_record(values, "ehr.json")[0]


def training_records(**changed: object) -> list[ClinicalRecord]:
    """Four patients; a column can be replaced by a list or by one value for all."""
    columns = TRAINING | {k: v if isinstance(v, list) else [v] * 4 for k, v in changed.items()}
    return [parsed({name: column[i] for name, column in columns.items()}) for i in range(4)]


def encoded(encoder: ClinicalEncoder, **values: object) -> dict[str, float]:
    record = {"Age": 60, "Gender": 1, "Performance Status": 1, "M-stage": "M0", **values}
    vector, _ = encoder.transform_record(parsed(record))
    return dict(zip(encoder.feature_names_, vector.tolist(), strict=True))


@pytest.fixture
def encoder() -> ClinicalEncoder:
    return ClinicalEncoder(HECKTOR).fit(training_records())


def test_layout(encoder: ClinicalEncoder) -> None:
    assert encoder.feature_names_ == (
        "Age",
        "Age=missing",
        "Gender=1",
        "Tobacco Consumption=0",
        "Tobacco Consumption=1",
        "Tobacco Consumption=missing",
        "Alcohol Consumption=1",
        "Performance Status",
        "M-stage=M0",
        "M-stage=M1",
        "M-stage=Mx",
        "HPV Status=0",
        "HPV Status=1",
        "HPV Status=missing",
    )
    assert "Treatment: the same in all training patients, left out" in encoder.notes_


def test_every_output_column_varies_in_training(encoder: ClinicalEncoder) -> None:
    x = encoder.transform(training_records())
    assert x.dtype == np.float32
    assert x.shape == (4, len(encoder.feature_names_))
    assert np.isfinite(x).all()
    assert (x.std(axis=0) > 0).all()


def test_numbers_are_standardised_and_missing_is_the_median(encoder: ClinicalEncoder) -> None:
    observed = np.array([50.0, 60.0, 70.0])
    assert encoded(encoder, Age=70)["Age"] == pytest.approx(10 / observed.std())
    missing = encoded(encoder, Age=None)
    assert missing["Age"] == pytest.approx(0.0)
    assert (missing["Age=missing"], encoded(encoder, Age=70)["Age=missing"]) == (1.0, 0.0)


def test_missing_is_a_category_where_training_had_it(encoder: ClinicalEncoder) -> None:
    row = encoded(encoder, **{"HPV Status": None})
    assert [row[f"HPV Status={k}"] for k in ("0", "1", "missing")] == [0.0, 0.0, 1.0]


def test_missing_is_neutral_where_training_had_none(encoder: ClinicalEncoder) -> None:
    row = encoded(encoder, Gender=None, **{"M-stage": None})
    assert row["Gender=1"] == pytest.approx(0.75)
    assert [row[f"M-stage={k}"] for k in ("M0", "M1", "Mx")] == [0.5, 0.25, 0.25]


def test_category_not_seen_in_training_is_missing_and_reported(encoder: ClinicalEncoder) -> None:
    vector, notes = encoder.transform_record(ClinicalRecord({"Gender": "F"}))
    row = dict(zip(encoder.feature_names_, vector, strict=True))
    assert row["Gender=1"] == pytest.approx(0.75)
    assert "Gender: 1 value with a category not seen in training, treated as missing" in notes


def test_nothing_of_a_test_patient_changes_the_encoder(encoder: ClinicalEncoder) -> None:
    before = json.dumps(encoder.state())
    encoder.transform(training_records(Age=99.0, Gender="F"))
    assert json.dumps(encoder.state()) == before


def test_notes_count_and_hold_no_patient_value() -> None:
    ages = [612.0, 731, "sixty-six-and-a-half", None]
    stages = {"M-stage": ["M0 ", "m0", "M9x", "M9x"]}
    notes = ClinicalEncoder(HECKTOR).fit(training_records(Age=ages, **stages)).notes_
    assert "Age: 2 values in months, converted to years" in notes
    assert "Age: 1 value not a number, treated as missing" in notes
    assert "M-stage: 2 values with an unknown code, treated as missing" in notes
    assert "M-stage: 1 value as text, read as a code" in notes
    assert not any(text in note for note in notes for text in ("612", "731", "sixty", "M9x"))


def test_age_in_months_encodes_as_in_years(encoder: ClinicalEncoder) -> None:
    years, months = (encoder.transform(training_records(Age=a)) for a in (55, 55 * 12))
    np.testing.assert_allclose(years, months, atol=1e-6)


def test_columns_are_found_by_their_other_names() -> None:
    other = {"Tobacco Consumption": "Tobacco", "M-stage": "m_stage", "Age": "AGE"}
    records = training_records()
    renamed = [ClinicalRecord({other.get(k, k): v for k, v in r.values.items()}) for r in records]
    encoder = ClinicalEncoder(HECKTOR).fit(renamed)
    expected = ClinicalEncoder(HECKTOR).fit(records)
    np.testing.assert_array_equal(encoder.transform(renamed), expected.transform(records))
    assert "M-stage: read from column 'm_stage'" in encoder.notes_


def test_column_that_is_not_there_is_missing(encoder: ClinicalEncoder) -> None:
    vector, notes = encoder.transform_record(ClinicalRecord())
    assert np.isfinite(vector).all()
    assert "Age: no such column, treated as missing" in notes


def test_the_centre_is_no_feature(encoder: ClinicalEncoder) -> None:
    assert not any("enter" in name for name in encoder.feature_names_)
    moved = training_records(CenterID=7)
    np.testing.assert_array_equal(encoder.transform(moved), encoder.transform(training_records()))


def test_one_record_and_many_agree(encoder: ClinicalEncoder) -> None:
    records = training_records()
    for i, (record, expected) in enumerate(zip(records, encoder.transform(records), strict=True)):
        np.testing.assert_array_equal(encoder.transform_record(record)[0], expected)
        raw = ClinicalRecord({name: column[i] for name, column in TRAINING.items()})
        np.testing.assert_array_equal(encoder.transform_record(raw)[0], expected)


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
@pytest.mark.parametrize("make", [parsed, ClinicalRecord])
@pytest.mark.parametrize("codes", [(), ("a", "b")])
def test_a_missing_category_stays_missing(make, nothing: object, codes: Sequence[str]) -> None:
    """No NaN becomes a category, in training or after, of a record however it was made."""
    schema = ClinicalSchema.from_dict({"site": {"kind": "categorical", "codes": codes}})
    records = [make({"site": value}) for value in ("a", nothing, "b", "a", nothing)]
    encoder = ClinicalEncoder(schema).fit(records)
    assert encoder.feature_names_ == ("site=a", "site=b", f"site={MISSING}")
    assert "nan" not in json.dumps(encoder.state()).lower()
    x, notes = encoder.encode(records)
    assert x.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert not notes
    known = ClinicalEncoder(schema).fit([make({"site": value}) for value in "ab"])
    assert known.feature_names_ == ("site=b",)
    vector, notes = known.transform_record(make({"site": nothing}))
    assert vector.tolist() == [0.5] and not notes


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
@pytest.mark.parametrize("make", [parsed, ClinicalRecord])
def test_a_missing_number_stays_missing(make, nothing: object) -> None:
    schema = ClinicalSchema.from_dict({"age": {"kind": "numeric"}})
    encoder = ClinicalEncoder(schema).fit([make({"age": v}) for v in (50.0, nothing, 70.0)])
    assert encoder.feature_names_ == ("age", f"age={MISSING}")
    assert encoder.transform_record(make({"age": nothing}))[0].tolist() == [0.0, 1.0]


def test_the_encoder_of_a_shipped_bundle_loads() -> None:
    manifest = json.loads((ROOT / "weights" / "hmvnet-base" / "manifest.json").read_text())
    for state in manifest["prognosis"]["clinical"]:
        encoder = ClinicalEncoder.from_state(state)
        assert encoder.schema == HECKTOR
        assert json.loads(json.dumps(encoder.state())) == state
        assert "HPV Status=missing" in encoder.feature_names_


def test_state_survives_json(encoder: ClinicalEncoder) -> None:
    again = ClinicalEncoder.from_state(json.loads(json.dumps(encoder.state())))
    odd = training_records(Gender="F", Age=700)
    assert again.feature_names_ == encoder.feature_names_
    assert again.schema == encoder.schema
    np.testing.assert_array_equal(again.transform(odd), encoder.transform(odd))


def test_no_rows(encoder: ClinicalEncoder) -> None:
    assert encoder.transform([]).shape == (0, len(encoder.feature_names_))
    with pytest.raises(ValueError, match="without training patients"):
        ClinicalEncoder(HECKTOR).fit([])


def test_malformed_state_is_named(encoder: ClinicalEncoder) -> None:
    state = encoder.state()
    with pytest.raises(ValueError, match="encodings"):
        ClinicalEncoder.from_state({"schema": state["schema"]})
    del state["schema"]["Gender"]
    with pytest.raises(ValueError, match="'Gender'"):
        ClinicalEncoder.from_state(state)
