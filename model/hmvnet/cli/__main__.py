"""``python -m hmvnet.cli``."""

import sys

from hmvnet.cli import main

main(sys.argv[1:])
