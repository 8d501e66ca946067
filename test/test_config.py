"""Settings: said once, read from XML and overrides, rendered as XML and Markdown."""

from __future__ import annotations

import typing

import numpy as np
import pytest
from conftest import ROOT
from typer.testing import CliRunner

from hmvnet.cli import app
from hmvnet.config import PostprocessingSettings, PreprocessingSettings, Settings
from hmvnet.exits import RefusedError
from hmvnet.networks.registry import NETWORKS
from hmvnet.settings_file import SECTIONS, load_settings, settings_markdown, settings_xml

DEFAULTS_FILE = ROOT / "model" / "config.xml"
FIELDS = [(s, n, field) for s, kind in SECTIONS.items() for n, field in kind.model_fields.items()]


@pytest.fixture
def load(tmp_path):
    """Settings of a file with this content."""

    def load(text: str | bytes, *overrides: str) -> Settings:
        path = tmp_path / "settings.xml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(path, overrides)

    return load


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=1", "stepz"),
        ("training.steps=0", "steps"),
        ("nonsense", "section.name=value"),
        ("data.fold_by=hospital", "fold_by"),
        ("augmentation.flip=2", "flip"),
        ("training.learning_rate=inf", "learning_rate"),
        ("training.seed=-1", "seed"),
        ("preprocessing.hu_window=300 -200", "hu_window: 300 is not below -200"),
        ("preprocessing.size_mm=200 200 0", "size_mm"),
        ("training.patch_size=96 96", "patch_size"),
        ("prognosis.branches=image tables", "branches"),
        ("prognosis.branches=", "branches"),
        ("network.options=channels", "'channels' is no option"),
        ("clinical.columns=Age", "columns"),
        ('clinical.tables="a b.csv', "a quote without an end"),
    ],
)
def test_wrong_settings_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_settings(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=1", "training.stepz: unknown setting, did you mean training.steps?"),
        ("trainin.steps=1", "trainin: unknown section, did you mean training?"),
        ("data.bags=1", "data.bags: unknown setting, did you mean prognosis.bags?"),
        ("zzz.steps=1", "zzz: unknown section, expected one of data, preprocessing, network, "),
        ("network.zzz=1", "network.zzz: unknown setting, expected one of name, options"),
        ("inference.output=risk", "inference.output: unknown setting, expected one of flips, "),
    ],
)
def test_an_unknown_name_brings_the_nearest_known_one(override, message):
    with pytest.raises(ValueError) as error:
        load_settings(None, [override])
    assert str(error.value).startswith(f"settings: {message}")


def test_all_wrong_settings_of_a_file_are_in_the_one_line_of_the_error(load):
    data, inference = "<data><folds>1</folds></data>", "<inference><output>x</output></inference>"
    with pytest.raises(ValueError) as error:
        load(f"<hmvnet>{inference}{data}</hmvnet>")
    message = str(error.value)
    assert message.startswith("settings.xml: data.folds: ") and "\n" not in message
    assert message.endswith("; 1 more: inference.output")


def test_a_wrong_override_is_not_blamed_on_the_file(load):
    with pytest.raises(ValueError, match=r"^settings: training\.steps: "):
        load("<hmvnet><training><seed>1</seed></training></hmvnet>", "training.steps=0")
    with pytest.raises(ValueError, match=r"^settings\.xml: training\.steps: "):
        load("<hmvnet><training><steps>0</steps></training></hmvnet>", "training.seed=1")


def test_network_options_are_parsed():
    settings = load_settings(None, ["network.options=channels=8 depths=1,2,3,4 norm=group"])
    assert settings.network.options == {"channels": 8, "depths": (1, 2, 3, 4), "norm": "group"}


def test_config_xml_holds_the_defaults():
    assert load_settings(DEFAULTS_FILE) == Settings()
    assert load_settings(None) == Settings()


def test_config_xml_is_the_one_that_hmvnet_settings_prints():
    message = "run: hmvnet settings > model/config.xml"
    assert DEFAULTS_FILE.read_text(encoding="utf-8") == settings_xml(), message


def test_the_reference_is_the_one_that_hmvnet_settings_prints():
    path = ROOT / "docs" / "reference" / "settings.md"
    message = "run: hmvnet settings --markdown > docs/reference/settings.md"
    assert path.read_text(encoding="utf-8") == settings_markdown(), message


def test_every_setting_is_described():
    for section, name, field in FIELDS:
        text = field.description or ""
        assert text.endswith(".") and text[0].isupper(), f"{section}.{name}"
        # Neither may stand in an XML comment or a table's cell.
        assert "--" not in text and "|" not in text, f"{section}.{name}"
    assert all(kind.__doc__ for kind in SECTIONS.values())


def test_every_setting_is_in_the_file_and_in_the_reference():
    reference = {part.split("\n", 1)[0]: part for part in settings_markdown().split("\n## ")[1:]}
    xml = settings_xml()
    for section, name, _ in FIELDS:
        assert f"\n| `{name}` | " in reference[section]
        assert f"<{'column ' if name == 'columns' else name + '>'}" in xml
    assert max(map(len, xml.splitlines())) <= 100


def test_every_network_is_named():
    description = SECTIONS["network"].model_fields["name"].description
    assert all(name in description for name in NETWORKS)


def arbitrary_value(annotation, metadata, rng: np.random.Generator):
    """A valid value of a field's type, seldom a round one."""
    limits = {k: getattr(m, k) for m in metadata for k in ("ge", "gt", "le", "lt") if hasattr(m, k)}
    low = limits.get("ge", limits.get("gt", -300.0))
    high = limits.get("le", limits.get("lt", low + 1000.0))
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return arbitrary_value(inner, [*(x for m in more for x in m.metadata)], rng)
    if typing.get_origin(annotation) is typing.Literal:
        return str(rng.choice(typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        parts = typing.get_args(annotation)
        if parts[-1] is ...:
            parts = parts[:1] * int(rng.integers(1, 20))
        values = [arbitrary_value(part, [], rng) for part in parts]
        return tuple(sorted(values) if parts == (float, float) else values)
    if annotation == dict[str, str]:
        codes = ["1", "-9", "no <evidence>", "d'é日\"&"]
        return {code: str(rng.integers(2)) for code in rng.permutation(codes)[: rng.integers(5)]}
    if annotation is bool:
        return bool(rng.integers(2))
    if annotation is int:
        return int(rng.integers(low, high))
    if annotation is float:
        return float(low + (high - low) * rng.uniform(0.01, 0.99) * 10.0 ** -rng.integers(0, 9))
    assert annotation is str
    return "".join(rng.choice(list("ab<>&\"'é日_--]]>;="), rng.integers(1, 12)))


def arbitrary_settings(seed: int) -> Settings:
    rng = np.random.default_rng(seed)
    values: dict = {name: {} for name in SECTIONS}
    for section, name, field in FIELDS:
        if name not in ("options", "columns"):
            values[section][name] = arbitrary_value(field.annotation, field.metadata, rng)
    values["prognosis"]["direct_weight"] = values["prognosis"]["linear_weight"] / 1e3
    values["prognosis"]["linear_weight"] *= 0.9
    for name in ("forest_weight", "mtlr_weight"):
        values["prognosis"][name] /= 1e3
    values["clinical"] |= {"time_unit": "days", "date_format": "<%d> %b & %Y"}  # of dates
    return Settings(**values)


@pytest.mark.parametrize("seed", range(20))
def test_rendered_settings_are_read_back_the_same(seed, load):
    settings = arbitrary_settings(seed)
    assert settings != Settings()
    again = load(settings_xml(settings))
    assert again == settings
    assert again.model_dump_json() == settings.model_dump_json()
    assert settings_xml(again) == settings_xml(settings)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", {}),
        ("1=0,2=1", {"1": "0", "2": "1"}),
        (" 1 = 0 , 2 = 1 ", {"1": "0", "2": "1"}),
        ("1=0 2=1", {"1": "0", "2": "1"}),
        ("no evidence=0, with=1", {"no evidence": "0", "with": "1"}),
    ],
)
def test_event_codes(text, codes):
    assert load_settings(None, [f"clinical.event_codes={text}"]).clinical.event_codes == codes


@pytest.mark.parametrize("text", ["1", "1=2", "1=0,2", "=1", "1=0 1=1", "1=0;2=1", "1:0,2:1"])
def test_wrong_event_codes_are_refused(text):
    with pytest.raises(RefusedError, match=r"clinical\.event_codes"):
        load_settings(None, [f"clinical.event_codes={text}"])


OPTIONS = {
    "channels": 16,
    "depths": (2, 2, 2, 2),
    "one": (3,),
    "mixed": (1, 2.5, "a", True),
    "rate": 1e-7,
    "whole": 1.0,
    "norm": "group",
    "deep": False,
    "empty": "",
}
COLUMNS = {
    'Age <years> & "more"': {
        "kind": "numeric",
        "low": "0",
        "high": "120",
        "other_units": {"months": "0.0833", "days": "0.00274"},
    },
    "grade": {"kind": "categorical", "codes": "1, 2, 3", "aliases": {"low": "1", "high": "3"}},
}


@pytest.mark.parametrize(
    "text", ["'my records.csv' b.csv", '"my records.csv", b.csv', '"my records.csv"b.csv']
)
def test_a_name_with_blanks_is_one_in_quotes(text):
    assert load_settings(None, [f"clinical.tables={text}"]).clinical.tables == (
        "my records.csv",
        "b.csv",
    )


@pytest.mark.parametrize(
    "values",
    [
        {"network": {"name": "unet3d", "options": OPTIONS}},
        {"network": {"options": {f"option{i}": i for i in range(40)}}},
        {"clinical": {"columns": COLUMNS, "tables": ("a.csv", "b.csv"), "follow_up": "last"}},
        {"clinical": {"tables": ("a table, of 2026.csv", "Ann's.csv", "'a", '"b', '""', "")}},
        {
            "clinical": {
                "tables": tuple(f"{n} of the first hospital, 2019 to 2024.csv" for n in "abcd")
            }
        },
        {"prognosis": {"direct_features": (), "branches": ("table",)}},
        {"data": {"root": "", "note": "two\nlines"}, "postprocessing": {"one_primary": False}},
        {"inference": {"time_budget_s": float("inf")}},
    ],
)
def test_what_is_special_is_read_back_the_same(values, load):
    settings = Settings(**values)
    again = load(settings_xml(settings))
    assert again == settings
    assert again.model_dump_json() == settings.model_dump_json()


def test_columns_given_as_numbers_keep_their_meaning(load):
    plain = {"age": {"kind": "numeric", "low": 0, "high": 120.5, "other_units": {"months": 1 / 12}}}
    plain["grade"] = {"kind": "categorical", "codes": ("1", "2"), "aliases": {"low": 1}}
    settings = Settings(clinical={"columns": plain})
    assert load(settings_xml(settings)).clinical.record_schema == settings.clinical.record_schema


@pytest.mark.parametrize(
    ("values", "section"),
    [
        ({"network": {"options": {"norm": None}}}, "network"),
        ({"network": {"options": {"norm": "1"}}}, "network"),
        ({"network": {"options": {"sizes": ((1, 2), (3, 4))}}}, "network"),
        ({"data": {"note": " spaces around "}}, "data"),
        ({"data": {"note": "bell \a"}}, "settings"),
        (
            {"clinical": {"columns": {"a": {"kind": "categorical", "codes": ("1,2", "3")}}}},
            "clinical",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_rather_than_changed(values, section):
    with pytest.raises(ValueError, match=f"^{section}: "):
        settings_xml(Settings(**values))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<hmvnet><data/><training/><data/></hmvnet>", "section data is given twice"),
        (
            "<hmvnet><data><folds>3</folds><seed>1</seed><folds>3</folds></data></hmvnet>",
            r"data\.folds is given twice",
        ),
        (
            '<hmvnet><clinical><column name="a" kind="numeric"/><column name="a" kind="numeric"/>'
            "</clinical></hmvnet>",
            r"clinical\.column: name 'a' is given twice",
        ),
        ('<hmvnet><clinical><column kind="numeric"/></clinical></hmvnet>', "name '' is empty"),
        ('<hmvnet><data><root at="x"/></data></hmvnet>', r"data\.root: expected text"),
        ("<hmvnet><data><root><b>x</b></root></data></hmvnet>", r"data\.root: expected text"),
        ("<hmvnet><data>", "not a readable XML file"),
        ("<settings/>", "root element <settings>"),
        ('<?xml version="1.0" encoding="klingon"?><hmvnet/>', "not a readable XML file"),
        (b"<hmvnet><data><note>\xff</note></data></hmvnet>", "not a readable XML file"),
    ],
)
def test_malformed_files_are_refused(text, message, load):
    with pytest.raises(ValueError, match=message):
        load(text)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(10))
EXTERNAL = '<!DOCTYPE hmvnet [<!ENTITY e SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    "text",
    [
        f"<!DOCTYPE hmvnet [{LAUGHS}]><hmvnet><data><note>&l9;</note></data></hmvnet>",
        f"{EXTERNAL}<hmvnet><data><note>&e;</note></data></hmvnet>",
        f'<?xml version="1.0" encoding="utf-16"?>{EXTERNAL}<hmvnet/>'.encode("utf-16"),
        '<!DOCTYPE hmvnet SYSTEM "http://localhost/settings.dtd"><hmvnet/>',
        "<!DOCTYPE hmvnet><hmvnet/>",
    ],
)
def test_document_types_and_their_entities_are_refused(text, load):
    with pytest.raises(ValueError, match="document type"):
        load(text)


def test_a_huge_file_is_refused(load):
    comment = "<!--" + "x" * (1 << 20) + "-->"
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        load(f"<hmvnet>{comment}</hmvnet>")


def test_a_deep_file_is_refused(load):
    depth = 40_000
    with pytest.raises(ValueError, match=r"a\.a: expected text"):
        load("<hmvnet>" + "<a>" * depth + "</a>" * depth + "</hmvnet>")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.xml: not a readable"):
        load_settings(tmp_path / "none.xml")


def test_dumps_that_cache_keys_hang_on_stay_as_they_are():
    assert PreprocessingSettings().model_dump_json() == (
        '{"spacing_mm":1.0,"size_mm":[200.0,200.0,310.0],"hu_window":[-200.0,300.0],'
        '"suv_window":[0.0,20.0]}'
    )
    assert PostprocessingSettings().model_dump_json() == (
        '{"threshold_gtvp":0.5,"threshold_gtvn":0.5,"min_ml_gtvp":0.2,"min_ml_gtvn":0.1,'
        '"confident":0.8,"cleanup":true,"one_primary":true,"airway_mm":20.0,'
        '"min_suv_peak_gtvp":0.0,"min_suv_peak_gtvn":0.0,"presence_gtvp":[0.0,0.0,0.0,0.0],'
        '"presence_gtvn":[0.0,0.0,0.0,0.0],"least_presence_gtvp":0.0,"least_presence_gtvn":0.0}'
    )
    # What a file says dumps as the defaults do, floats as floats.
    assert load_settings(DEFAULTS_FILE).model_dump_json() == Settings().model_dump_json()


def test_the_command_prints_what_a_run_would_use(tmp_path):
    path = tmp_path / "mine.xml"
    path.write_text("<hmvnet><training><steps>7</steps><seed>2</seed></training></hmvnet>")
    result = CliRunner().invoke(app, ["settings", "--config", str(path), "training.seed=3"])
    assert result.exit_code == 0
    path.write_text(result.stdout)
    assert load_settings(path) == Settings(training={"steps": 7, "seed": 3})
    assert CliRunner().invoke(app, ["settings"]).stdout == settings_xml()
    assert CliRunner().invoke(app, ["settings", "--markdown"]).stdout == settings_markdown()
    wrong = CliRunner().invoke(app, ["settings", "--markdown", "training.seed=3"])
    assert isinstance(wrong.exception, ValueError)


def test_a_printed_file_sets_nothing_explicitly(tmp_path):
    """Its defaults would otherwise take the place of a bundle's own settings."""
    path = tmp_path / "mine.xml"
    path.write_text(settings_xml(Settings(data={"root": "d"}, postprocessing={"confident": 0.7})))
    settings = load_settings(path, ["postprocessing.threshold_gtvp=0.5"])
    assert settings.data.model_fields_set == {"root"}
    assert settings.postprocessing.model_fields_set == {"confident", "threshold_gtvp"}
    assert not settings.preprocessing.model_fields_set
    assert settings.postprocessing.confident == 0.7
