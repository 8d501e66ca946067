"""What a fuzzed input is: a clean one, a change, and the outcome that is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from hmvnet.exits import RefusedError

Draw = Callable[[st.SearchStrategy], Any]


class Right(Enum):
    """The outcome that is right for an input."""

    SAME = "same"  # the clean input's result, without another note
    REPAIRED = "repaired"  # that result, and a note
    REFUSED = "refused"  # one line that names the file
    EITHER = "either"  # refused, repaired, or read as another reader does, where there is one


@dataclass(frozen=True)
class Link:
    """A link in a file's place; the target is relative to where it lies."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe in a file's place, that nobody writes to."""


File = bytes | Link | Pipe


@dataclass(frozen=True)
class Found:
    """What a reader gave: values by name, and notes."""

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class Sample:
    """An input and what it says.

    Attributes:
        values: what the reader should find: arrays, grids, numbers, texts; empty where nothing
            can be known.
        files: by path, relative to the folder that is read; "../" is beside it.
        notes: how many notes the clean input has.
        tolerance: relative, of numbers and arrays.
        named: one of these is in a refusal.
        secrets: none of these is in a message or a note: a patient's values.
        bounded: whether the memory is watched.
    """

    values: dict[str, Any]
    files: dict[str, File] = field(default_factory=dict)
    notes: int = 0
    tolerance: float = 0.0
    named: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    bounded: bool = False

    def encode(self) -> Mapping[str, File]:
        """The files."""
        return self.files

    def lay(self, folder: Path) -> None:
        """Write the files into a folder that is there."""
        for name, content in self.encode().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Link):
                path.symlink_to(content.target)
            elif isinstance(content, Pipe):
                os.mkfifo(path)
            else:
                path.write_bytes(content)


@dataclass
class OneFile(Sample):
    """A sample that is one file; ``content`` goes before what the parts would make."""

    name: str = "file"
    content: File | None = None

    def parts(self) -> bytes:
        """The file made of its parts."""
        return b""

    def data(self) -> bytes:
        """The file's bytes as they are so far."""
        return self.content if isinstance(self.content, bytes) else self.parts()

    def encode(self) -> Mapping[str, File]:
        return {self.name: self.data() if self.content is None else self.content, **self.files}


Change = Callable[[Draw, Any], Right | None]


@dataclass(frozen=True)
class Mutation:
    """A change and the outcome that is right, unless the change gives another."""

    name: str
    right: Right
    change: Change


@dataclass
class Input:
    """A drawn input."""

    kind: Kind
    mutation: Mutation
    right: Right
    sample: Sample

    def __repr__(self) -> str:
        files = {
            name: content[:2000] if isinstance(content, bytes) else content
            for name, content in self.sample.encode().items()
        }
        return f"{self.kind.name}, {self.mutation.name}, to be {self.right.value}: {files}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.mutation.name)  # Hypothesis writes down all it draws


@dataclass
class Kind:
    """A kind of input.

    Attributes:
        clean: draws a clean one.
        read: what the house makes of the folder.
        refusals: the exceptions that refuse it.
    """

    name: str
    clean: Callable[[Draw], Sample]
    read: Callable[[Path, Any], Found]
    refusals: tuple[type[Exception], ...] = (RefusedError,)
    mutations: list[Mutation] = field(default_factory=list)

    def mutation(self, right: Right) -> Callable[[Change], Change]:
        """Enters a change of a sample, in place, that is to end so."""

        def enter(change: Change) -> Change:
            self.mutations.append(Mutation(change.__name__, right, change))
            return change

        return enter

    def valid(self) -> list[Mutation]:
        """The mutations after which an input is unusual, and to be read."""
        return [m for m in self.mutations if m.right in (Right.SAME, Right.REPAIRED)]

    def inputs(self, mutation: Mutation) -> st.SearchStrategy[Input]:
        """Clean inputs with this change."""

        @st.composite
        def draw_input(draw: Draw) -> Input:
            sample = self.clean(draw)
            right = mutation.change(draw, sample) or mutation.right
            return Input(self, mutation, right, sample)

        return draw_input()


def changed_bytes(draw: Draw, data: bytes, start: int = 0, end: int | None = None) -> bytes:
    """One to four of the bytes from ``start`` to ``end`` are others, left out or more."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(start, min(len(data) if end is None else end, len(changed)) - 1))
        how = draw(st.sampled_from(["bit", "byte", "left out", "more"]))
        if how == "bit":
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte":
            changed[at] = draw(st.sampled_from([0, 0xFF, 0x20, *b'0-.,:"{}[]=\\9e']))
        elif how == "left out":
            del changed[at]
        else:
            changed[at:at] = draw(st.binary(min_size=1, max_size=4))
    return bytes(changed)


def several(draw: Draw, sample: Sample, *changes: Change) -> None:
    """Two or more of the changes, in their order here: what each is right about holds for all."""
    chosen = draw(st.sets(st.sampled_from(range(len(changes))), min_size=2))
    for index in sorted(chosen):
        changes[index](draw, sample)
