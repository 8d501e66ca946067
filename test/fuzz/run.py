"""Many inputs, counted; of each thing that is wrong, the smallest input that shows it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, Verbosity, find, given, seed, settings
from hypothesis.errors import HypothesisException

from fuzz.bundles import BUNDLE
from fuzz.datasets import DATASET
from fuzz.dicoms import DICOM
from fuzz.folders import FOLDER
from fuzz.judge import Fault, Verdict, judge
from fuzz.metaimage import MHA
from fuzz.nifti import NII, NII_GZ
from fuzz.records import EHR
from fuzz.samples import Input, Kind, Mutation, Right
from fuzz.sockets import INPUTS
from fuzz.tables import CSV
from fuzz.tiff import TIF

KINDS = [MHA, NII, NII_GZ, TIF, EHR, INPUTS, CSV, DATASET, FOLDER, DICOM, BUNDLE]
SHRINKING = 150  # inputs that are tried for a smaller one

Key = tuple[str, str, Fault]  # kind, mutation, what is wrong


@dataclass
class Tally:
    """What came out, in counts.

    Attributes:
        rights: inputs by kind and the outcome that is right.
        faults: of them, those that ended otherwise.
        smallest: for each kind, mutation and fault an input, as small as was found, and why.
    """

    rights: Counter[tuple[str, Right]] = field(default_factory=Counter)
    faults: Counter[Key] = field(default_factory=Counter)
    smallest: dict[Key, tuple[Input, Verdict]] = field(default_factory=dict)

    @property
    def valid(self) -> float:
        """The share of inputs that are unusual, and to be read."""
        read = sum(
            self.rights[key] for key in self.rights if key[1] in (Right.SAME, Right.REPAIRED)
        )
        return read / max(self.rights.total(), 1)

    def shrink(self, number: int) -> None:
        """Look for smaller inputs of the same mutation that end in the same fault."""
        for key, (example, verdict) in self.smallest.items():
            self.smallest[key] = _smaller(example, verdict, number)

    def examples(self) -> Iterator[str]:
        """What is wrong, each with its input, in Markdown."""
        for key, (example, verdict) in self.smallest.items():
            kind, mutation, fault = key
            yield f"- {kind}, {mutation}: {self.faults[key]} {fault.value}: {verdict.why}"
            yield f"  {repr(example)[:1500]}"


def fuzz(
    kinds: Sequence[Kind], count: int, number: int, say: Callable[[str], object] = lambda _: None
) -> Tally:
    """Draw ``count`` inputs, as many of each kind, and judge them.

    Args:
        number: the seed; the same inputs come from the same one.
        say: told how it goes.
    """
    tally, rng = Tally(), random.Random(number)
    for index, kind in enumerate(kinds):
        share = count * (index + 1) // len(kinds) - count * index // len(kinds)
        before = tally.faults.total()
        for mutation, times in _shares(kind, share, rng):
            draw(kind, mutation, times, number, tally)
        say(f"{kind.name}: {share} inputs, {tally.faults.total() - before} wrong")
    tally.shrink(number)
    return tally


def _shares(kind: Kind, count: int, rng: random.Random) -> Iterator[tuple[Mutation, int]]:
    """How many inputs each mutation gets: half of them all for those that are to be read."""
    valid = kind.valid()
    others = [m for m in kind.mutations if m not in valid]
    for mutations, total in ((valid, count - count // 2), (others, count // 2)):
        rng.shuffle(mutations)
        each, more = divmod(total, len(mutations))
        for index, mutation in enumerate(mutations):
            yield mutation, each + (index < more)


def _quiet(count: int, *phases: Phase) -> settings:
    return settings(
        max_examples=count,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )


def draw(kind: Kind, mutation: Mutation, count: int, number: int, tally: Tally) -> None:
    """Judge ``count`` inputs of one mutation, the first of them the simplest one."""

    @seed(f"{kind.name} {mutation.name} {number}")
    @_quiet(count, Phase.generate)
    @given(kind.inputs(mutation))
    def each(drawn: Input) -> None:
        verdict = judge(drawn)
        tally.rights[kind.name, drawn.right] += 1
        if verdict.fault:
            key = kind.name, mutation.name, verdict.fault
            tally.faults[key] += 1
            tally.smallest.setdefault(key, (drawn, verdict))

    if count:
        each()


def _smaller(example: Input, verdict: Verdict, number: int) -> tuple[Input, Verdict]:
    """The smallest input of the same mutation that ends in the same fault."""
    try:
        found = find(
            example.kind.inputs(example.mutation),
            lambda tried: judge(tried).fault is verdict.fault,
            settings=_quiet(SHRINKING, Phase.generate, Phase.shrink),
            random=random.Random(number),
        )
    except HypothesisException:  # none among those tried
        return example, verdict
    return found, judge(found)


def table(tally: Tally) -> str:
    """The counts by kind, in Markdown."""
    columns = ["kind", "inputs", *(r.value for r in Right), *(f.value for f in Fault)]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    kinds = list(dict.fromkeys(kind for kind, _ in tally.rights))
    for name in kinds:
        rights = [tally.rights[name, right] for right in Right]
        faults = [
            sum(
                n for (kind, _, fault), n in tally.faults.items() if (kind, fault) == (name, column)
            )
            for column in Fault
        ]
        lines.append("| " + " | ".join(map(str, [name, sum(rights), *rights, *faults])) + " |")
    totals = [sum(tally.rights[name, right] for name in kinds) for right in Right]
    wrong = [sum(n for key, n in tally.faults.items() if key[2] is fault) for fault in Fault]
    lines.append("| " + " | ".join(map(str, ["all", sum(totals), *totals, *wrong])) + " |")
    return "\n".join(lines) + f"\n\nUnusual but valid: {tally.valid:.0%} of the inputs."
