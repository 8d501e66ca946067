#!/usr/bin/env python3
"""Look the pinned packages up among known vulnerabilities, with pip-audit; nothing is installed.

    python .ci/audit.py constraints.txt torch==2.13.0

Exit code 1 where one is known. Where the list of vulnerabilities cannot be had (no network, or a
mirror without one), one line says "not run: ..." and the exit code is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

UNREACHABLE = ("requests.exceptions.", "Could not connect", "ConnectionError", "timed out")


def verdict(output: str, errors: str) -> tuple[int, str]:
    """Exit code and what to say, from what pip-audit wrote to its standard output and error."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(word in errors for word in UNREACHABLE):
            return 0, "not run: the list of vulnerabilities cannot be reached"
        return 1, f"pip-audit failed:\n{errors}"
    known = [package for package in packages if "vulns" in package]
    if not known:
        return 0, f"not run: none of {len(packages)} packages is in the list of vulnerabilities"
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for package in known
        for found in package["vulns"]
    ]
    lines.append(f"{len(known)} of {len(packages)} packages looked up, {len(lines)} findings")
    return int(len(lines) > 1), "\n".join(lines)


def main() -> int:
    """The exit code of the look-up of all packages that the command line names."""
    pins = [
        Path(word).read_text(encoding="utf-8") if Path(word).is_file() else word
        for word in sys.argv[1:]
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(pins) + "\n", encoding="utf-8")
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--requirement", file, *options],
            capture_output=True,
            text=True,
        )
    code, text = verdict(done.stdout, done.stderr)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
