"""tasks.py does what make does, on every system: it lists its tasks, passes values on, and makes its environment."""

import ast
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from animals10.files import REPOSITORY

SOURCE = (REPOSITORY / "tasks.py").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
ODD = "/data/it's $my `pictures`; #1, (old) ünï 日本"
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="signals and links of POSIX")


@pytest.fixture(scope="module")
def tasks():
    return runpy.run_path(str(REPOSITORY / "tasks.py"))


def call(*words, folder=REPOSITORY, **environment):
    variables = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")} | environment
    options = {"cwd": folder, "env": variables, "capture_output": True, "text": True, "encoding": "utf-8"}
    return subprocess.run(list(words), **options)


def python_tasks(*words, **environment):
    return call(sys.executable, str(REPOSITORY / "tasks.py"), *words, **environment)


def make(*words, **environment):
    return call("make", *words, **environment)


# ── The list ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [(), ("help",), ("--help",), ("run", "-h")])
def test_all_tasks_are_listed_in_groups_on_one_screen(tasks, words):
    done = python_tasks(*words)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 24 and max(map(len, lines)) <= 100
    assert [line for line in lines[1:] if not line.startswith(" ")] == ["start", "look", "use", "maintain"]
    listed = [name for line in lines if line.startswith("  ") for name in re.split("  +", line.strip())[0].split()]
    assert sorted(listed) == sorted(tasks["TASKS"])


@needs_make
@pytest.mark.parametrize("words", [(), ("help",)])
def test_make_lists_them_as_well_and_has_each_as_a_target(tasks, words):
    assert make(*words).stdout == python_tasks().stdout
    targets = re.search(r"^TASKS := ((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)[1].replace("\\", "").split()
    assert sorted(targets) == sorted(tasks["TASKS"])


def test_scripts_of_the_tasks_are_there():
    names = re.findall(r'"(\w+\.py)"', SOURCE)
    assert len(names) > 15
    assert all((REPOSITORY / "scripts" / name).exists() for name in names)


# ── Values ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("front", [pytest.param(make, marks=needs_make), python_tasks])
def test_values_reach_the_scripts_as_they_are(front):
    """Whatever a path holds: make, the shell and tasks.py pass it on as it was meant."""
    words = shlex.split(front("--dry-run", "full", f"RAW={ODD}", f"WEIGHTS={ODD}", "ONLY=a,").stdout.splitlines()[-1])
    assert {f"ANIMALS10_RAW={ODD}", f"ANIMALS10_WEIGHTS={ODD}", "ANIMALS10_ONLY=a,", "ANIMALS10_PROFILE=full"} < {
        *words
    }
    given = f"MODEL={ODD}", f"CSV={ODD}", "IMAGES='*.png' \"a b\" c"
    line = front("--dry-run", "classify", *given, SEED="7").stdout.splitlines()[-1]
    words = [word.replace("\\", "/") for word in shlex.split(line)]
    assert words[words.index("scripts/classify.py") + 1 :] == ["--csv", ODD, ODD, "*.png", "a b", "c"]
    assert "ANIMALS10_SEED=7" in words  # of the environment


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tset",), "There is no task tset: did you mean test?"),
        (("full", "RAWS=x"), "There is no variable RAWS: did you mean RAW?"),
        (("full", "max_epoch=1"), "There is no variable max_epoch: did you mean MAX_EPOCHS?"),
        (("run", "--force"), "There is no task --force"),
        (("--dry-run", "classify", "IMAGES=it's"), 'IMAGES is "it\'s": no closing quotation'),
    ],
)
def test_a_typing_error_ends_in_one_line_before_anything_runs(words, message):
    done = python_tasks(*words)
    assert done.returncode == 1 and done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_on_windows_a_backslash_separates_folders(tasks):
    split, python = tasks["split_words"], tasks["environment_python"]
    assert split(r"C:\images 'D:\my cats\*.png' \\server\a", "IMAGES", True) == [
        r"C:\images",
        r"D:\my cats\*.png",
        r"\\server\a",
    ]
    assert split(r"my\ cats #1", "IMAGES", False) == ["my cats", "#1"]
    assert python(Path("v"), True) == Path("v/Scripts/python.exe") and python(Path("v"), False) == Path("v/bin/python")
    assert tasks["child_environment"](True)["PYTHONUTF8"] == "1"


def test_a_console_without_unicode_is_no_error():
    done = call(sys.executable, "tasks.py", PYTHONIOENCODING="cp437")
    assert done.returncode == 0 and "TASK NAME=value" in done.stdout


def test_an_older_python_can_read_the_file_and_says_what_is_needed():
    tree = ast.parse(SOURCE, feature_version=(3, 6))
    check = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [node.lineno < check.lineno for node in imports].count(True) == 1  # `import sys` alone
    for version in ("3.8", "3.9", "3.10"):
        if (done := call("env", f"python{version}", "tasks.py", "run")).returncode == 1:
            assert done.stderr.startswith("Python 3.11, 3.12 or 3.13 is needed") and done.stderr.count("\n") == 1


# ── Running ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def checkout(tmp_path):
    """A copy of the repository without git in a folder with an odd name, and an environment that it has not made."""
    folder = tmp_path / "Größe & 画像 (it's)"
    folder.mkdir()
    for name in ("tasks.py", "pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder)
    for path in REPOSITORY.glob("requirements*.txt"):
        shutil.copy(path, folder)
    (folder / "scripts").mkdir()
    return folder


def own_python(folder):
    """The Python of these tests as that of an environment in a folder."""
    python = runpy.run_path(str(REPOSITORY / "tasks.py"))["environment_python"](folder)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return folder


@needs_posix
def test_a_script_runs_with_code_and_settings_of_this_checkout_and_its_status_is_returned(checkout):
    script = "import os, sys; print(os.environ['ANIMALS10_RAW'], os.environ['PYTHONPATH'], os.getcwd()); sys.exit(7)"
    (checkout / "scripts" / "download.py").write_text(script, encoding="utf-8")
    environment = own_python(checkout.parent / "environment")
    words = "data", f"RAW={ODD}", f"VENV={environment}"
    done = call(sys.executable, str(checkout / "tasks.py"), *words, folder=checkout.parent, PYTHONPATH="also")
    assert done.stdout == f"{ODD} {checkout}{os.pathsep}also {checkout.parent}\n"
    assert done.returncode == 7 and not done.stderr


@needs_posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_told_to_end_does_so_in_its_own_way(checkout, number):
    script = """
        import signal, sys, time
        def end(number, _):
            time.sleep(1)
            print("cleared up", flush=True)
            sys.exit(3)
        signal.signal(signal.SIGINT, end), signal.signal(signal.SIGTERM, end)
        print("begun", flush=True)
        time.sleep(60)
    """
    script = "\n".join(line.removeprefix(" " * 8) for line in script.splitlines())
    (checkout / "scripts" / "download.py").write_text(script, encoding="utf-8")
    command = [
        sys.executable,
        str(checkout / "tasks.py"),
        "data",
        f"VENV={own_python(checkout.parent / 'environment')}",
    ]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(
        command, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    ) as process:
        assert process.stdout.readline() == "begun\n"
        # Ctrl-C reaches all processes of a terminal; a supervisor tells the first one alone.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("cleared up\n", "", 3)


INSTALLER = """#!{python}
import os, pathlib, sys
with open({log!r}, "a") as log:
    print("{name}", *[word.replace({folder!r}, ".") for word in sys.argv[1:]], file=log)
if "venv" in sys.argv:
    python = pathlib.Path(sys.argv[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to({pip!r})
sys.exit({status})
"""


@needs_posix
@pytest.mark.parametrize("uv", ["there", "broken", "absent"])
def test_the_environment_is_made_once_with_uv_where_it_is_there(checkout, tmp_path, uv):
    """Installers that write down what they are asked stand in for uv, venv and pip."""
    log, python, bin = tmp_path / "log", tmp_path / "pip", tmp_path / "bin"
    (checkout / "scripts" / "download.py").touch()
    bin.mkdir()
    values = {"python": sys.executable, "log": str(log), "folder": str(checkout), "pip": str(python)}
    for path, name, status in ((python, "pip", 0), (bin / "uv", "uv", int(uv == "broken"))):
        path.write_text(INSTALLER.format(name=name, status=status, **values), encoding="utf-8")
        path.chmod(0o755)
    if uv == "absent":
        (bin / "uv").unlink()
    if uv != "there":  # venv itself is tried: `python -m venv` without pip, whose place the stand-in takes afterwards
        (checkout / ".venv" / "bin").mkdir(parents=True)
        (checkout / ".venv" / "bin" / "python").symlink_to(python)

    def run(*words):
        log.unlink(missing_ok=True)
        done = call(sys.executable, "tasks.py", *words, folder=checkout, PATH=str(bin))
        assert done.returncode == 0, done.stderr
        return done.stdout, log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    out, lines = run("install")
    assert "once" in out and ("uv could not" in out) == (uv == "broken")
    with_uv = [f"uv venv --quiet --seed --python {sys.executable} --clear ./.venv"] if uv == "there" else []
    with_uv += ["uv pip install --python ./.venv/bin/python --quiet -r requirements.txt"] if uv != "absent" else []
    with_pip = ["pip -m pip install --quiet --disable-pip-version-check -r requirements.txt"] if uv != "there" else []
    assert lines == with_uv + with_pip
    out, lines = run("data")
    assert lines == ["pip ./scripts/download.py"] and not out
    with (checkout / "requirements.txt").open("a") as file:
        file.write("another==1\n")
    assert len(run("install", "install")[1]) == len([one for one in with_uv + with_pip if "install" in one])


def test_a_newer_python_than_tensorflow_knows_is_one_line(checkout, tasks, monkeypatch):
    runner = tasks["Runner"]({"VENV": str(checkout / "none")})
    monkeypatch.setitem(runner.install.__globals__, "NEWEST", (3, 10))
    monkeypatch.setitem(runner.install.__globals__, "REPOSITORY", checkout)
    with pytest.raises(SystemExit, match=r"^Python 3\.11, 3\.12 or 3\.13 is needed; .* is 3\.1\d\. Name another"):
        runner.install()


# ── Cleaning ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_make
def test_the_feature_cache_can_be_deleted_also_below_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for root, name in ((f"{tmp_path}", tmp_path), ("~/it's", tmp_path / "it's")):
        cache = name / "data" / "features" / "MobileNetV2-train"
        cache.mkdir(parents=True)
        assert make("clean-cache", f"ROOT={root}").returncode == 0
        assert (name / "data").exists() and not cache.parent.exists()
