"""The commands of this repository, on every system: `python tasks.py TASK NAME=value …`.

`make TASK NAME=value …` calls this file. It needs Python alone: what the commands need is installed into `.venv` at
first use. Without a task, it lists all of them; docs/usage.md describes the settings.
"""

import sys

# First of all, and in words that every Python 3 can read.
if sys.version_info < (3, 11):
    sys.exit(
        f"Python 3.11, 3.12 or 3.13 is needed; {sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}. "
        "Name another: python3.12 tasks.py …, or make PYTHON=python3.12 …"
    )

import difflib
import hashlib
import os
import re
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
SETTINGS = """ROOT RAW TABLE_COLUMNS IMAGE_SIZE WEIGHTS ONLY MAX_EPOCHS FORCE SEED SPLIT FEATURE_CACHE VIEWS DETERMINISTIC
    TENSORBOARD PUBLISH""".split()
VARIABLES = """MODEL IMAGES CSV JSON TOP FORMAT PORT RUNS RECIPES BENCH EXPERIMENTS REPETITIONS WRITE WITH_IMAGES
    WORKERS""".split()
OF_INSTALL = ["VENV", "CONSTRAINTS"]  # on the command line alone: others use such names in the environment

FIRST = "tests/notebooks/01-preprocessing.ipynb"
NBVAL = ["--nbval-lax", "--nbval-cell-timeout=1200"]
MADE_BY_TOOLS = "build .hypothesis .mypy_cache .pytest_cache .ruff_cache .ipynb_checkpoints *.egg-info".split()
MADE_BY_TOOLS += ["__pycache__", "*/__pycache__"]


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

    def option(self, option: str, name: str) -> list[str]:
        """Returns an option of a script with the value of a variable, if there is one."""
        return [option, self[name]] if self[name] else []

    def words(self, name: str) -> list[str]:
        """Returns the words of a variable that holds several: blanks separate them, quotes keep them together."""
        try:
            return split_words(self[name])
        except ValueError as error:
            sys.exit(f"{name} is {self[name]!r}: {error}. Put quotes around a name that holds one.")

    def script(self, name: str, *arguments: str, profile: str = "", extras: bool = False, **settings: str) -> None:
        """Runs a script of `scripts/` in the environment, with the settings; ends with its status if it fails."""
        self.install(extras)
        environment = {"ANIMALS10_PROFILE": profile} if profile else {}
        environment |= {f"ANIMALS10_{name}": self[name] for name in SETTINGS if self[name]}
        environment |= {f"ANIMALS10_{name}": value for name, value in settings.items()}
        self.call([self.python, shown(REPOSITORY / "scripts" / name), *arguments], environment)

    def tool(self, *arguments: str, **environment: str) -> None:
        """Runs a module of the environment in the repository; ends with its status if it fails."""
        self.call([self.python, "-m", *arguments], environment, folder=REPOSITORY)

    def call(self, command: list[str], environment: dict[str, str] | None = None, folder: Path | None = None) -> None:
        """Runs a command with variables of the environment; ends with its status if it fails."""
        environment = environment or {}
        if self.dry_run:
            print(*[f"{name}={shlex.quote(value)}" for name, value in environment.items()], shlex.join(command))
        elif status := run(command, child_environment() | environment, folder):
            sys.exit(status)

    @property
    def python(self) -> str:
        """The Python of the environment."""
        return shown(environment_python(self.venv))

    # ── The environment ───────────────────────────────────────────────────────────────────────────────────────────────

    def install(self, extras: bool = False) -> None:
        """Makes the environment, unless it is there: with the requirements as they are now, and the extras if asked."""
        sources = ["pyproject.toml", "requirements.txt", "requirements.lock"]
        arguments = ["-r", "requirements.txt"]
        if constraints := self["CONSTRAINTS"]:
            sources, arguments = ["pyproject.toml", constraints], ["-e", ".[all]", "-c", constraints]
        self._install_once("ready", sources, arguments)
        if extras:
            self._install_once("extras", [*sources, "requirements-extras.txt"], ["-r", "requirements-extras.txt"])

    def _install_once(self, stamp: str, sources: list[str], arguments: list[str]) -> None:
        contents = b"".join((REPOSITORY / name).read_bytes().replace(b"\r", b"") for name in sources)
        done, path = hashlib.sha256(contents).hexdigest(), self.venv / stamp
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == done and environment_python(self.venv).is_file():
                return
        if self.dry_run:
            return
        print(f"Installing {arguments[1]} into {shown(self.venv)} (once; TensorFlow is large) …", flush=True)
        uv = shutil.which("uv")
        if not (uv and self._install_with([uv, "venv", "--quiet", "--seed", "--python"], [uv, "pip"], arguments)):
            if uv:
                print("uv could not: trying venv and pip.", flush=True)
            if not self._install_with([], [], arguments):
                sys.exit(f"The packages could not be installed into {shown(self.venv)}: see the lines above.")
        path.write_text(done, encoding="utf-8")

    def _install_with(self, uv_venv: list[str], uv_pip: list[str], arguments: list[str]) -> bool:
        """Makes the environment where there is none, and installs into it; tells whether that worked."""
        if not environment_python(self.venv).is_file():
            if sys.version_info[:2] > NEWEST:
                sys.exit(
                    f"Python 3.11, 3.12 or 3.13 is needed; {sys.executable} is {sys.version_info[0]}."
                    f"{sys.version_info[1]}. Name another: python3.12 tasks.py …, or make PYTHON=python3.12 …"
                )
            command = [*uv_venv, sys.executable] if uv_venv else [sys.executable, "-m", "venv"]
            if run([*command, "--clear", str(self.venv)]):
                return False
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
    defaults = {"TF_CPP_MIN_LOG_LEVEL": "2"}  # TensorFlow's warnings and errors alone
    if windows:
        defaults["PYTHONUTF8"] = "1"  # else output in a file cannot hold every file name
    return defaults | os.environ | {"PYTHONPATH": path}  # the code of this checkout, whichever is installed


def shown(path: Path) -> str:
    """Returns a path as commands take it: relative to the current folder where it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


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


def split_words(text: str, windows: bool = WINDOWS) -> list[str]:
    r"""Splits a text as a shell does. On Windows, a backslash separates folders: `C:\images 'my cat.png'`.

    Raises:
        ValueError: A quote is not closed.
    """
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    words.escape = "" if windows else words.escape
    return list(words)


# ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

Task = Callable[[Runner], None]
TASKS: dict[str, Task] = {}
GROUPS: dict[str, dict[str, list[str]]] = {"start": {}, "look": {}, "use": {}, "maintain": {}}  # title → names


def task(group: str, title: str = "") -> Callable[[Task], Task]:
    """Registers a task. In the list of all tasks, those of the same title share a line; else it is the docstring's."""

    def register(function: Task) -> Task:
        name = function.__name__.rstrip("_").replace("_", "-")
        TASKS[name] = function
        GROUPS[group].setdefault(title or description(function)[0], []).append(name)
        return function

    return register


def description(function: Task) -> list[str]:
    """Returns the lines of a task's docstring."""
    return [line.strip() for line in (function.__doc__ or "").strip().splitlines()]


@task("start")
def run_(runner: Runner) -> None:
    """Run the three notebooks on the sample, in build/sample, and print the results."""
    runner.script("run_notebooks.py", profile="sample")


@task("start")
def data(runner: Runner) -> None:
    """Download Animals-10 into data/raw-img."""
    runner.script("download.py", profile="full")


@task("start")
def quick(runner: Runner) -> None:
    """A first result in minutes on your images: notebooks 01 and 03, one linear probe: RAW= ROOT=."""
    notebooks = "01-preprocessing.ipynb", "03-transfer-learning.ipynb"
    runner.script("run_notebooks.py", "--notebooks", *notebooks, profile="full", ONLY="mobnet2_linear_probe")


@task("start")
def full(runner: Runner) -> None:
    """Run the three notebooks on your images: RAW= ROOT= WEIGHTS= ONLY= … (settings: docs/usage.md)."""
    runner.script("run_notebooks.py", profile="full")


@task("look")
def report(runner: Runner) -> None:
    """Write build/report/report.html of all stored runs: ROOT=.

    WITH_IMAGES=1 embeds misclassified images.
    """
    runner.script("report.py", *(["--with-images"] if runner["WITH_IMAGES"] else []), profile="full")


@task("look")
def efficiency(runner: Runner) -> None:
    """Measure size, latency and throughput of all stored runs, on an idle machine: ROOT=."""
    runner.script("measure_efficiency.py", profile="full")


NEAR_DUPLICATES = "Near-duplicates of Animals-10: which there are, and what they are worth: ROOT="


@task("look", NEAR_DUPLICATES)
def audit(runner: Runner) -> None:
    """Print the near-duplicate audit of Animals-10 in a workspace: ROOT=."""
    runner.script("audit.py", profile="full")


@task("look", NEAR_DUPLICATES)
def leakage(runner: Runner) -> None:
    """Measure what near-duplicates in training are worth on test images: ROOT= SPLIT= EXPERIMENTS= REPETITIONS=.

    WRITE=1 writes the values into data/animals10-leakage.csv.
    """
    options = ["--write"] if runner["WRITE"] else []
    options += runner.option("--repetitions", "REPETITIONS")
    runner.script("leakage.py", *options, *runner.words("EXPERIMENTS"), profile="full")


@task("use")
def classify(runner: Runner) -> None:
    """Classify IMAGES="file folder '*.png'" with MODEL=; CSV= JSON= save it; TOP= classes: ROOT=."""
    options = [*runner.option("--csv", "CSV"), *runner.option("--json", "JSON"), *runner.option("--top", "TOP")]
    runner.script("classify.py", *options, runner["MODEL"], *runner.words("IMAGES"), profile="full")


@task("use")
def demo(runner: Runner) -> None:
    """Serve a page on this machine to try the models of ROOT= in a browser: PORT=."""
    runner.script("demo.py", *runner.option("--port", "PORT"), profile="full", extras=True)


@task("use")
def export(runner: Runner) -> None:
    """Export, check and time MODEL=<id, run or .keras file> as FORMAT=litert,litert8,onnx: ROOT=."""
    options = runner.option("--format", "FORMAT")
    runner.script("export.py", *options, runner["MODEL"], profile="full", extras=True)


@task("use")
def recipes(runner: Runner) -> None:
    """Compare training configurations by cross-validation, in hours: RAW= ROOT= RECIPES=."""
    runner.script("compare_recipes.py", *runner.words("RECIPES"), profile="full")


ENVIRONMENT = "the environment .venv; with extras; pinned versions"


@task("maintain", ENVIRONMENT)
def install(runner: Runner) -> None:
    """Make .venv and install what the notebooks and all commands need; other commands do so at first use.

    VENV= names another folder. CONSTRAINTS=constraints-oldest.txt installs the oldest versions that are supported.
    """
    runner.install()


@task("maintain", ENVIRONMENT)
def extras(runner: Runner) -> None:
    """Install what demo, export, TensorBoard and HEIC images need in addition."""
    runner.install(extras=True)


@task("maintain", ENVIRONMENT)
def lock(runner: Runner) -> None:
    """Update requirements.lock, the pinned dependencies of both requirements files (needs uv)."""
    names = "requirements.txt", "requirements-extras.txt"
    lines = [line for name in names for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines()]
    command = "uv pip compile --universal --python-version 3.11 --quiet --no-header --no-annotate --no-emit-index-url"
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder) / "requirements.in"
        pinned.write_text("\n".join(line for line in lines if not line.startswith("-")), encoding="utf-8")
        runner.call([*command.split(), str(pinned), "-o", "requirements.lock"], folder=REPOSITORY)


RUNS = "stored runs: check, restore, complete, adopt: ROOT="


@task("maintain", RUNS)
def verify(runner: Runner) -> None:
    """Check that stored models and predictions agree with results.csv: ROOT= RAW= RUNS="id …"."""
    runner.script("verify.py", *runner.words("RUNS"))


@task("maintain", RUNS)
def rebuild(runner: Runner) -> None:
    """Restore results.csv from the run.json of all finished runs: ROOT=."""
    runner.script("rebuild_results.py", profile="full")


@task("maintain", RUNS)
def missing(runner: Runner) -> None:
    """Train the experiments of the study that results.csv lacks: RAW= ROOT= SPLIT= ONLY=."""
    runner.script("missing.py", profile="full")


@task("maintain", RUNS)
def adopt(runner: Runner) -> None:
    """Check runs of another workspace and add their rows and run files to this one: RUNS=folder ROOT=."""
    runner.script("adopt.py", *runner.words("RUNS"), profile="full")


CLEANING = "delete build/; the feature cache of ROOT="


@task("maintain", CLEANING)
def clean(runner: Runner) -> None:
    """Delete build/ and the caches of tools; data, models, results and .venv stay."""
    for path in (path for pattern in MADE_BY_TOOLS for path in REPOSITORY.glob(pattern)):
        if runner.dry_run:
            print("delete", shown(path))
        else:
            shutil.rmtree(path, ignore_errors=True)


@task("maintain", CLEANING)
def clean_cache(runner: Runner) -> None:
    """Delete the feature cache of a workspace: ROOT=."""
    if environment_python(runner.venv).is_file():  # without an environment there is no cache either
        runner.script("clean_cache.py", profile="full")


TESTING = "tests; style and types; benchmark: BENCH="


@task("maintain", TESTING)
def test(runner: Runner) -> None:
    """Run the fast tests, and compare the notebooks on the sample with tests/notebooks (nbval): WORKERS=2."""
    run_tests(runner, "-m", "not slow")


@task("maintain", TESTING)
def test_all(runner: Runner) -> None:
    """Run all tests, including the slow ones (up to an hour): WORKERS=2."""
    run_tests(runner)


def run_tests(runner: Runner, *options: str) -> None:
    """Runs notebook 01 on the sample, which makes the images that the others read, then all others and the tests."""
    runner.install()
    parallel = ["-n", runner["WORKERS"] or "2", "--dist", "loadscope", "--no-loadscope-reorder"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as workspace:
        settings = {"ANIMALS10_PROFILE": "sample", "ANIMALS10_ROOT": workspace, "CUDA_VISIBLE_DEVICES": "-1"}
        runner.tool("pytest", *NBVAL, FIRST, *options, **settings)
        runner.tool("pytest", *NBVAL, *parallel, "tests", f"--ignore={FIRST}", *options, **settings)


@task("maintain", TESTING)
def stress(runner: Runner) -> None:
    """Thousands of bad files, concurrent writers of results.csv, and kills (takes minutes)."""
    runner.install()
    runner.call([runner.python, shown(REPOSITORY / "scripts" / "stress.py")], {"CUDA_VISIBLE_DEVICES": "-1"})


@task("maintain", TESTING)
def lint(runner: Runner) -> None:
    """Check the style of code and notebooks (ruff) and the types of the package (mypy)."""
    runner.install()
    runner.tool("ruff", "check", ".")
    runner.tool("ruff", "format", "--check", ".")
    runner.tool("mypy")


@task("maintain", TESTING)
def bench(runner: Runner) -> None:
    """Time training with and without the feature cache on synthetic images: BENCH="--images 1000"."""
    runner.script("bench.py", *runner.words("BENCH"))


STORED = "what this repository stores; its pages"


@task("maintain", STORED)
def notebooks(runner: Runner) -> None:
    """Run the notebooks without training, and store their outputs here without photographs: RAW= ROOT= …."""
    runner.script("run_notebooks.py", "--store", "published", profile="full")


@task("maintain", STORED)
def sample_notebooks(runner: Runner) -> None:
    """Run the notebooks on the sample, and store in tests/notebooks what nbval compares."""
    workspace = REPOSITORY / "build" / "notebooks"
    if not runner.dry_run:
        shutil.rmtree(workspace, ignore_errors=True)
    runner.script("run_notebooks.py", "--store", "checked", profile="sample", ROOT=str(workspace))


@task("maintain", STORED)
def readme(runner: Runner) -> None:
    """Write the figure and tables of README.md and docs/results.md from results.csv."""
    runner.script("readme.py")


@task("maintain", STORED)
def sample(runner: Runner) -> None:
    """Draw the images of the sample again (needs the font Noto Color Emoji)."""
    runner.script("draw_sample.py")


@task("maintain", STORED)
def site(runner: Runner) -> None:
    """Write build/site/: report, notebooks with their stored outputs, and documentation, as linked pages."""
    runner.script("website.py")


# ── The command line ──────────────────────────────────────────────────────────────────────────────────────────────────


def help_text() -> str:
    """Returns the list of all tasks. It fits 24 lines of 100 characters."""
    lines = ["make TASK NAME=value …  or  python tasks.py TASK NAME=value …  (more on one: python tasks.py help TASK)"]
    for group, titles in GROUPS.items():
        lines.append(group)
        width = max(len(" ".join(names)) for names in titles.values())
        lines += [f"  {' '.join(names):<{width}}  {title.rstrip('.')}" for title, names in titles.items()]
    return "\n".join(lines)


def known_name(word: str, known: list[str], what: str, cutoff: float = 0.0) -> None:
    """Ends with a line that names the nearest if a name is not known; above 0, `cutoff` lets distant names pass."""
    nearest = difflib.get_close_matches(word.upper() if known[0].isupper() else word, known, n=1, cutoff=cutoff)
    if word not in known and (nearest or not cutoff):
        sys.exit(f"There is no {what} {word}; the nearest is {nearest[0]}." if nearest else f"There is no {what} {word}.")


def parse(words: list[str]) -> tuple[list[str], dict[str, str], bool]:
    """Returns the tasks, the values and whether this is a dry run, of the words of the command line.

    A variable of the environment counts as well, as make has it; the command line goes first. A name that is neither a
    setting nor a variable is passed on as a variable of the environment, unless it looks like a typing error.
    """
    values = {name: os.environ[name] for name in (*SETTINGS, *VARIABLES) if os.environ.get(name)}
    known, tasks = [*SETTINGS, *VARIABLES, *OF_INSTALL], []
    for word in words:
        if found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL):
            known_name(found[1], known, "variable", cutoff=0.8)
            values[found[1]] = found[2]
        elif word not in ("--dry-run", "-n"):
            tasks.append("help" if word in ("--help", "-h") else word)
    os.environ.update({name: value for name, value in values.items() if name not in known})
    return tasks, values, not {"--dry-run", "-n"}.isdisjoint(words)


def main(words: list[str]) -> None:
    """Runs the tasks that the command line names, one after the other."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console of Windows may lack a character
    tasks, values, dry_run = parse(words)
    if "help" in tasks or not tasks:
        asked = [name for name in tasks if name != "help"]
        for name in asked:
            known_name(name, list(TASKS), "task")
            print(f"{name}:", *description(TASKS[name]))
        print(*[] if asked else [help_text()])
        return
    for name in tasks:
        known_name(name, list(TASKS), "task")
    for name in tasks:
        TASKS[name](Runner(values, dry_run))


if __name__ == "__main__":
    main(sys.argv[1:])
