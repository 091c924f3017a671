"""Progress in a terminal, in a notebook and in a log file: of trainings, and of everything else that takes long."""

import io
import sys
import types
import weakref

import nbformat
import pytest

from animals10 import notebooks, progress
from animals10.callbacks import ProgressLine
from animals10.images import map_on_all_cores


class Clock:
    """Stands in for the module `time` in `progress`."""

    def __init__(self):
        self.seconds = 0.0

    def monotonic(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def streams(monkeypatch):
    """Returns a function that makes stdout and stderr of a kind; both end in streams of their own."""
    for name in ("CI", "TQDM_DISABLE", progress.AS_LOG):
        monkeypatch.delenv(name, raising=False)
    # An unfinished bar of another test would take the first line.
    monkeypatch.setattr(progress.Progress, "_instances", weakref.WeakSet())

    def _streams(kind):
        found = {name: io.StringIO() for name in ("stdout", "stderr")}
        for name, stream in found.items():
            stream.isatty = lambda: kind == "terminal"
            monkeypatch.setattr(sys, name, stream)
        shell = types.SimpleNamespace(kernel=None) if kind == "notebook" else None
        monkeypatch.setattr(progress, "get_ipython", lambda: shell)
        return found["stdout"], found["stderr"]

    return _streams


def train(clock, seconds_per_epoch=0.0, epochs=range(3, 5)):
    line = ProgressLine("[3/42] mobnet2_small", epochs, steps=10)  # some epochs are done
    line.on_train_begin()
    for epoch in epochs:
        line.on_epoch_begin(epoch)
        for batch in range(10) if epoch % 2 else [9]:  # step by step, or all in one execution
            clock.seconds += seconds_per_epoch / (10 if epoch % 2 else 1)
            line.on_train_batch_end(batch)
        line.on_epoch_end(epoch, {"val_accuracy": 0.944})
    assert line.bar.n == 10 * len(epochs)
    line.on_train_end()


@pytest.mark.parametrize("kind", ["terminal", "notebook"])
def test_a_line_is_drawn_anew_on_stderr_of_a_terminal_and_on_stdout_of_a_notebook(streams, clock, kind):
    stdout, stderr = streams(kind)
    train(clock)
    map_on_all_cores(str, range(9), "scan")
    shown, empty = (stderr, stdout) if kind == "terminal" else (stdout, stderr)
    lines = [text.strip() for text in shown.getvalue().split("\r")]
    assert "[3/42] mobnet2_small  epoch 4/5  ? left at most" in lines and not empty.getvalue()
    assert "\n[3/42] mobnet2_small  epoch 5/5  val accuracy 0.94  took 00:0" in shown.getvalue().replace("\r", "\n")
    assert lines[-1].startswith("scan: 100%") and shown.getvalue().endswith("\n")


def test_a_log_gets_a_line_per_epoch_or_half_a_minute_whichever_is_rarer(streams, clock):
    stdout, stderr = streams("file")
    train(clock, 100, range(3))
    lines = stdout.getvalue().splitlines()
    assert [line.partition("epoch ")[2].split("  ")[:2] for line in lines] == [
        [f"{epoch}/3", "val accuracy 0.94"] for epoch in (1, 2, 3, 3)
    ]
    assert "left at most" in lines[0] and "took" in lines[-1] and "\r" not in stdout.getvalue()
    stdout, _ = streams("file")
    train(clock, 8, range(10))  # of 80 seconds
    assert [line.partition("epoch ")[2].split("/")[0] for line in stdout.getvalue().splitlines()] == ["4", "8", "10"]
    assert not stderr.getvalue()


def test_a_log_gets_a_line_of_other_steps_every_half_a_minute_at_most(streams, clock, monkeypatch):
    stdout, stderr = streams("file")
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def wait(seconds):
        clock.seconds += seconds

    map_on_all_cores(wait, [0.1] * 250, "scan")
    assert not stdout.getvalue()  # it was short
    bar = progress.Progress(total=100, desc="resize", mininterval=0)
    for _ in range(100):
        wait(1)
        bar.update()
    bar.close()
    lines = stdout.getvalue().splitlines()
    assert [line.partition("| ")[2].split("/")[0] for line in lines] == ["30", "60", "90", "100"]
    assert not stderr.getvalue()


def test_in_ci_a_terminal_is_a_log(streams, clock, monkeypatch):
    stdout, stderr = streams("terminal")
    monkeypatch.setenv("CI", "true")
    train(clock)
    assert len(stdout.getvalue().splitlines()) == 1 and not stderr.getvalue()


CELL = """
import time
from animals10.progress import Progress
print("before")
bar = Progress(total=2, desc="resize", in_steps=True, bar_format="{desc} {n_fmt}")
for n in range(2):
    bar.update()
    bar.refresh()
    time.sleep(0.3)  # so that the kernel sends more than one message
bar.finish("{desc} done")
print("after")
"""


@pytest.mark.parametrize("kind", ["terminal", "file"])
def test_progress_of_executed_notebooks_reaches_whoever_runs_them(streams, tmp_path, monkeypatch, kind):
    stdout, stderr = streams(kind)
    if kind == "file":
        monkeypatch.setenv(progress.AS_LOG, "lines")  # as run_notebooks does
    source, target = tmp_path / "source.ipynb", tmp_path / "target.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)]), source)
    notebooks.execute_notebook(source, target)
    executed = nbformat.read(target, 4)
    assert [(output.name, output.text.replace(" ", "")) for output in executed.cells[0].outputs] == [
        ("stdout", "before\n\rresizedone\nafter\n")
    ]
    if kind == "terminal":
        assert "\rresize 1" in stderr.getvalue() and stderr.getvalue().split("\r")[-1] == "resize done\n"
        assert not stdout.getvalue()
    else:
        assert stdout.getvalue() == "resize done\n" and not stderr.getvalue()
    progress.rewrite_stdout(executed, progress.without_progress)  # as in published copies
    assert executed.cells[0].outputs[0].text == "before\nafter\n"
