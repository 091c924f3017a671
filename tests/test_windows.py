"""Rules of Windows and macOS for files and consoles, as far as they can be tried on any system."""

import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from animals10 import files
from animals10.files import REPOSITORY, UserError, atomic_write, link_folder, write_json
from animals10.images import processed_names

CODE = [path for folder in ("animals10", "scripts") for path in (REPOSITORY / folder).glob("*.py")]


def test_nothing_is_used_that_windows_lacks():
    """Modules and calls of POSIX alone; `hasattr` may ask for one."""
    lacks = r"\b(import (fcntl|pwd|grp|resource|termios)|os\.(fork|geteuid|getuid|killpg|mkfifo|sched_getaffinity)\b"
    lacks += r"|signal\.(SIGKILL|SIGHUP|SIGALRM|SIGUSR1|alarm)\b|preexec_fn|/dev/null|/tmp/)"
    for path in [*CODE, REPOSITORY / "tasks.py", REPOSITORY / "auxiliary.py"]:
        assert not re.search(lacks, path.read_text(encoding="utf-8")), path.name


def test_a_text_file_is_read_and_written_in_utf_8():
    """Without an encoding, Windows takes one of its own."""
    without = re.compile(
        r"\.(?:read_text|write_text|open)\((?!.*(?:encoding|options|\"r?b|\"[a-z]+b|\"r\+b|formats)).+"
    )
    for path in CODE:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if without.search(line)]
        assert not [line for line in lines if "cpuinfo" not in line and "Image.open(" not in line], path.name


def names(*relpaths):
    table = pd.DataFrame({"relpath": relpaths, "category": [path.split("/")[0] for path in relpaths]})
    return processed_names(table.assign(name=[path.rsplit("/", 1)[1] for path in relpaths])).tolist()


@pytest.mark.parametrize("name", ["con.jpg", "NUL.png", "aux.tar.jpg", "Com1 .webp", "lpt9", "CONIN$.gif"])
def test_a_processed_image_is_never_called_like_a_device_of_windows(name):
    (processed,) = names(f"cat/{name}")
    assert not re.match(r"(con|nul|aux|com1|lpt9|conin\$)\s*\.", processed, re.IGNORECASE) and processed.endswith(
        ".jpg"
    )
    assert names("cat/console.jpg", "cat/com10.png") == ["console.jpg", "com10.jpg"]


def test_processed_images_differ_also_where_case_and_encoding_do_not_count():
    composed, decomposed = unicodedata.normalize("NFC", "né"), unicodedata.normalize("NFD", "né")
    for first, second in (("cat/A.jpg", "cat/a.jpg"), ("Cat/a.jpg", "cat/a.jpg")):
        assert len({name.casefold() for name in names(first, second)}) == 2
    found = names(f"cat/a/{composed}.jpg", f"cat/b/{decomposed}.jpg")
    assert len({unicodedata.normalize("NFC", name) for name in found}) == 2


@pytest.fixture
def windows(monkeypatch):
    """Windows refuses to replace a file that is open; returns a function that says how often."""
    real, refused = os.replace, []

    def _refuse(times):
        def replace(source, target):
            if len(refused) < times:
                refused.append(target)
                raise PermissionError(13, "Access is denied")
            real(source, target)

        monkeypatch.setattr(files, "WINDOWS", True)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(os, "replace", replace)
        return refused

    return _refuse


def test_a_file_that_a_scanner_has_open_for_a_moment_is_replaced(windows, tmp_path):
    path = tmp_path / "a.json"
    refused = windows(times=3)
    write_json({"a": 1}, path)
    assert len(refused) == 3 and path.read_bytes() == b'{\n "a": 1\n}'


def test_a_file_that_stays_open_is_one_line_and_stays_as_it_was(windows, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old", encoding="utf-8")
    windows(times=100)
    message = r"results\.csv cannot be written: another program has it open, .*Close it"
    with pytest.raises(UserError, match=message), atomic_write(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_folder_appears_in_another_place_without_the_right_to_make_links(monkeypatch, tmp_path, hard_links):
    def refuse(*_, **__):
        raise OSError(22, "A required privilege is not held by the client", None, 1314)

    (tmp_path / "a" / "cat").mkdir(parents=True)
    (tmp_path / "a" / "cat" / "1.jpg").write_bytes(b"1")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    link_folder(tmp_path / "a", tmp_path / "b")
    copy = tmp_path / "b" / "cat" / "1.jpg"
    assert copy.read_bytes() == b"1" and copy.samefile(tmp_path / "a" / "cat" / "1.jpg") == hard_links


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_console_that_lacks_a_character_is_no_error(encoding):
    code = "import animals10.files; print('日本 → \\udcff')"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.startswith(rb"\u65e5\u672c ") and rb"\udcff" in done.stdout
