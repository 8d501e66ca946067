"""Evaluate a weight bundle: ``python model/eval.py --weights runs/x/bundle data.root=...`` (see ``--help``)."""

import sys

from hmvnet.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "eval")
    main()
