"""``python -m fuzz``: draw, judge, and say what is wrong."""

from __future__ import annotations

import argparse
import sys

from fuzz.run import KINDS, fuzz, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description="Fuzz the readers.")
    parser.add_argument("--count", type=int, default=2000, help="inputs in all (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed: other inputs")
    names = [kind.name for kind in KINDS]
    parser.add_argument("--only", choices=names, action="append", help="a kind; repeatable")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if not options.only or kind.name in options.only]
    tally = fuzz(kinds, options.count, options.seed, lambda line: print(line, file=sys.stderr))
    for example in tally.examples():
        print(example)
    print(table(tally))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
