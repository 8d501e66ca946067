"""No text in a table is a formula or markup."""

import csv

import numpy as np
import pandas as pd
import pytest

from hmvnet.table_files import read_texts, table_text, text_of_cell, write_markdown, write_table

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+A1", "@SUM(A1)", "\t=1", "=x,y", "\n=", "\uff1d1"]
TEXTS = ["A-1", "a=b", "", "1-2", "'quoted'", "<script>", 'say "x"', "a,b", "two\nlines", "κ"]
NUMBERS = ["-5", "+0.5", "-1e-05", "+0.012 (-0.010 to +0.030)", "nan", "-inf"]


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    cells = [*FORMULAS, *["'" + f for f in FORMULAS], *TEXTS, *NUMBERS]
    table = pd.DataFrame({"=id": cells, "x": np.linspace(-1, 1, len(cells)), "event": True})
    write_table(table, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").open(newline="", encoding="utf-8")))
    assert rows[0] == ["'=id", "x", "event"]
    assert [text_of_cell(row[0]) for row in rows[1:]] == cells
    assert [float(row[1]) for row in rows[1:]] == list(table["x"])
    written = dict(zip(cells, (row[0] for row in rows[1:])))
    assert all(written[cell] == cell for cell in [*TEXTS, *NUMBERS])
    write_table(pd.DataFrame({"id": ["\r=1"], "x": [1]}), tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text(encoding="utf-8") == "id,x\n' =1,1\n"
    assert not any(written[cell].startswith(tuple("=+-@\t\r\uff1d")) for cell in FORMULAS)


def test_texts_are_read_back_as_they_were_given(tmp_path):
    path, rows = tmp_path / "a.csv", [{"=id": cell, "why": cell} for cell in [*FORMULAS, *TEXTS]]
    write_table(pd.DataFrame(rows), path)
    assert read_texts(path) == rows
    for broken, why in (("a,b\n1,2,3\n", "more cells"), ('a,b\n1,"2\n', "not readable")):
        path.write_text(broken)
        with pytest.raises(ValueError, match=rf"a\.csv: .*{why}"):
            read_texts(path)
    path.write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(ValueError, match=r"a\.csv: not readable"):
        read_texts(path)


def test_no_cell_of_a_markdown_table_is_markup(tmp_path):
    table = pd.DataFrame({"<b>": ["<script>alert(1)</script>", "a|b\nc", "&"], "x": [1.5, -2, 3]})
    write_markdown(table, tmp_path / "a.md", floatfmt=".1f")
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "<" not in text and "&lt;script&gt;" in text and r"a\|b c" in text and "-2.0" in text
    assert len(text.splitlines()) == 5


def test_tables_of_nothing_and_of_their_own_names_are_printed():
    assert table_text(pd.DataFrame(), 10) == ""
    assert "network" in table_text(pd.DataFrame({"network": ["network"], "x": [1]}), 9)


def test_a_table_is_printed_at_any_width():
    """Wide ones were wrapped at 80 columns, with every heading away from its figures."""
    table = pd.DataFrame(
        {"network": ["a", "b"], "mean Dice": ["0.70", "0.71"], "less a": ["", "+0.01"]}
    )
    assert [line.split() for line in table_text(table, 40).splitlines()] == [
        ["network", "mean", "Dice", "less", "a"],
        ["a", "0.70"],
        ["b", "0.71", "+0.01"],
    ]
    turned = table_text(table, 22).splitlines()
    assert [line.split() for line in turned] == [
        ["network", "a", "b"],
        ["mean", "Dice", "0.70", "0.71"],
        ["less", "a", "+0.01"],
    ]
    assert table_text(table, 17).splitlines() == [
        "a",
        "  mean Dice  0.70",
        "b",
        "  mean Dice  0.71",
        "  less a     +0.01",
    ]
