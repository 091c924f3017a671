"""TensorFlow starts without messages, in scripts, trainings and notebooks; real errors are shown in full."""

import os
import signal
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from animals10.files import REPOSITORY

TRAIN = """
import auxiliary as aux
import keras, numpy
aux.configure_device()
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
model.compile("sgd", "mse")
model.fit(numpy.zeros((8, 8)), numpy.zeros((8, 2)), verbose=0)
print("trained")
"""
BANNER = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
INFORMATION = "I0000 00:00:1795692420.1    9518 cudart_stub.cc:31] Could not find cuda drivers on your machine."
ERROR = "E0000 00:00:1795692426.3    9518 real.cc:52] the disk is gone"
# What versions of TensorFlow write at every start, with and without a GPU.
START = f"""{BANNER}
{INFORMATION}
2026-01-02 03:04:05.678901: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
I0000 00:00:1795692420.2    9518 cpu_feature_guard.cc:227] This TensorFlow binary is optimized to use …
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the … flags.
2026-01-02 03:04:05.678901: E external/xla/stream_executor/cuda/cuda_fft.cc:477] Unable to register cuFFT factory
E0000 00:00:1795692426.3    9518 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)
E0000 00:00:1795701179.4   13634 util.cc:131] oneDNN supports DT_HALF only on platforms with AVX-512. Falling back to …
W0000 00:00:1795692426.3    9518 computation_placer.cc:177] computation placer already registered.
"""


@pytest.fixture
def environment(monkeypatch):
    """What a user has who has set nothing; tests run with other variables."""
    for name in ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return dict(os.environ)


def test_a_script_that_trains_writes_nothing_but_its_own_output(environment):
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("trained\n", "", 0)


def test_a_notebook_that_trains_has_no_output_on_stderr(environment):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAIN)])
    environment.pop("PYTEST_CURRENT_TEST")  # under pytest, a kernel does not watch what C++ writes
    NotebookClient(notebook, kernel_name="python3").execute(env=environment)
    assert [(output.name, output.text) for output in notebook.cells[0].outputs] == [("stdout", "trained\n")]


@pytest.fixture
def start(environment, tmp_path):
    """Returns a function that imports a stand-in for TensorFlow, of the given code, in a fresh process."""

    def _start(code, level=None):
        package = tmp_path / "tensorflow"
        package.mkdir(exist_ok=True)
        devices = "class config:\n    def list_physical_devices(kind): pass\n"
        (package / "__init__.py").write_text(f"import os, sys\n{devices}{code}", encoding="utf-8")
        variables = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)])}
        variables |= {"TF_CPP_MIN_LOG_LEVEL": level} if level else {}
        command = [sys.executable, "-c", "import animals10, tensorflow, sys; print('after', file=sys.stderr)"]
        options = {"capture_output": True, "text": True, "encoding": "utf-8", "check": False}
        return subprocess.run(command, env=environment | variables, **options)

    return _start


def writing(text):
    return f"os.write(2, {text.encode()!r})\n"


def test_what_is_no_line_of_the_start_is_handed_on_in_its_order(start):
    done = start(
        writing(f"{START}plain words\n{ERROR}\nF0000 00:00:1.1 2 a.cc:1] fatal\n{START}no newline at the end, ")
    )
    assert done.stderr == f"plain words\n{ERROR}\nF0000 00:00:1.1 2 a.cc:1] fatal\nno newline at the end, after\n"
    assert done.returncode == 0 and not done.stdout


def test_a_crash_or_an_error_while_importing_is_shown_whole(start):
    crash = start(f"{writing(f'{START}*** CHECK failed: x > 0')}os.abort()")
    assert (crash.stderr, crash.returncode) == ("*** CHECK failed: x > 0", -signal.SIGABRT)
    failure = start(f"{writing(START)}import nothing_of_this_name")
    assert failure.stderr.startswith("Traceback (most recent call last)") and failure.returncode == 1
    assert failure.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'nothing_of_this_name'"


@pytest.mark.parametrize(("level", "shown"), [("0", START + ERROR), ("1", ""), ("2", ERROR), ("3", "")])
def test_the_level_of_the_user_wins(start, level, shown):
    lines = start(writing(f"{START}{ERROR}\n"), level).stderr.removesuffix("after\n")
    if level == "1":
        assert [line.partition(": ")[2][0] if line[0] == "2" else line[0] for line in lines.splitlines()] == list(
            "EEEWE"
        )
    else:
        assert lines.strip() == shown


def test_the_notebooks_import_auxiliary_before_tensorflow():
    for path in [*REPOSITORY.glob("*.ipynb"), *REPOSITORY.glob("tests/notebooks/*.ipynb")]:
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        lines = [line for source in cells for line in source.splitlines() if line.startswith(("import ", "from "))]
        names = [line.split()[1].split(".")[0] for line in lines]
        assert not {"keras", "tensorflow"} & set(names[: names.index("auxiliary")]), path.name
