import sys

import auxiliary as aux
from scripts.soak import READY, kill_preparation, survive_kills


def test_photographs_that_are_prepared_under_kills_end_as_undisturbed(tmp_path):
    raw = tmp_path / "raw"  # a part of the sample, for time
    for name in ("cane", "gatto"):
        (raw / name).mkdir(parents=True)
        for path in sorted((aux.SAMPLE / name).iterdir()):
            (raw / name / path.name).write_bytes(path.read_bytes())
    tally = kill_preparation(tmp_path / "work", raw, kills=2, seed=3, each=2)
    assert tally.faults == () and tally.kills >= 2 and tally.starts > tally.kills


def test_what_a_kill_spoils_is_found(tmp_path):
    """The harness itself: a program that leaves half a file when it is killed is told from one that does not."""
    program = f"import pathlib, sys, time; print('{READY}', flush=True); path = pathlib.Path(sys.argv[-1]) / 'a'; "
    program += "path.write_text(path.read_text() + 'again' if path.exists() else 'once'); time.sleep(1)"
    command = [sys.executable, "-c", program]
    tally = survive_kills(command, tmp_path, lambda workspace: {"a": (workspace / "a").read_text()}, kills=1, seed=1)
    assert "differing: a" in tally.faults[0]
