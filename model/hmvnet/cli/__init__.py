"""The command line: ``hmvnet predict``, ``segmentation``, ``survival``, and what helps them.

Every command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from hmvnet.cli.root import app, main

__all__ = ["app", "main"]
