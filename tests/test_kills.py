import sys

import pytest

from animals10.settings import SAMPLE
from animals10.stress import READY, kill_preprocessing, survive_kills


@pytest.mark.slow
def test_images_that_are_prepared_under_kills_end_as_undisturbed(tmp_path):
    raw = tmp_path / "raw"  # a part of the sample, to save time
    for name in ("cane", "gatto"):
        (raw / name).mkdir(parents=True)
        for path in sorted((SAMPLE / name).iterdir()):
            (raw / name / path.name).write_bytes(path.read_bytes())
    tally = kill_preprocessing(tmp_path / "work", raw, kills=2, seed=3, each=2)
    assert tally.faults == () and tally.kills >= 2 and tally.starts > tally.kills


def test_damage_by_a_kill_is_detected(tmp_path):
    """Tests the harness: a program that leaves half a file when it is killed is a fault."""
    program = f"import pathlib, sys, time; print('{READY}', flush=True); path = pathlib.Path(sys.argv[-1]) / 'a'; "
    program += "path.write_text(path.read_text() + 'again' if path.exists() else 'once'); time.sleep(1)"
    command = [sys.executable, "-c", program]
    tally = survive_kills(command, tmp_path, lambda workspace: {"a": (workspace / "a").read_text()}, kills=1, seed=1)
    assert "differing: a" in tally.faults[0]
