"""The first cell of the notebooks, in folders that imitate Colab and Kaggle; at home it does nothing."""

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest

from animals10.files import REPOSITORY
from animals10.settings import NOTEBOOKS

CELL = (REPOSITORY / "scripts" / "first_cell.py").read_text(encoding="utf-8")
URL = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
REPORT = """
import json
from importlib.metadata import distributions
names = "ANIMALS10_ROOT", "ANIMALS10_RAW", "PYTHONPATH"
versions = sorted(f"{one.name} {one.version}" for one in distributions())
print(json.dumps([os.getcwd(), {name: os.environ.get(name) for name in names}, versions]))
"""


def test_the_address_is_that_of_one_place_and_notebooks_have_this_cell():
    assert URL in CELL
    for name in NOTEBOOKS:
        cells = nbformat.read(REPOSITORY / name, as_version=4).cells
        for cell in cells:
            assert "COLAB_RELEASE_TAG" not in cell.source or cell.source.strip() == CELL.strip(), name
            assert "github.com" not in cell.source or "/blob/main/" not in cell.source or URL in cell.source, name


def write_wheel(folder: Path, name: str, *requires: str, version: int = 7) -> None:
    """Writes a package without code as pip takes it."""
    folder.mkdir(exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {one}\n" for one in requires
    )
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", about)
        wheel.writestr(
            f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Returns a function that runs the cell, then other code, as on a host; the repository there lacks a package."""
    pytest.importorskip("pip", reason="pip is not in this environment")
    origin, working, wheels = tmp_path / "origin", tmp_path / "host" / "working", tmp_path / "wheels"
    working.mkdir(parents=True)
    # An environment of its own, with all packages of this one: pip writes into the former.
    venv.create(tmp_path / "venv", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = next((tmp_path / "venv").rglob("site-packages"))
    (site / "all.pth").write_text(str(Path(np.__file__).parents[1]), encoding="utf-8")
    git = {"url." + origin.as_uri() + ".insteadOf": URL, "safe.directory": "*", "user.name": "x", "user.email": "x@x"}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(git)))
    for number, (key, value) in enumerate(git.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    for name in ("ANIMALS10_ROOT", "ANIMALS10_RAW", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)

    def _run(host: str, dependency: str = "", requires: tuple[str, ...] = (), code: str = CELL + REPORT):
        origin.mkdir(exist_ok=True)
        (origin / "scripts").mkdir(exist_ok=True)
        (origin / "scripts" / "hosted.py").write_bytes((REPOSITORY / "scripts" / "hosted.py").read_bytes())
        dependencies = ["numpy>=2.0", *filter(None, [dependency])]
        (origin / "pyproject.toml").write_text(
            f"[project]\ndependencies = {json.dumps(dependencies)}", encoding="utf-8"
        )
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x", "--allow-empty"]):
            subprocess.run(["git", *command], cwd=origin, check=True)
        if dependency:
            write_wheel(wheels, dependency, *requires)
        environment = os.environ | ({host: "1"} if host else {})
        options = {"cwd": working, "env": environment, "capture_output": True, "text": True}
        return subprocess.run([python, "-c", code], **options), working

    return _run


def test_at_home_the_cell_does_nothing(host):
    done, working = host("")
    folder, variables, _ = json.loads(done.stdout)
    assert Path(folder) == working and not any(variables.values()) and not list(working.iterdir())


def test_colab_gets_the_repository_and_what_is_missing_alone(host):
    before = json.loads(host("")[0].stdout)[2]
    done, working = host("COLAB_RELEASE_TAG", "tiny", code=CELL + CELL + REPORT)  # a cell may be run twice
    assert done.returncode == 0, done.stderr
    line, report = done.stdout.splitlines()
    folder, variables, versions = json.loads(report)
    assert line == "Installed tiny; the packages that were there are as before."
    assert Path(folder) == working / "animals10-notebooks" and variables["ANIMALS10_ROOT"] is None
    assert str(working / "animals10-notebooks") in variables["PYTHONPATH"].split(os.pathsep)
    assert set(versions) - set(before) == {"tiny 7"} and set(before) <= set(versions)
    again, _ = host("COLAB_RELEASE_TAG", "tiny")  # after a restart of the kernel
    assert again.returncode == 0 and again.stdout.count("\n") == 1


def test_a_package_that_would_replace_another_is_refused_in_one_line(host, tmp_path):
    write_wheel(tmp_path / "wheels", "numpy", version=99)
    done, _ = host("COLAB_RELEASE_TAG", "greedy", ("numpy>=99",))
    assert done.returncode == 1 and "numpy" not in done.stdout
    assert done.stderr.startswith("greedy could not be installed beside the packages that are there: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["animals10/raw-img", "datasets/alessiocorrado99/animals10/raw-img", ""])
def test_on_kaggle_the_attached_images_are_found_and_the_workspace_is_beside(host, tmp_path, place):
    images = tmp_path / "host" / "input" / place
    images.mkdir(parents=True)
    done, working = host("KAGGLE_KERNEL_RUN_TYPE")
    *lines, report = done.stdout.splitlines()
    variables = json.loads(report)[1]
    assert variables["ANIMALS10_ROOT"] == str(working / "animals10")
    assert variables["ANIMALS10_RAW"] == (str(images) if place else None)
    assert len(lines) == (not place) and all("Add Input" in line for line in lines)


def test_without_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    for name, value in {"COUNT": "1", "KEY_0": "url.file:///no-such-folder/.insteadOf", "VALUE_0": "https://"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "1")
    done = subprocess.run([sys.executable, "-c", CELL], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"{URL} could not be fetched. On Kaggle")
