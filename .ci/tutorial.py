#!/usr/bin/env python3
"""Run every bash block of a Markdown page in order, each as a script of its own.

python .ci/tutorial.py docs/tutorial.md
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> int:
    """The exit code of the first block that fails, else 0."""
    page = Path(sys.argv[1])
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    if not blocks:
        print(f"{page}: no bash blocks, expected some", file=sys.stderr)
        return 1
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": os.pathsep.join([binaries, os.environ["PATH"]])}
    for number, block in enumerate(blocks, start=1):
        began = time.monotonic()
        print(f"== block {number} of {len(blocks)}\n{block}", flush=True)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], env=environment)
        if done.returncode:
            print(f"{page}: block {number} ended with {done.returncode}", file=sys.stderr)
            return done.returncode
        print(f"-- {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
