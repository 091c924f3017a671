"""The commands of this repository, on every system: `python tasks.py TASK NAME=value …`.

`make TASK NAME=value …` calls this file. It needs Python alone: what the commands need is installed into `.venv` at
first use. Without a task, it lists all of them; docs/usage.md describes the settings.
"""

import sys

# First of all, and in a syntax that Python 3.6 can read, as the rest of this file.
OTHER_PYTHON = (
    f"Python 3.11, 3.12 or 3.13 is needed; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
    "Name another: python3.12 tasks.py …, or make PYTHON=python3.12 …"
)
if sys.version_info < (3, 11):
    sys.exit(OTHER_PYTHON)

import difflib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
WINDOWS = os.name == "nt"
NEWEST = (3, 13)  # version of Python for which TensorFlow and all others have packages

# Each setting reaches notebooks and scripts as ANIMALS10_<name>. Variables are for single tasks.
SETTINGS = """ROOT RAW TABLE_COLUMNS IMAGE_SIZE RESIZE WEIGHTS ONLY MAX_EPOCHS FORCE SEED SPLIT FEATURE_CACHE VIEWS
    DETERMINISTIC CLUSTER CPUS_PER_RUN GPUS_PER_RUN TENSORBOARD PUBLISH ALL PRECISION""".split()
VARIABLES = """MODEL IMAGES CSV JSON TOP MIRRORED CALIBRATED REJECT FORMAT PORT RUNS CONFIGURATIONS LABELS BENCH
    EXPERIMENTS REPETITIONS WRITE WITH_IMAGES WORKERS""".split()
OF_COMMAND_LINE = ["VENV", "CONSTRAINTS", "CLUSTER"]  # alone: others use such names in the environment

FIRST = "tests/notebooks/01-preprocessing.ipynb"
NBVAL = ["--nbval-lax", "--nbval-cell-timeout=1200"]
MADE_BY_TOOLS = """.hypothesis .mypy_cache .pytest_cache .ruff_cache .ipynb_checkpoints *.egg-info __pycache__
    */__pycache__""".split()


class Runner:
    """Runs the commands of a task.

    Attributes:
        values: The values of settings and variables that were given.
        dry_run: Whether commands are printed instead.
    """

    def __init__(self, values: dict[str, str], dry_run: bool = False):
        self.values, self.dry_run = values, dry_run
        self.venv = REPOSITORY / (self["VENV"] or ".venv")

    def __getitem__(self, name: str) -> str:
        """Returns the value of a variable; the empty text counts as none."""
        return self.values.get(name, "")

    def script(self, name: str, arguments: list[str], settings: dict[str, str], **others: str) -> None:
        """Runs a script of `scripts/` with the settings that were given, besides those that the task decides."""
        settings = settings | {name: self[name] for name in SETTINGS if self[name] and name not in settings}
        environment = {f"ANIMALS10_{name}": text for name, text in settings.items()} | others
        self.call([self.python, str(REPOSITORY / "scripts" / name), *arguments], environment)

    def module(self, *arguments: str, **environment: str) -> None:
        """Runs a module of the environment in the repository."""
        self.call([self.python, "-m", *arguments], environment, REPOSITORY)

    def call(self, command: list[str], environment: dict[str, str], folder: Path | None = None) -> None:
        """Runs a command with variables of the environment; ends with its status if it fails."""
        if self.dry_run:
            words = [text.removeprefix(str(REPOSITORY) + os.sep) for text in command]
            print(*[f"{name}={shlex.quote(text)}" for name, text in environment.items()], shlex.join(words))
            return
        status = run(command, child_environment() | environment, folder)
        if status:
            sys.exit(status)

    def delete(self, folder: Path) -> None:
        """Deletes a folder or a file, if it is there."""
        if self.dry_run:
            print("delete", folder)
        elif folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.unlink(missing_ok=True)

    @property
    def python(self) -> str:
        """The Python of the environment."""
        return str(environment_python(self.venv))

    # ── The environment ───────────────────────────────────────────────────────────────────────────────────────────────

    def install(self, extras: bool = False, cluster: bool = False) -> None:
        """Makes the environment, unless it is there: with the requirements as they are now, extras and Ray if asked.

        One that VENV names, and that is not of this function's making, is used as it is.
        """
        if self["VENV"] and environment_python(self.venv).is_file() and not (self.venv / "ready").is_file():
            return
        sources, arguments = ["pyproject.toml", "requirements.txt", "requirements.lock"], ["-r", "requirements.txt"]
        if self["CONSTRAINTS"]:
            sources, arguments = ["pyproject.toml", self["CONSTRAINTS"]], ["-e", ".[all]", "-c", self["CONSTRAINTS"]]
        self._install_once("ready", sources, arguments)
        for name in ["extras"] * extras + ["cluster"] * cluster:
            self._install_once(name, [*sources, f"requirements-{name}.txt"], ["-r", f"requirements-{name}.txt"])

    def _install_once(self, stamp: str, sources: list[str], arguments: list[str]) -> None:
        contents = b"".join((REPOSITORY / name).read_bytes().replace(b"\r", b"") for name in sources)
        done, path = hashlib.sha256(contents).hexdigest(), self.venv / stamp
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == done and environment_python(self.venv).is_file():
                return
        if self.dry_run:
            return
        print(f"Installing {arguments[1]} into {self.venv.name} (once; TensorFlow is large) …", flush=True)
        uv = shutil.which("uv")
        done_with_uv = uv and self._install_with([uv, "venv", "--quiet", "--seed", "--python"], [uv, "pip"], arguments)
        if uv and not done_with_uv:
            print("uv could not: trying venv and pip.", flush=True)
        if not (done_with_uv or self._install_with([], [], arguments)):
            sys.exit(f"The packages could not be installed into {self.venv.name}: see the lines above.")
        path.write_text(done, encoding="utf-8")

    def _install_with(self, uv_venv: list[str], uv_pip: list[str], arguments: list[str]) -> bool:
        """Makes the environment where there is none, and installs into it; tells whether that worked."""
        if not environment_python(self.venv).is_file():
            if sys.version_info[:2] > NEWEST:
                sys.exit(OTHER_PYTHON)
            command = [*uv_venv, sys.executable] if uv_venv else [sys.executable, "-m", "venv"]
            if run([*command, "--clear", str(self.venv)]):
                return False
            (self.venv / "ready").touch()
        python = str(environment_python(self.venv))
        command = [*uv_pip, "install", "--python", python] if uv_pip else [python, "-m", "pip", "install"]
        command += ["--quiet"] if uv_pip else ["--quiet", "--disable-pip-version-check"]
        return run([*command, *arguments], folder=REPOSITORY) == 0


def environment_python(folder: Path, windows: bool = WINDOWS) -> Path:
    """Returns the path of the Python of a virtual environment, whether or not it is there."""
    return folder / "Scripts" / "python.exe" if windows else folder / "bin" / "python"


def child_environment(windows: bool = WINDOWS) -> dict[str, str]:
    """Returns the environment variables of this process with those that each command gets."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    defaults = {"PYTHONUTF8": "1"} if windows else {}  # else output in a file cannot hold every file name
    return defaults | os.environ | {"PYTHONPATH": path}  # the code of this checkout, whichever is installed


def run(command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None) -> int:
    """Runs a command, passes on signals, and returns its exit status as a shell does.

    Ctrl-C reaches the command without help, so this only waits for it to end in its own way.
    """
    try:
        process = subprocess.Popen(command, env=environment, cwd=folder)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror or error}.")
    with terminated_with(process):
        while True:
            with suppress(KeyboardInterrupt):
                status = process.wait()
                return status if status >= 0 else 128 - status


@contextmanager
def terminated_with(process: subprocess.Popen) -> Iterator[None]:
    """Ends a process as well if this one is told to end in the block."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has one
    signals = [number for number in signals if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores the other
    for number in signals:
        signal.signal(number, lambda number, _: process.send_signal(number))
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

HELP = """make TASK NAME=value …  or  python tasks.py TASK NAME=value …  (docs/usage.md describes both)
start
  run             run the three notebooks on the sample, in build/sample; print the results: ALL=1
  lab             open JupyterLab on working copies of the notebooks: ROOT=
  data            download Animals-10 into data/raw-img
  quick           a first result in minutes on your images, one linear probe: RAW= ROOT=
  full            run the three notebooks on your images: RAW= ROOT= WEIGHTS= ONLY= CLUSTER=local …
look
  report          write build/report/report.html of all stored runs: ROOT= WITH_IMAGES=1
  efficiency      measure size, latency and throughput of all stored runs, on an idle machine: ROOT=
  audit leakage   near-duplicates of Animals-10: their number, and their effect on accuracy: ROOT=
use
  classify        classify IMAGES="file folder '*.png'" with MODEL=; CSV= JSON= save it: REJECT= …
  demo            serve a page on this machine to try the models in a browser: ROOT= PORT= …
  export          export, check and time MODEL= as FORMAT=litert,litert8,onnx: ROOT= CALIBRATED=1
  labels          rank images whose labels may be wrong: RAW= ROOT= LABELS=
  configurations  compare training configurations, in hours: RAW= ROOT= CONFIGURATIONS=
maintain
  install extras cluster lock                    .venv; for demo and export; for CLUSTER=; pins
  verify rebuild missing adopt                   stored runs: check, restore, complete, adopt: ROOT=
  clean clean-cache                              delete build/; delete the feature cache of ROOT=
  test test-all stress lint bench                tests; style and types; benchmark: BENCH=
  notebooks sample-notebooks readme sample site  what this repository stores; build/site"""

Task = Callable[[Runner], None]
Words = Callable[[Runner], list[str]]  # of a command line


def script(name: str, *words: str | Words, profile: str = "full", extras: bool = False, **settings: str) -> Task:
    """Returns a task that runs a script of `scripts/`.

    Args:
        name: Its file name.
        words: Its arguments, or functions of the runner that return some.
        profile: The value of ANIMALS10_PROFILE; empty for none.
        extras: Whether it needs the packages of requirements-extras.txt.
        settings: Settings that do not depend on the command line.
    """

    def task(runner: Runner) -> None:
        arguments = [part for word in words for part in ([word] if isinstance(word, str) else word(runner))]
        runner.install(extras, bool(runner["CLUSTER"]))
        runner.script(name, arguments, ({"PROFILE": profile} if profile else {}) | settings)

    return task


def option(option: str, name: str) -> Words:
    """Returns an option of a script and the value of a variable, where there is one."""
    return lambda runner: [option, runner[name]] if runner[name] else []


def flag(option: str, name: str) -> Words:
    """Returns an option of a script, where a variable has a value."""
    return lambda runner: [option] if runner[name] else []


def words(name: str) -> Words:
    """Returns the words of a variable that holds several."""
    return lambda runner: split_words(runner[name], name)


def split_words(text: str, name: str, windows: bool = WINDOWS) -> list[str]:
    r"""Splits a text as a shell does: blanks separate words, quotes keep them together.

    On Windows, a backslash separates folders: `C:\images 'my cat.png'`. A quote that is not closed ends in one line.
    """
    found = shlex.shlex(text, posix=True)
    found.whitespace_split, found.commenters, found.escape = True, "", "" if windows else found.escape
    try:
        return list(found)
    except ValueError as error:
        sys.exit(f"{name} is {text!r}: {str(error).lower()}; put quotes of the other kind around such a name.")


def test(*options: str, **of_sample: str) -> Task:
    """Returns a task that runs notebook 01 on the sample, which makes the images, then the others and the tests."""

    def task(runner: Runner) -> None:
        runner.install()
        parallel = ["-n", runner["WORKERS"] or "2", "--dist", "loadscope", "--no-loadscope-reorder"]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
            settings = {"ANIMALS10_PROFILE": "sample", "ANIMALS10_ROOT": workspace, "CUDA_VISIBLE_DEVICES": "-1"}
            settings |= {f"ANIMALS10_{name}": text for name, text in of_sample.items()}
            runner.module("pytest", *NBVAL, FIRST, *options, **settings)
            runner.module("pytest", *NBVAL, *parallel, "tests", f"--ignore={FIRST}", *options, **settings)

    return task


def lint(runner: Runner) -> None:
    """Checks the style of code and notebooks (ruff) and the types of the package (mypy)."""
    runner.install()
    for command in ("ruff check .", "ruff format --check .", "mypy"):
        runner.module(*command.split())


def sample_notebooks(runner: Runner) -> None:
    """Runs the notebooks on the sample, and stores in tests/notebooks what nbval compares."""
    workspace = REPOSITORY / "build" / "notebooks"
    runner.delete(workspace)
    script("run_notebooks.py", "--store", "checked", profile="sample", ROOT=str(workspace), **QUICK)(runner)


def lock(runner: Runner) -> None:
    """Updates requirements.lock, the pinned dependencies of all requirements files (needs uv)."""
    names = "requirements.txt", "requirements-extras.txt", "requirements-cluster.txt"
    lines = [line for name in names for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines()]
    command = "uv pip compile --universal --python-version 3.11 --quiet --no-header --no-annotate --no-emit-index-url"
    with tempfile.TemporaryDirectory() as folder:
        direct = Path(folder) / "requirements.in"
        direct.write_text("\n".join(line for line in lines if not line.startswith("-")), encoding="utf-8")
        runner.call([*command.split(), str(direct), "-o", "requirements.lock"], {}, REPOSITORY)


def clean(runner: Runner) -> None:
    """Deletes build/ and the caches of tools; data, models, results, .venv and working copies of notebooks stay."""
    for path in (path for pattern in MADE_BY_TOOLS for path in REPOSITORY.glob(pattern)):
        runner.delete(path)
    for path in REPOSITORY.glob("build/*"):
        for part in path.iterdir() if (path / "notebooks").is_dir() else [path]:
            if part.name != "notebooks":  # what somebody wrote there
                runner.delete(part)


def clean_cache(runner: Runner) -> None:
    """Deletes the feature cache of a workspace. Without an environment there is none."""
    if environment_python(runner.venv).is_file():
        runner.script("clean_cache.py", [], {"PROFILE": "full"})


QUICK = {"WEIGHTS": "random", "MAX_EPOCHS": "1"}  # the tour as nbval runs it
RUN, NOTEBOOKS_01_03 = "run_notebooks.py", ("01-preprocessing.ipynb", "03-transfer-learning.ipynb")
MODEL: Words = lambda runner: [runner["MODEL"]]  # noqa: E731
REPETITIONS = option("--repetitions", "REPETITIONS")
CALIBRATED, REJECT = flag("--calibrated", "CALIBRATED"), option("--reject", "REJECT")
SAVED = option("--csv", "CSV"), option("--json", "JSON"), option("--top", "TOP"), flag("--mirrored", "MIRRORED")
TASKS: dict[str, Task] = {
    "run": script(RUN, profile="sample"),
    "lab": script("lab.py", profile=""),
    "data": script("download.py"),
    "quick": script(RUN, "--notebooks", *NOTEBOOKS_01_03, ONLY="mobnet2_linear_probe"),
    "full": script(RUN),
    "report": script("report.py", flag("--with-images", "WITH_IMAGES")),
    "efficiency": script("measure_efficiency.py"),
    "audit": script("audit.py"),
    "leakage": script("leakage.py", flag("--write", "WRITE"), REPETITIONS, words("EXPERIMENTS")),
    "classify": script("classify.py", *SAVED, CALIBRATED, REJECT, MODEL, words("IMAGES")),
    "demo": script("demo.py", option("--port", "PORT"), CALIBRATED, extras=True),
    "export": script("export.py", option("--format", "FORMAT"), CALIBRATED, MODEL, extras=True),
    "labels": script("labels.py", words("LABELS")),
    "configurations": script("compare_configurations.py", words("CONFIGURATIONS")),
    "install": lambda runner: runner.install(),
    "extras": lambda runner: runner.install(extras=True),
    "cluster": lambda runner: runner.install(cluster=True),
    "lock": lock,
    "verify": script("verify.py", words("RUNS"), profile=""),
    "rebuild": script("rebuild_results.py"),
    "missing": script("missing.py"),
    "adopt": script("adopt.py", words("RUNS")),
    "clean": clean,
    "clean-cache": clean_cache,
    "test": test("-m", "not slow", **QUICK),
    "test-all": test(ALL="1"),
    "stress": script("stress.py", profile=""),
    "lint": lint,
    "bench": script("bench.py", words("BENCH"), profile=""),
    "notebooks": script(RUN, "--store", "published"),
    "sample-notebooks": sample_notebooks,
    "readme": script("readme.py", profile=""),
    "sample": script("draw_sample.py", profile=""),
    "site": script("website.py", profile=""),
}


# ── The command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str]) -> None:
    """Runs the tasks that the command line names, one after the other.

    Variables of the environment count; the command line goes first. Unknown names join them, unless they look mistyped.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console of Windows may lack a character
    values = {name: os.environ[name] for name in {*SETTINGS, *VARIABLES} - {*OF_COMMAND_LINE} if os.environ.get(name)}
    known, tasks = [*SETTINGS, *VARIABLES, *OF_COMMAND_LINE], []
    for word in arguments:
        name, equals, text = word.partition("=")
        if not equals:
            tasks.append(word)
        elif name in known or not difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8):
            values[name] = text
        else:
            unknown("variable", name, known)
    dry_run, tasks = "--dry-run" in tasks, [name for name in tasks if name != "--dry-run"]
    if not tasks or {"help", "--help", "-h"} & set(tasks):
        return print(HELP)
    for name in set(tasks) - set(TASKS):
        unknown("task", name, list(TASKS))
    os.environ.update({name: text for name, text in values.items() if name not in known})
    for name in tasks:
        TASKS[name](Runner(values, dry_run))


def unknown(what: str, name: str, known: list[str]) -> None:
    """Ends with a line about a name that is not known, and the one that was probably meant."""
    nearest = difflib.get_close_matches(name.upper() if what == "variable" else name, known, n=1)
    sys.exit(f"There is no {what} {name}" + (f": did you mean {nearest[0]}?" if nearest else ". help lists them."))


if __name__ == "__main__":
    main(sys.argv[1:])
