"""README promises commands, settings, files and sections: they are there."""

import os
import re
import shlex
import subprocess

import nbformat
import pytest

import auxiliary as aux

README = (aux.REPOSITORY / "README.md").read_text(encoding="utf-8")
MAKEFILE = (aux.REPOSITORY / "Makefile").read_text(encoding="utf-8")
SETTINGS = re.search(r"^SETTINGS := (.*)", MAKEFILE, re.MULTILINE)[1].split()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [part.strip() for line in [*LINES, *re.findall(r"`(make[^`]*)`", README)] for part in line.split("&&")]


def make(*words: str) -> subprocess.CompletedProcess:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *words], cwd=aux.REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_a_command_is_known(command):
    program, *words = shlex.split(command)
    if program != "make":
        assert program in (".venv/bin/pip", ".venv/bin/jupyter", ".venv/bin/tensorboard")
        return
    done = make("--dry-run", *words)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"\b([A-Z_]+)=", command):
        assert name in SETTINGS or re.search(rf"\$\({name}\)|^{name} \?=", MAKEFILE, re.MULTILINE)


def test_each_setting_is_described_and_taken():
    assert sorted(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE)) == sorted(SETTINGS)
    assert {name.lower() for name in SETTINGS} | {"profile"} == set(aux.Settings.model_fields)


def test_quick_commands_run(tmp_path):
    listed = re.findall(r"^  make ([a-z-]+) ", make().stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[1].split()
    assert sorted(listed) == sorted(phony)
    store = tmp_path / "data" / "activations" / "store"
    store.mkdir(parents=True)
    assert make("clean-cache", f"ROOT={tmp_path}").returncode == 0
    assert (tmp_path / "data").exists() and not store.parent.exists()


def test_sections_and_files_that_are_named_are_there():
    for path in re.findall(r"\]\(([^):]+)\)", README):
        assert (aux.REPOSITORY / path).exists(), path
    table = re.search(r"\| notebook \| section .*?\n\n", README, re.DOTALL)[0]
    named = {part.strip() for line in table.strip().splitlines()[2:] for part in line.split("|")[2].split(";")}
    cells = [cell for name in aux.NOTEBOOKS for cell in nbformat.read(aux.REPOSITORY / name, as_version=4).cells]
    sections = {line.lstrip("# ") for cell in cells for line in cell.source.splitlines() if line.startswith("## ")}
    assert named - {""} <= sections
