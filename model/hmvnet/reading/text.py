"""Bytes of a file to text, whoever wrote it."""

from __future__ import annotations

import codecs
import unicodedata

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(data: bytes) -> tuple[str, str]:
    """The text of a file and its encoding: UTF-8, UTF-16 or Windows-1252, marked or not.

    Windows-1252 is what Latin-1 files hold in practice; nearly any bytes are text in it, so it is
    tried last.

    Raises:
        ValueError: it holds what no text holds.
    """
    encodings = ["utf-8", "cp1252"]
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            data, encodings = data.removeprefix(mark), [encoding]
            break
    else:
        even, odd = data[::2].count(0), data[1::2].count(0)  # half of UTF-16's bytes, in the West
        if even + odd > len(data) / 4:
            encodings = ["utf-16-le" if odd > even else "utf-16-be"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not any(unicodedata.category(c) == "Cc" and c not in "\t\r\n\f" for c in set(text)):
            return text, encoding
    raise ValueError("not readable as text (UTF-8, UTF-16 or Latin-1)")
