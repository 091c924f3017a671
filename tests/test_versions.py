"""Versions that are too old are one clear line, wherever the package is imported; the oldest are those of one file."""

import re
import subprocess
import sys
import tomllib

import nbformat
import pytest
from packaging.requirements import Requirement

from animals10 import versions
from animals10.files import REPOSITORY, UserError
from animals10.notebooks import execute_notebook
from animals10.versions import direct_dependencies, version_problem

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (REPOSITORY / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
OLDEST = [Requirement(line.partition("  #")[0]) for line in LINES if line and not line.startswith("#")]
OLD = "numpy 1.26.4 is installed and 2.0 or later is needed; pandas 2.1 is installed and 2.2 or later is needed: "


@pytest.fixture
def old_packages(tmp_path, monkeypatch):
    """A folder that makes NumPy and pandas look old, ahead of all others on the path."""
    for name, version in (("numpy", "1.26.4"), ("pandas", "2.1")):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{':' if sys.platform != 'win32' else ';'}{REPOSITORY}")


def test_a_script_with_old_packages_ends_in_one_line(old_packages):
    command = [sys.executable, str(REPOSITORY / "scripts" / "classify.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(OLD + "python tasks.py install") and done.stderr.count("\n") == 1


def test_a_notebook_with_old_packages_ends_in_one_line(old_packages, tmp_path):
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import auxiliary as aux")]), tmp_path / "a.ipynb"
    )
    with pytest.raises(UserError, match=f"VersionError: {OLD}"):
        execute_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    errors = [output for output in nbformat.read(tmp_path / "b.ipynb", 4).cells[-1].outputs if "traceback" in output]
    assert [len(error.traceback) for error in errors] == [1]


def test_what_is_missing_and_how_to_get_it_is_one_line(monkeypatch, tmp_path):
    assert version_problem() == ""
    assert re.match(r"Python 3\.11 or later is needed, and this is 3\.10: ", version_problem((3, 10)))
    monkeypatch.setattr(versions, "direct_dependencies", lambda: ["numpy>=2.0", "no-such-thing>=7", "pytest>=8.4"])
    assert version_problem().startswith('no-such-thing is not installed: pip install "no-such-thing>=7", or ')
    monkeypatch.setattr(versions, "direct_dependencies", lambda: ["auxiliary>=9"])  # a module without a distribution
    assert version_problem() == ""
    monkeypatch.setattr(versions, "PYPROJECT", tmp_path / "pyproject.toml")
    assert version_problem() == ""


def test_the_oldest_versions_are_those_that_the_package_asks_for():
    asked = [Requirement(text) for text in direct_dependencies()]
    asked += [Requirement(text) for name in ("pages", "lab", "test") for text in PROJECT["optional-dependencies"][name]]
    assert {one.name for one in asked} == {one.name for one in OLDEST}
    for one in asked:
        bound = next(iter(one.specifier)).version.split(".")
        for pinned in (pinned for pinned in OLDEST if pinned.name == one.name):
            version = next(iter(pinned.specifier)).version
            # The lowest release that the bound allows, or a later patch of it: `2.0` is pinned to `2.0.2`.
            assert version.split(".")[: len(bound)] == bound or pinned.marker, f"{one} and {pinned}"
            assert one.specifier.contains(version)


def test_the_pinned_versions_are_all_that_the_package_asks_for():
    text = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    asked = [Requirement(text) for text in direct_dependencies()]
    asked += [Requirement(text) for name in ("pages", "lab", "test") for text in PROJECT["optional-dependencies"][name]]
    assert {one.name for one in asked} | {"ruff", "mypy"} == set(pinned)
    assert all(one.specifier.contains(pinned[one.name]) for one in asked)
