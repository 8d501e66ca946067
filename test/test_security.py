"""What SECURITY.md promises of the code, held by its source; and the look-up of vulnerabilities."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

SOURCES = sorted([*(ROOT / "model").rglob("*.py"), ROOT / "process.py"])
# Modules that run what they read.
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
# Of pickle alone the name of an error, which torch raises for a damaged checkpoint.
ALLOWED_NAMES = {"pickle": {"UnpicklingError"}}


def name_of(node: ast.expr) -> str:
    """``a.b.c`` of a name or attribute, else empty."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source: str) -> Iterator[str]:
    """What in a module's source could run what it reads, or start a shell."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            allowed = ALLOWED_NAMES.get(node.module or "", set())
            yield from (a.name for a in node.names if a.name not in allowed)
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if name in UNSAFE_CALLS or "shell" in given:
            yield name
        if name == "torch.load" and getattr(given.get("weights_only"), "value", None) is not True:
            yield "torch.load"
        if getattr(given.get("allow_pickle"), "value", False) is not False:
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    assert not list(unsafe(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.memory",
        "from pickle import loads",
        "from yaml import load",
        "eval(text)",
        "def f(): exec(text)",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_would_run_it_is_found(source):
    assert list(unsafe(source))


def test_tables_are_written_in_one_place():
    """Where cells are made harmless: ``write_table`` and ``write_markdown``."""
    writers = {"to_csv", "to_markdown", "to_html"}
    found = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and name_of(node.func).split(".")[-1] in writers
    }
    assert found == {"table_files.py"}


def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAFE = {"name": "a", "version": "1", "vulns": []}
FOUND = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SAFE], 0, "1 of 1 packages looked up, 0 findings"),
        ([SAFE, SKIPPED], 0, "1 of 2 packages looked up, 0 findings"),
        ([SAFE, FOUND], 1, "b 2: PYSEC-1, mended in 3\n2 of 2 packages looked up, 1 findings"),
        ([SKIPPED, SKIPPED], 0, "not run: none of 2 packages is in the list of vulnerabilities"),
    ],
)
def test_an_audit_says_what_it_found_or_that_it_was_not_run(packages, code, said):
    assert audit().verdict(json.dumps({"dependencies": packages}), "") == (code, said)


@pytest.mark.parametrize(
    ("errors", "code", "said"),
    [
        ("requests.exceptions.ProxyError: Max retries exceeded", 0, "not run: "),
        ("ERROR: Could not connect to PyPI's vulnerability feed", 0, "not run: "),
        ("ERROR: requirement file contains invalid specifier", 1, "pip-audit failed"),
        ("No module named pip_audit", 1, "pip-audit failed"),
    ],
)
def test_an_audit_that_fails_is_no_pass_but_for_the_network(errors, code, said):
    found, text = audit().verdict("", errors)
    assert found == code and text.startswith(said)
    assert code or len(text.splitlines()) == 1


def test_the_policy_says_how_to_report():
    text = Path(ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "security advisory" in text and "sha256" in text
