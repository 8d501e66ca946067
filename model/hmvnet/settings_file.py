"""Settings as files: read from XML and the command line, printed as XML and as Markdown.

Names, bounds and meanings are those of the fields in ``hmvnet.config``; nothing is said twice.
"""

from __future__ import annotations

import re
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from xml.sax.saxutils import escape, quoteattr

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hmvnet.config import ClinicalSettings, Settings
from hmvnet.exits import RefusedError

MOST_BYTES = 1 << 20  # of a settings file
WIDTH = 100  # of its lines
NAMED = 5  # wrong settings besides the first, in an error
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
DEFAULTS = Settings()
SECTIONS: Mapping[str, type[BaseModel]] = {name: type(section) for name, section in DEFAULTS}


def load_settings(path: Path | None = None, overrides: Iterable[str] = ()) -> Settings:
    """Settings of an XML file (None: the defaults), with ``section.name=value`` overrides.

    Explicitly set, in pydantic's sense, are the overrides and what the file says otherwise than the
    defaults: a file as ``settings_xml`` prints it, with every default in it, sets nothing.

    Raises:
        RefusedError: the file or an override is malformed, names an unknown setting, or holds a
            value out of range; the message names it, and the setting that may be meant.
    """
    values = _parse_xml(_read_bytes(path), str(path)) if path else {}
    if path:
        values = _unlike_defaults(values, _validated(values, path, []))
    overridden = []
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise RefusedError(f"override '{override}': expected section.name=value")
        values.setdefault(section, {})[key] = value.strip()
        overridden.append((section, key))
    return _validated(values, path, overridden)


def _unlike_defaults(values: Mapping[str, Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    """The raw values of a file without those that are the defaults."""
    found: dict[str, Any] = {}
    for name, section in values.items():
        own, default = getattr(settings, name), getattr(DEFAULTS, name)
        found[name] = {k: v for k, v in section.items() if getattr(own, k) != getattr(default, k)}
    return found


def _validated(
    values: Mapping[str, Any], path: Path | None, overridden: Sequence[tuple[str, str]]
) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first, *others = error.errors()
        of_command_line = any(name[: len(first["loc"])] == first["loc"][:2] for name in overridden)
        source = path.name if path and not of_command_line else "settings"
        more = f"; {len(others)} more: {', '.join(map(_name, others[:NAMED]))}" if others else ""
        raise RefusedError(f"{source}: {_name(first)}: {_problem(first)}{more}") from error


def _name(error: ErrorDetails) -> str:
    return ".".join(str(part) for part in error["loc"])


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown(*(str(part) for part in error["loc"]))
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    return message if isinstance(error["input"], dict) else f"{message} (found {error['input']!r})"


def _unknown(section: str, name: str | None = None) -> str:
    """That there is no such section, or no such setting in it, and which one may be meant."""
    if name is None:
        kind, wrong, known, elsewhere = "section", section, {s: s for s in SECTIONS}, []
    else:
        kind, wrong = "setting", name
        known = {n: f"{section}.{n}" for n in SECTIONS[section].model_fields}
        elsewhere = [f"{s}.{name}" for s, fields in SECTIONS.items() if name in fields.model_fields]
    near = [known[n] for n in get_close_matches(wrong, known, 1)] or elsewhere
    if near:
        return f"unknown {kind}, did you mean {' or '.join(near)}?"
    return f"unknown {kind}, expected one of {', '.join(known)}"


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"{path}: not a readable XML file: {error}") from error
    if len(data) > MOST_BYTES:
        raise RefusedError(f"{path}: larger than {MOST_BYTES >> 20} MiB, no settings file")
    return data


class _WithoutDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, and with it entities, which can make a small file a huge one."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise RefusedError("a document type (<!DOCTYPE>) is not allowed")


def _parse_xml(data: bytes, source: str) -> dict[str, dict[str, Any]]:
    """Settings by section and name, as text; the columns as dicts.

    Raises:
        ValueError: names ``source`` and what is malformed or given twice.
    """
    try:
        parser = ElementTree.XMLParser(target=_WithoutDoctype())  # noqa: S314  no entities, bounded
        root = ElementTree.fromstring(data, parser)  # noqa: S314  the same
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RefusedError(f"{source}: not a readable XML file: {error}") from error
    if root.tag != "hmvnet":
        raise RefusedError(f"{source}: root element <{root.tag}>, expected <hmvnet>")
    values: dict[str, dict[str, Any]] = {}
    for section in root:
        if section.tag in values:
            raise RefusedError(f"{source}: section {section.tag} is given twice")
        values[section.tag] = _parse_section(section, source)
    return values


def _parse_section(section: ElementTree.Element, source: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    columns: dict[str, dict[str, Any]] = {}
    for item in section:
        where = f"{source}: {section.tag}.{item.tag}"
        if item.tag == "column":
            name = item.get("name", "")
            if not name or name in columns:
                raise RefusedError(
                    f"{where}: name '{name}' is {'given twice' if name else 'empty'}"
                )
            columns[name] = _column(item)
        elif item.tag in values:
            raise RefusedError(f"{where} is given twice")
        elif len(item) or item.attrib:
            raise RefusedError(f"{where}: expected text alone, no elements or attributes")
        else:
            values[item.tag] = (item.text or "").strip()
    if columns:
        values.setdefault("columns", columns)
    return values


def _column(item: ElementTree.Element) -> dict[str, Any]:
    """``<column name="Age" kind="numeric" other_units="months:0.0833"/>`` to a plain dict."""
    raw: dict[str, Any] = {k: v for k, v in item.attrib.items() if k != "name"}
    for key in ("aliases", "other_units"):
        if key in raw:
            pairs = (pair.partition(":") for pair in raw[key].split(","))
            raw[key] = {name.strip(): value.strip() for name, _, value in pairs}
    return raw


def settings_xml(settings: Settings = DEFAULTS) -> str:
    """A settings file with all settings, each below its description.

    ``load_settings`` gives the same settings again.

    Raises:
        ValueError: names a section with a value that no such file can hold, for instance a network
            option that is itself a dict.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', _comment(_summary(Settings)), "<hmvnet>"]
    for name, section in settings:
        lines += ["", _comment(_summary(type(section)), 2), f"  <{name}>"]
        for key, field in type(section).model_fields.items():
            lines.append(_comment(_meaning(field), 4))
            value = getattr(section, key)
            lines += _columns_xml(value, field) if key == "columns" else [_element(key, value)]
        lines.append(f"  </{name}>")
    text = "\n".join([*lines, "</hmvnet>", ""])
    _check_same(settings, text)
    return text


def _check_same(settings: Settings, text: str) -> None:
    read = Settings.model_validate(_parse_xml(text.encode(), "settings"))
    for (name, section), (_, other) in zip(settings, read):
        if _comparable(section) != _comparable(other):
            raise RefusedError(f"{name}: holds a value that no settings file can hold")


def _comparable(section: BaseModel) -> dict[str, Any]:
    values = dict(section)
    if isinstance(section, ClinicalSettings):  # a column's numbers may be numbers or texts
        values["columns"] = section.record_schema
    return values


def _summary(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _meaning(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    return f"{field.description}" + (f" Allowed: {', '.join(choices)}." if choices else "")


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _comment(text: str, indent: int = 0) -> str:
    body = textwrap.fill(
        text,
        WIDTH - len(" -->"),
        initial_indent=" " * indent + "<!-- ",
        subsequent_indent=" " * (indent + 5),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{body} -->"


def _element(name: str, value: Any) -> str:
    text = escape(_text(value))
    line = f"    <{name}>{text}</{name}>"
    if isinstance(value, str) or len(line) <= WIDTH:
        return line
    indent = " " * 6
    if isinstance(value, tuple):  # a name's own blanks are no place for a new line
        text = " ".join(escape(_quoted(_text(part))).replace(" ", _HELD) for part in value)
    body = textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"    <{name}>\n{body}\n    </{name}>".replace(_HELD, " ")


_HELD = "\ue000"  # a blank that no line is broken at


def _text(value: Any) -> str:
    """A setting's value as ``load_settings`` reads it."""
    if isinstance(value, dict):
        return " ".join(f"{name}={_option_text(option)}" for name, option in value.items())
    if isinstance(value, tuple):
        return " ".join(_quoted(_text(part)) for part in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _quoted(word: str) -> str:
    """A word of several as they are read: in quotes, its own doubled, where it has blanks."""
    if re.fullmatch(r"[^\s,\"'][^\s,]*", word):
        return word
    return '"' + word.replace('"', '""') + '"'


def _option_text(value: Any) -> str:
    """A network option's value, an int and a float told apart."""
    if isinstance(value, tuple):
        return ",".join(_option_text(part) for part in value) + ("," if len(value) == 1 else "")
    return repr(value) if isinstance(value, float) else _text(value)


def _columns_xml(columns: Mapping[str, Mapping[str, Any]], field: FieldInfo) -> list[str]:
    """An element a column; without columns the field's examples, as comments."""
    lines = [f"    {_column_xml(name, raw)}" for name, raw in columns.items()]
    examples = [_column_xml(*item) for example in field.examples or () for item in example.items()]
    return lines or [f"    <!-- {element} -->" for element in examples]


def _column_xml(name: str, raw: Mapping[str, Any]) -> str:
    attributes = [("name", name), *((key, _attribute(value)) for key, value in raw.items())]
    return f"<column {' '.join(f'{key}={quoteattr(value)}' for key, value in attributes)}/>"


def _attribute(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{_text(part)}" for name, part in value.items())
    return ",".join(map(_text, value)) if isinstance(value, (list, tuple)) else _text(value)


def settings_markdown() -> str:
    """A reference of all settings in Markdown: a table a section, from the fields."""
    lines = ["# Settings", "", _summary(Settings), ""]
    for name, section in SECTIONS.items():
        lines += [f"## {name}", "", _summary(section), ""]
        lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        for key, field in section.model_fields.items():
            default = _text(field.default)
            shown = f"`{default}`" if default else "empty"
            allowed = ", ".join(_choices(field.annotation)) or _bounds(field)
            lines.append(f"| `{key}` | {shown} | {allowed} | {field.description} |")
        lines.append("")
    return "\n".join(lines)


def _bounds(field: FieldInfo) -> str:
    limits = [
        f"{word} {_text(getattr(constraint, bound))}"
        for constraint in field.metadata
        for bound, word in BOUNDS.items()
        if getattr(constraint, bound, None) is not None
    ]
    return ", ".join(limits)
