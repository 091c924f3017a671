"""The commit that a run records, and what of a machine decides the last digits of results."""

import os
import platform
import subprocess
import sys

import pytest
import tensorflow as tf

from animals10 import environment
from animals10.environment import configure_device, git_commit, numeric_device
from animals10.files import UserError
from animals10.progress import tell_once


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
    tell_once.cache_clear()
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


# ── Digits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_and_instruction_set_decide_the_digits_and_the_name_of_the_processor_does_not(monkeypatch):
    here = numeric_device()
    monkeypatch.setattr(environment, "device_name", lambda: "CPU of another name, 99 cores")
    monkeypatch.setattr("os.cpu_count", lambda: 99)
    assert numeric_device() == here
    monkeypatch.setattr(environment, "count_threads", lambda: 99)
    assert numeric_device() != here
    monkeypatch.undo()
    monkeypatch.setattr(environment, "instruction_set", lambda: ("x86_64", "SSE"))
    assert numeric_device() != here
    monkeypatch.undo()
    monkeypatch.setattr(environment.test_util, "IsMklEnabled", lambda: not here["onednn"])
    assert numeric_device() != here


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="TensorFlow has oneDNN on x86-64 alone")
@pytest.mark.parametrize(("given", "expected"), [({}, "1 True"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0 False")])
def test_tensorflow_computes_with_onednn_on_every_processor_unless_it_is_switched_off(given, expected):
    program = (
        "import os; from animals10.environment import numeric_device; "
        "print(os.environ['TF_ENABLE_ONEDNN_OPTS'], numeric_device()['onednn'])"
    )
    variables = {name: text for name, text in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"} | given
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_the_setting_of_threads_counts_from_the_start_and_is_refused_later():
    program = (
        "from animals10.environment import configure_device as configure, count_threads; import tensorflow as tf; "
    )
    program += "configure(threads=3); print(count_threads(), tf.random.stateless_normal([2], [1, 2]).shape)"
    variables = os.environ | {"ANIMALS10_CPUS_PER_RUN": "3"}
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout == "3 (2,)\n"
    with pytest.raises(UserError, match=r"_CPUS_PER_RUN is 99, but TensorFlow has started with"):
        configure_device(threads=99)


def test_a_gpu_computes_in_float32_not_in_tf32():
    tf.config.experimental.enable_tensor_float_32_execution(True)
    configure_device()
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(("given", "expected"), [({}, "true"), ({"TF_FORCE_GPU_ALLOW_GROWTH": "false"}, "false")])
def test_several_notebooks_can_share_a_gpu_unless_that_is_switched_off(given, expected):
    program = "import os, animals10; print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    variables = {name: text for name, text in os.environ.items() if name != "TF_FORCE_GPU_ALLOW_GROWTH"} | given
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
