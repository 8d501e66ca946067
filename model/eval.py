"""Evaluate a bundle: ``python model/eval.py --weights DIR data.root=DIR`` (see ``--help``)."""

import sys

from hmvnet.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "eval")
    main()
