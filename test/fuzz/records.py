"""Health records, ``ehr.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.samples import Draw, Found, Kind, Link, OneFile, Pipe, Right, changed_bytes, several
from hmvnet.reading.records import read_health_record

NUMBERS = ("Age", "Weight", "Haemoglobin")
CODES = ("CenterID", "Gender", "Tobacco Consumption", "Performance Status", "Treatment")
TOWNS = ("Münster", "Kraków", "Zürich, Höngg", "東京", "a,}", "M0")


@dataclass
class Record(OneFile):
    """The fields, and how they are written."""

    raw: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    encoding: str = "utf-8"

    def text(self) -> str:
        return json.dumps(self.raw, **({"ensure_ascii": False} | self.options))

    def parts(self) -> bytes:
        return self.text().encode(self.encoding)


def draw_fields(draw: Draw) -> dict[str, Any]:
    """Fields of a record, as numbers and texts that are told nowhere else."""
    raw: dict[str, Any] = {name: draw(secrets) for name in NUMBERS}
    raw |= {name: draw(st.integers(0, 4)) for name in CODES}
    raw |= {"M-stage": draw(st.sampled_from(["M0", "M1", "Mx"])), "Town": draw(towns)}
    left = draw(st.sets(st.sampled_from(sorted(raw)), max_size=3)) - {"Age"}
    return {name: value for name, value in raw.items() if name not in left}


# Numbers of so many digits that nothing else in a message is the same.
secrets = st.integers(1_000_001, 9_999_999).map(lambda n: n / 1e5)
towns = st.sampled_from(TOWNS)


def meant(raw: dict[str, Any]) -> dict[str, Any]:
    """What plain fields say."""
    return {k: float(v) if isinstance(v, (int, float)) else v for k, v in raw.items()}


def _clean(draw: Draw) -> Record:
    raw = draw_fields(draw)
    return Record(
        {"record": meant(raw)},
        name="ehr.json",
        named=("ehr.json",),
        raw=raw,
        secrets=tuple(str(v) for v in raw.values() if isinstance(v, float)),
    )


def _read(folder: Path, sample: Record) -> Found:
    record, notes = read_health_record(folder / sample.name)
    return Found({"record": dict(record.values)}, notes)


EHR = Kind("ehr.json", _clean, _read)


@EHR.mutation(Right.SAME)
def written_otherwise(draw: Draw, record: Record) -> None:
    record.options = {
        "indent": draw(st.sampled_from([None, 0, 4, "\t"])),
        "separators": draw(st.sampled_from([(",", ":"), (" , ", " : "), (",\n", ":\r\n")])),
        "ensure_ascii": draw(st.booleans()),
    }


@EHR.mutation(Right.SAME)
def fields_in_any_order(draw: Draw, record: Record) -> None:
    record.raw = dict(draw(st.permutations(list(record.raw.items()))))


@EHR.mutation(Right.SAME)
def more_fields(draw: Draw, record: Record) -> None:
    record.raw |= {"Notes": 'a "b" \\ , }', "Größe": 1.5, "": "nobody's", "Site": None}
    record.values["record"] = meant(record.raw)


@EHR.mutation(Right.SAME)
def whole_numbers_with_a_point(draw: Draw, record: Record) -> None:
    record.raw = {k: float(v) if isinstance(v, int) else v for k, v in record.raw.items()}


@EHR.mutation(Right.SAME)
def a_mark_and_blanks_around(draw: Draw, record: Record) -> None:
    around = draw(st.text(" \t\r\n", max_size=40))
    mark = draw(st.sampled_from(["", "\ufeff"]))
    record.content = f"{mark}{around}{record.text()}{around}".encode()


@EHR.mutation(Right.SAME)
def blanks_around_names(draw: Draw, record: Record) -> None:
    record.raw = {f"  {name}\t": value for name, value in record.raw.items()}


@EHR.mutation(Right.SAME)
def nothing_known(draw: Draw, record: Record) -> None:
    record.raw = draw(st.sampled_from([{}, dict.fromkeys(record.raw)]))
    record.values["record"] = dict(record.raw)


@EHR.mutation(Right.SAME)
def large_and_small_numbers(draw: Draw, record: Record) -> None:
    record.raw |= {"a": 10**200, "b": -1e-300, "c": 1e300, "d": 0, "e": -0.0}
    record.values["record"] = meant(record.raw)


@EHR.mutation(Right.REPAIRED)
def numbers_as_text(draw: Draw, record: Record) -> None:
    around = draw(st.sampled_from(["{}", " {} ", "{}\n"]))
    record.raw = {
        k: around.format(v) if isinstance(v, (int, float)) else v for k, v in record.raw.items()
    }


@EHR.mutation(Right.REPAIRED)
def trailing_commas(draw: Draw, record: Record) -> None:
    record.content = (
        record.text()[:-1] + draw(st.sampled_from([",}", ", \n}", ",\t}\n"]))
    ).encode()


@EHR.mutation(Right.REPAIRED)
def another_encoding(draw: Draw, record: Record) -> None:
    choices = ["utf-16", "utf-16-le", "utf-16-be"]
    if record.raw.setdefault("Town", TOWNS[0]) == TOWNS[0]:
        choices += ["cp1252", "latin-1"]
    record.raw = {k: v if v != "東京" else "Köln" for k, v in record.raw.items()}
    record.values["record"] = meant(record.raw)
    record.encoding = draw(st.sampled_from(choices))


@EHR.mutation(Right.REPAIRED)
def no_number(draw: Draw, record: Record) -> None:
    """What Python's JSON takes and the standard does not, or no number holds."""
    words = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 400, "-" + "9" * 5000]
    mark = "to be replaced"
    record.raw["Age"] = mark
    record.content = record.text().replace(f'"{mark}"', draw(st.sampled_from(words))).encode()
    record.values["record"]["Age"] = None


@EHR.mutation(Right.REPAIRED)
def words_for_nothing(draw: Draw, record: Record) -> None:
    record.raw["Age"] = draw(st.sampled_from(["", "  ", "NaN", "n/a", "unknown", "-", "?", "null"]))
    record.values["record"]["Age"] = None


@EHR.mutation(Right.REPAIRED)
def no_single_value(draw: Draw, record: Record) -> None:
    record.raw["Age"] = draw(st.sampled_from([[], [61], {}, {"years": 61}, [[[]]]]))
    record.values["record"]["Age"] = None


@EHR.mutation(Right.REPAIRED)
def true_and_false(draw: Draw, record: Record) -> None:
    record.raw["Gender"] = draw(st.booleans())
    record.values["record"]["Gender"] = float(record.raw["Gender"])


@EHR.mutation(Right.REPAIRED)
def a_field_twice(draw: Draw, record: Record) -> None:
    """The last is used; that is said."""
    first = draw(st.sampled_from(["Age", "Age ", "\\u0041ge"]))
    record.content = f'{{"{first}": 12.5, {record.text()[1:]}'.encode()


@EHR.mutation(Right.REPAIRED)
def a_strange_name_of_a_field(draw: Draw, record: Record) -> None:
    """The note on it stays one line that a terminal can show."""
    name = draw(st.sampled_from(["a\nb", "\x1b[2J", "x\u2028y", "x" * 500, "a\ud800b"]))
    record.raw[name], record.options = "61.5", {"ensure_ascii": True}
    record.values["record"] = meant(record.raw) | {name: 61.5}


@EHR.mutation(Right.REFUSED)
def cut_anywhere(draw: Draw, record: Record) -> None:
    data = record.data()
    record.content = data[: draw(st.integers(0, len(data) - 1))]


@EHR.mutation(Right.REFUSED)
def no_object(draw: Draw, record: Record) -> None:
    record.content = json.dumps(
        draw(st.sampled_from([[], [record.raw], 61.5, "text", None, True]))
    ).encode()


@EHR.mutation(Right.REFUSED)
def no_json(draw: Draw, record: Record) -> None:
    text = record.text()
    changed = [
        text.replace('"', "'"),
        text + text,
        f"// a comment\n{text}",
        text.replace(":", "=", 1),
        text.replace("{", "", 1),
        "Age,Gender\n" + text,
        text.replace('"Age"', "Age"),
        text[:-1] + ",,}",
        text[:-1] + ', "Town": "a\nb"}',
    ]
    record.content = draw(st.sampled_from(changed)).encode()


@EHR.mutation(Right.REFUSED)
def no_text(draw: Draw, record: Record) -> None:
    """Bytes, with what no text holds among them."""
    at = draw(st.integers(0, len(record.data())))
    record.content = record.data()[:at] + b"\0\x07\xff\x01" + record.data()[at:]


@EHR.mutation(Right.REFUSED)
def deep(draw: Draw, record: Record) -> None:
    depth = draw(st.integers(20_000, 200_000))
    opening, closing = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
    closing = draw(st.sampled_from(["", closing]))
    record.content = b'{"Age": ' + (opening * depth + "1" + closing * depth).encode() + b"}"


@EHR.mutation(Right.REFUSED)
def large(draw: Draw, record: Record) -> None:
    record.content = record.text().encode() + b" " * draw(st.sampled_from([1 << 20, 1 << 22]))
    record.bounded = True


@EHR.mutation(Right.REFUSED)
def slow(draw: Draw, record: Record) -> None:
    """Of what is tried as a repair in the square of its length."""
    unit = draw(st.sampled_from(['\\"', "\\\\", ", ", ",\n", '"', '",']))
    record.content = ('{"a": "' + unit * 200_000).encode()[: 1 << 20]


@EHR.mutation(Right.REFUSED)
def no_file(draw: Draw, record: Record) -> None:
    record.content = draw(st.sampled_from([Pipe(), Link("/dev/zero"), Link("."), Link("nowhere")]))


@EHR.mutation(Right.EITHER)
def any_bytes(draw: Draw, record: Record) -> None:
    record.values, record.bounded = {}, True
    record.options = {"ensure_ascii": draw(st.booleans())}
    record.content = changed_bytes(draw, record.parts())


@EHR.mutation(Right.REPAIRED)
def several_at_once(draw: Draw, record: Record) -> None:
    another_encoding(draw, record)
    several(
        draw,
        record,
        more_of_the_same,
        fields_in_any_order,
        whole_numbers_with_a_point,
        numbers_as_text,
        blanks_around_names,
    )


def more_of_the_same(draw: Draw, record: Record) -> None:
    record.raw |= {f"Number {n}": draw(secrets) for n in range(draw(st.integers(1, 30)))}
    record.values["record"] = meant(record.raw)
