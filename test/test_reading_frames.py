from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hmvnet.reading.frames import read_frame


def test_rows_have_the_numbers_of_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\nid,x\n,,\na,"1\n2"\n\nb,3\n')
    frame = read_frame(path, ["id"])
    assert list(frame.index) == [4, 6] and list(frame["id"]) == ["a", "b"]
    path.write_text("id,x\n\na,1,2\n")
    with pytest.raises(ValueError, match=r"row 3 has 3 cells, the header 2"):
        read_frame(path, ["id"])


def test_columns_that_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,First Day,x\n01,0304,05\n2,,\n")
    frame = read_frame(path, ["ID"], texts=["first_day"])
    assert list(frame["id"]) == ["01", "2"] and frame["x"][2] == 5
    assert frame["First Day"][2] == "0304" and pd.isna(frame["First Day"][3])


@pytest.mark.parametrize("name", ["41e680880517066a", "9e4294967296", "1e400", "0x1p3", "12"])
def test_names_that_look_like_numbers_are_names(tmp_path: Path, name: str) -> None:
    """The first of them ended the process, in pandas' own parser of floats."""
    path = tmp_path / "a.csv"
    path.write_text(f"id,key,x\n{name},{name},0.1\nab,cd,1e-5\n")
    frame = read_frame(path, ["id"])
    assert list(frame["id"]) == [name, "ab"] and list(frame["key"]) == [name, "cd"]
    assert list(frame["x"]) == [0.1, 1e-5]
