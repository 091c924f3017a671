"""The workflows of GitHub have the keys that they need and no others, and run commands that are there."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from animals10.files import REPOSITORY
from animals10.website import SITE

# All values are text: YAML 1.1 takes the key `on` for a truth value.
WORKFLOWS = {
    path.name: yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    for path in sorted((REPOSITORY / ".github" / "workflows").glob("*"))
}
EVENTS = {"push", "pull_request", "schedule", "workflow_dispatch"}
JOB_KEYS = {"runs-on", "timeout-minutes", "steps"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_complete(name):
    workflow = WORKFLOWS[name]
    assert {"name", "on", "jobs"} <= set(workflow) <= {"name", "on", "jobs", "permissions", "concurrency", "env"}
    assert set(workflow["on"]) <= EVENTS
    for job in workflow["jobs"].values():
        assert JOB_KEYS <= set(job) <= JOB_KEYS | {"needs", "strategy", "permissions", "environment", "env"}
        assert job.get("needs", "") in {"", *workflow["jobs"]}
        for step in job["steps"]:
            assert set(step) <= {"name", "id", "uses", "with", "run", "env"} and ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
            for group, value in re.findall(r"\$\{\{ (\w+)\.(\w+)", str(job)):
                known = {
                    "matrix": job.get("strategy", {}).get("matrix", {}),
                    "steps": [s.get("id") for s in job["steps"]],
                }
                assert value in known[group]
            command = step.get("run", "true").split()
            if command[0] in ("make", "python") and shutil.which(command[0]):
                front = ["make"] if command[0] == "make" else [sys.executable, command.pop(1)]
                dry_run = [*front, "--dry-run", *command[1:]]
                subprocess.run(dry_run, cwd=REPOSITORY, check=True, capture_output=True)
            elif command[0] != "true":
                assert (REPOSITORY / command[0]).is_file()


def test_tests_run_on_all_systems_and_versions_and_with_the_oldest_packages():
    jobs = WORKFLOWS["test.yml"]["jobs"]
    covered = set()
    for job in jobs.values():
        matrix = job["strategy"]["matrix"]
        systems = matrix.get("os", [job["runs-on"]])
        covered |= {(system, python, job["steps"][-1]["run"]) for system in systems for python in matrix["python"]}
    versions = "3.11", "3.12", "3.13"
    expected = {("ubuntu-latest", version, ".ci/run") for version in versions}
    expected |= {(f"{name}-latest", one, "python tasks.py test") for name in ("macos", "windows") for one in versions}
    oldest = "python tasks.py test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt"
    expected |= {("ubuntu-latest", version, oldest) for version in ("3.12", "3.13")}
    assert covered == expected


def test_pages_publishes_what_make_site_writes_and_may_do_no_more():
    workflow = WORKFLOWS["pages.yml"]
    assert workflow["on"] == {"push": {"branches": ["main"]}, "workflow_dispatch": ""}
    assert workflow["concurrency"] == {"group": "pages", "cancel-in-progress": "false"}
    build, deploy = workflow["jobs"].values()
    assert {"run": "make site"} in build["steps"]
    upload = next(step for step in build["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    assert REPOSITORY / upload["with"]["path"] == SITE
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in build
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"} and deploy["needs"] == "build"
