#!/usr/bin/env python3
"""Print this environment's packages as constraints: names and versions, for this Python alone."""

from __future__ import annotations

import sys
from importlib.metadata import distributions

LEFT_OUT = {"hmvnet", "pip", "setuptools", "wheel", "torch"}  # torch: make's TORCH

version = f"{sys.version_info.major}.{sys.version_info.minor}"
print(f"# The versions that CI tests, on Python {version}. Written by `make constraints`.")
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
for name in sorted(set(found) - LEFT_OUT):
    if not name.startswith(("nvidia-", "cuda-")):
        print(f'{name}=={found[name]}; python_version == "{version}"')
