"""README.md, docs/ and CONTRIBUTING.md promise commands, settings, files and results: they are there."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

import auxiliary as aux
from animals10 import readme
from animals10.dataset import PUBLISHED_RESULTS
from animals10.files import REPOSITORY
from animals10.results import RESULT_COLUMNS

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES if path.exists()}
TEXT = "\n".join(TEXTS.values())
TASKS_FILE = runpy.run_path(str(REPOSITORY / "tasks.py"))
SETTINGS, VARIABLES, TASKS = TASKS_FILE["SETTINGS"], TASKS_FILE["VARIABLES"], set(TASKS_FILE["TASKS"])
BLOCKS = re.findall(r"```(?:sh|bash|console)\n(.*?)```", TEXT, re.DOTALL)
LINES = [line.partition("#")[0].removeprefix("$ ").strip() for block in BLOCKS for line in block.splitlines()]
PARTS = [
    part.strip()
    for line in [*LINES, *re.findall(r"`((?:make|python tasks\.py)(?: [^`\n]*)?)`", TEXT)]
    for part in line.split("&&")
]
COMMANDS = sorted(set(filter(None, PARTS)))
PROGRAMS = (".venv/bin/pip", ".venv/bin/python", ".venv/bin/pytest", ".venv/bin/jupyter", ".venv/bin/tensorboard")
PROGRAMS += (".venv/bin/pre-commit", ".venv/bin/ray", "sbatch", "git", "cd", "pip", "uv")
FOLDERS = ("animals10/", "scripts/", "docs/", "tests/", ".github/", ".ci/")


def make(*words: str) -> subprocess.CompletedProcess:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    return call("make", *words)


def tasks(*words: str) -> subprocess.CompletedProcess:
    return call(sys.executable, "tasks.py", *words)


def call(*words: str) -> subprocess.CompletedProcess:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True, "encoding": "utf-8"}
    return subprocess.run(words, **options)


def test_the_pages_are_there():
    assert set(TEXTS) == set(PAGES)
    assert {"usage.md", "design.md", "results.md"} <= {path.name for path in PAGES}


def test_readme_is_short():
    lines = TEXTS[REPOSITORY / "README.md"].splitlines()
    words = [word for line in lines if not line.startswith(("|", "<!--", "![")) for word in line.split()]
    assert len(words) <= 1000


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_known(command):
    program, *words = shlex.split(command)
    if program not in ("make", "python"):
        assert program in PROGRAMS
        return
    done = make("--dry-run", *words) if program == "make" else tasks("--dry-run", *words[1:])
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"\b([A-Z][A-Z0-9_]+)=", command):
        assert name in {*SETTINGS, *VARIABLES, "VENV", "CONSTRAINTS", "PYTHON"}


def test_each_setting_is_described_and_is_a_variable_of_the_tasks():
    usage = TEXTS[REPOSITORY / "docs" / "usage.md"]
    assert sorted(re.findall(r"^\| `([A-Z_]+)` \|", usage, re.MULTILINE)) == sorted(SETTINGS)
    assert {name.lower() for name in SETTINGS} | {"profile"} == set(aux.Settings.model_fields)
    for name in re.findall(r"\bANIMALS10_([A-Z_]+)\b", TEXT):
        assert name.lower() in aux.Settings.model_fields


def test_files_that_are_named_are_there():
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s:#]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
        for name in re.findall(r"`([\w./-]+\.(?:py|md|ipynb|csv|toml|yml|txt|lock|j2))`", text):
            if name.startswith(FOLDERS):
                assert (REPOSITORY / name).exists(), f"{page.name}: {name}"


def test_links_to_headings_are_right():
    for page, text in TEXTS.items():
        for target, heading in re.findall(r"\]\(([^)\s:#]*)#([^)]+)\)", text):
            other = TEXTS.get((page.parent / target).resolve() if target else page, "")
            headings = re.findall(r"^#+ (.*)", other, re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


# ── Results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [readme.README, readme.ALL_RESULTS], ids=lambda path: path.name)
def test_pages_show_what_the_tables_hold(path):
    settings = readme.repository_settings()
    assert readme.updated_text(path, settings) == path.read_text(encoding="utf-8"), "run `make readme`"


def test_notebooks_show_what_the_tables_hold():
    for path, text in readme.updated_notebooks(readme.repository_settings()).items():
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: run `make readme`"


@pytest.mark.parametrize("name", ["README.md", *aux.NOTEBOOKS[1:]])
def test_accuracies_in_the_texts_are_those_of_the_tables(name):
    columns = ["accuracy", "acc_train", "acc_val"]
    tables = aux.read_table(PUBLISHED_RESULTS), aux.read_table(REPOSITORY / "results.csv")
    known = {f"{value:.3f}" for table in tables for value in table[columns].to_numpy().ravel()}
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    cells = nbformat.reads(text, 4).cells if name.endswith(".ipynb") else []
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"] or [text]
    for text in (
        text for text in texts if "make configurations CONFIGURATIONS" not in text
    ):  # cross-validation has values of its own
        text = re.sub(r"\([^)]* to [^)]*\)", "", text)  # intervals
        assert {number for number in re.findall(r"\b0\.\d{3}\b", text) if float(number) >= 0.5} <= known


def test_the_figure_shows_what_the_tables_hold():
    # Drawn on another machine, a line may be a fraction of a pixel elsewhere: the values must be equal.
    table = readme.published_and_measured(readme.repository_settings())
    figure = readme.FIGURE.read_text(encoding="utf-8")
    assert readme.values_in(figure) == readme.drawn_values(table), "run `make readme`"


def test_tables_show_the_best_of_each_family_and_never_what_may_not_be_compared(tmp_path):
    own = aux.Settings(root=tmp_path, raw=tmp_path)
    row = dict.fromkeys(RESULT_COLUMNS, 1) | {"image_size": 224, "dataset": "animals10", "split": "grouped"}
    row |= {"accuracy_low": 0.25, "accuracy_high": 0.75, "weights": "imagenet", "epochs_cap": None, "n_test": 2577}
    row |= {"data_share": "25,949 of 26,179"}
    rows = []

    def add(id, accuracy, acc_val, **changes):
        learning_rate, epochs = aux.find_experiment(id, repetition=1).key[1:3] if id != "mine" else (1, 1)
        named = {"model_id": id, "run_id": len(rows), "time": f"2026-01-{10 + len(rows)}"}
        values = {"learning_rate": learning_rate, "epochs": epochs, "accuracy": accuracy, "acc_val": acc_val}
        rows.append(row | named | values | changes)

    add("mobnet2_small", 0.99, acc_val=0.90)
    add("mobnet2_best", 0.5, acc_val=0.95)
    add("mobnet2_best", 0.964, acc_val=0.95)  # trained again: the latest counts
    add("mobnet2_best", 0.97, acc_val=0.96, split="published", n_test=2595)
    add("mobnet2_best", 0.962, acc_val=0.99, repetition=2)
    add("mine", 1, acc_val=1)
    left_out = ({"dataset": "mini", "n_test": 33}, {"weights": "random"}, {"epochs_cap": 1}, {"image_size": 200})
    for changes in left_out:
        add("mobnet2_3dense", 0.123, acc_val=0.99, **changes)
        add("resnet2_small", 0.123, acc_val=0.99, **changes)
    aux.write_table(pd.DataFrame(rows), own.results)
    text = readme.best_of_families(own)
    lines = text.splitlines()
    assert len(lines) == 2 + 5 + 2 and "0.123" not in text and "mine" not in text
    published, measured = (line for line in lines if "MobileNetV2" in line)
    assert "`mobnet2_dense256_finetune`" in published and "0.966" in published and published.count("not measured") == 2
    assert "`mobnet2_best`" in measured and "0.964 (0.250 to 0.750)" in measured and "0.970 (" in measured
    assert "not measured" in next(line for line in lines if "EfficientNetV2S" in line)
    assert "25,949 of 26,179 images" in lines[-1] and "2,577 test images on the grouped split" in lines[-1]
    assert "0.123" not in readme.all_runs(own) and "0.990 (" in readme.all_runs(own)
    spread = next(line for line in readme.repeated_runs(own).splitlines() if "mobnet2_best" in line)
    assert "0.9640, 0.9620" in spread and "0.9630" in spread and "0.0014" in spread


def test_a_figure_of_ones_own_is_not_replaced(tmp_path, monkeypatch):
    figure = tmp_path / "results.svg"
    figure.write_text("<svg>mine</svg>")
    monkeypatch.setattr(readme, "FIGURE", figure)
    with pytest.raises(aux.UserError, match=r"results\.svg was not written by make readme: move it away"):
        readme.write_readme()
    assert figure.read_text() == "<svg>mine</svg>"


def test_a_page_without_its_marks_is_one_clear_line(tmp_path):
    page = tmp_path / "README.md"
    with pytest.raises(aux.UserError, match="There is no"):
        readme.updated_text(page, readme.repository_settings())
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(aux.UserError, match="must hold once each"):
        readme.updated_text(page, readme.repository_settings())
