"""One table of all runs in a terminal and a notebook, plain lines in a log."""

import pytest

from animals10 import cluster_progress
from animals10.cluster_progress import RunTable

NAMES = [(f"digest{n}", f"run{n}") for n in range(1, 7)]


@pytest.fixture
def table(monkeypatch):
    def make(place):
        monkeypatch.setattr(cluster_progress, "place", lambda: place)
        return RunTable(NAMES, "[fold 1/5] ")

    return make


def test_a_log_gets_a_line_for_each_change_of_state_and_then_every_half_a_minute(table, monkeypatch, capsys):
    shown = table("log")
    shown.update("digest2", epochs=9)
    shown.update("digest2", state="training", worker="a/12", epoch=1, left=75)
    for epoch in (2, 3):
        shown.update("digest2", epoch=epoch, accuracy=0.5)
    monkeypatch.setattr(cluster_progress.time, "monotonic", lambda: 1e9)
    shown.update("digest2", accuracy=0.75)
    shown.update("digest2", state="stored")
    assert capsys.readouterr().out.splitlines() == [
        "[fold 1/5] [0/6] run2  training  on a/12  epoch 1/9  01:15 left at most",
        "[fold 1/5] [0/6] run2  training  on a/12  epoch 3/9  val accuracy 0.750  01:15 left at most",
        "[fold 1/5] [1/6] run2  stored  on a/12  epoch 3/9  val accuracy 0.750",
    ]


def test_a_table_shows_what_runs_first_and_fits_the_terminal(table, capsys):
    shown = table("terminal")
    shown.update("digest3", state="training", worker="a/12", epoch=1, epochs=9, accuracy=0.5, left=75)
    shown.update("digest5", state="failed")
    shown.update("digest6", state="preparing", worker="b/7", doing="MobileNetV2-train: cached features 34%")
    lines = shown.lines(most=6)
    assert len(lines) == 6 and lines[0].split("  ")[0] == "experiment"
    assert [line.split()[0] for line in lines[1:4]] == ["run5", "run3", "run6"]
    assert lines[2].split() == ["run3", "training", "a/12", "1/9", "0.500", "01:15"]
    assert "preparing: MobileNetV2-train: cached features 34%" in lines[3] and lines[4] == "… and 3 more"
    assert lines[5] == "[fold 1/5] 6 experiments: 3 waiting, 1 preparing, 1 training, 1 failed"
    capsys.readouterr()
    shown.draw(always=True)
    shown.say("run3: a message")  # stays above the table, which is drawn anew
    before, _, after = capsys.readouterr().err.partition("run3: a message\n")
    assert before.endswith("\x1b[8F\x1b[J") and after.startswith("experiment") and after.count("\n") == 8
