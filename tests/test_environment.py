"""The commit that a run records is that of this code, or none, with the reason."""

import os
import subprocess

import pytest

from animals10 import environment
from animals10.environment import git_commit


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, as that of this code."""
    folder = tmp_path.resolve() / "repository"
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (
        ["init", "-q", str(folder)],
        ["-C", str(folder), *author, "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", *command], check=True)
    monkeypatch.setattr(environment, "REPOSITORY", folder)
    environment._say_once.cache_clear()
    return folder


def test_the_commit_of_this_code_is_recorded_whatever_git_variables_say(repository, tmp_path, monkeypatch, capsys):
    commit = git_commit()
    assert len(commit) == 12
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    for name, value in {"GIT_DIR": "other/.git", "GIT_WORK_TREE": "other", "GIT_INDEX_FILE": "nothing"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert git_commit() == commit and not capsys.readouterr().err


def test_a_copy_inside_another_repository_records_nothing_and_says_so_once(repository, monkeypatch, capsys):
    inner = repository / "animals"
    inner.mkdir()
    monkeypatch.setattr(environment, "REPOSITORY", inner)
    assert git_commit() == git_commit() == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"The commit of this code is not recorded: {inner} lies inside another repository, ")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1", "detected dubious ownership"),
        ("PATH", "", "git is not installed"),
        ("GIT_CEILING_DIRECTORIES", None, "not a git repository"),
    ],
)
def test_the_reason_for_no_commit_is_told(repository, monkeypatch, capsys, name, value, reason):
    if value is None:  # no repository at all
        (repository / ".git").rename(repository / "git")
        value = str(repository.parent)
    monkeypatch.setitem(os.environ, name, value)
    assert git_commit() == "" and reason in capsys.readouterr().err
