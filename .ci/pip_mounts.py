#!/usr/bin/env python3
"""Carry this machine's pip settings into an image build, without baking them into the image.

Reads ``pip config list``, writes the same settings to FILE (a pip.conf), and prints on one line the
arguments that mount FILE and every local file or folder the settings name:

    DOCKER_BUILD_ARGS=$(python3 .ci/pip_mounts.py FILE) ./build.sh
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

# What decides where packages come from; caches, log files and the like stay on this machine.
KEPT = {
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "constraint",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
}
IN_IMAGE = "/etc/pip.conf"


def read_settings() -> dict[str, str]:
    """Settings by name; as in pip, the environment (``:env:.name``) goes before the files."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    pairs = [line.split("=", 1) for line in listing.stdout.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    named = {key.rpartition(".")[2]: ast.literal_eval(value) for key, value in pairs}
    return {name: value for name, value in named.items() if name in KEPT}


def local_paths(settings: dict[str, str]) -> list[Path]:
    """Files and folders of this machine that the settings name, as paths or file:// addresses."""
    paths = []
    for name, value in settings.items():
        for word in value.split():
            address = urlparse(word)
            path = Path(unquote(address.path) if address.scheme == "file" else word)
            if path.is_absolute() and path.exists():
                # The pages of an index link to wheels in folders beside it.
                paths.append(path.parent if name.endswith("index-url") else path)
    return paths


def main() -> None:
    """Write the pip.conf named on the command line and print the mounts."""
    target = Path(sys.argv[1]).resolve()
    settings = read_settings()
    lines = [f"{name} = {' '.join(value.split())}\n" for name, value in settings.items()]
    target.write_text("[global]\n" + "".join(lines))
    mounts = [f"{target}:{IN_IMAGE}:ro"]
    mounts += sorted({f"{path}:{path}:ro" for path in local_paths(settings)})
    print(*(f"--volume={mount}" for mount in mounts))


if __name__ == "__main__":
    main()
