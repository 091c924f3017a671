"""The stress test: random bad files, rows appended by many processes at once, and kills at random moments."""

import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from animals10.csv_append import append_row
from animals10.files import UserError, file_sha256, read_table
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import check_images
from animals10.sample import compose_sample
from animals10.settings import Settings
from animals10.splits import load_splits

COLUMNS = ("run_id", "model_id", "remark")
READY = "ready"  # a process prints it when its imports are done and its work begins

Fingerprint = Callable[[Path], Mapping[str, str]]


@dataclass
class KillTally:
    """The outcome of a series of kills.

    Attributes:
        kills: How many processes were killed at work.
        starts: How many were started.
        faults: What ended differently from an undisturbed run, in words.
    """

    kills: int = 0
    starts: int = 0
    faults: tuple[str, ...] = ()


def survive_kills(
    command: Sequence[str], workspace: Path, fingerprint: Fingerprint, *, kills: int, seed: int, each: int = 5
) -> KillTally:
    """Kills a process at random moments, restarts it until it ends, and compares the result with an undisturbed run.

    Args:
        command: Starts the process. It gets the workspace as last argument and prints `READY` when its work begins.
        workspace: Folder for the workspaces: one undisturbed, the others killed. Deleted and created again.
        fingerprint: Computes from a workspace what must be the same in the end: a mapping of names to values.
        kills: Minimum number of kills.
        seed: Decides the moments.
        each: Maximum number of kills per workspace; then the process may end.

    Returns:
        The number of kills and starts, and a fault for each workspace that differs or process that failed.
    """
    moments, tally = random.Random(seed), KillTally()
    faults: list[str] = []
    undisturbed = _new_folder(workspace / "undisturbed")
    seconds, code = _run(command, undisturbed, None)
    tally.starts += 1
    if code:
        log = undisturbed.with_suffix(".log")
        return KillTally(0, 1, (f"the undisturbed process ended with exit code {code}, see {log}",))
    expected, number = fingerprint(undisturbed), 0
    while tally.kills < kills and len(faults) < 5 and number < 10 * kills:
        number += 1
        disturbed, code, kills_here = _new_folder(workspace / f"disturbed-{number}"), -9, 0
        while code == -9:
            limit = moments.uniform(0, seconds) if kills_here < each else None
            code = _run(command, disturbed, limit)[1]
            tally.starts += 1
            kills_here += code == -9
        tally.kills += kills_here
        found = fingerprint(disturbed)
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        if code or differing:
            names = ", ".join(differing[:5]) or "nothing"
            faults.append(f"{disturbed} (.log), {kills_here} kills: exit code {code}, differing: {names}")
        else:
            shutil.rmtree(disturbed)
    if tally.kills < kills:
        faults.append(f"{tally.kills} kills instead of {kills}: the process ends too soon")
    return KillTally(tally.kills, tally.starts, tuple(faults))


def _new_folder(workspace: Path) -> Path:
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    return workspace


def _run(command: Sequence[str], workspace: Path, limit: float | None) -> tuple[float, int]:
    """Runs a process, killed `limit` seconds after it is ready; returns its seconds from then and its exit code."""
    log = workspace.with_suffix(".log")
    with log.open("ab") as errors:
        process = subprocess.Popen([*command, str(workspace)], stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        for line in process.stdout:
            if line.strip() == READY:
                break
        started = time.perf_counter()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return time.perf_counter() - started, process.returncode


def _command(work: Callable[[Path, Path], None], raw: Path) -> list[str]:
    """Returns the command that calls a function of this module with the raw folder and the workspace."""
    program = (
        f"import pathlib, sys; from animals10 import stress; stress.{work.__name__}(*map(pathlib.Path, sys.argv[1:]))"
    )
    return [sys.executable, "-c", program, str(raw)]


def file_checksums(workspace: Path) -> dict[str, str]:
    """Returns the checksums of all files in a folder and below, without lock files."""
    paths = [path for path in workspace.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(workspace)): file_sha256(path) for path in paths}


def prepare_images(raw: Path, workspace: Path) -> None:
    """Scans, resizes, checks and splits images in a workspace, and appends 60 rows to its table."""
    settings = Settings(root=workspace, raw=raw, image_size=96, weights="random")
    print(READY, flush=True)
    overview = scan_images(settings)
    row: dict[str, Any] = {"model_id": 'a, "b"\nc', "remark": "x" * 500}
    for number in range(30):
        append_row(settings.results, {"run_id": number} | row, COLUMNS)
    resize_images(settings, overview)
    check_images(settings)
    load_splits(settings)
    for number in range(30, 60):
        append_row(settings.results, {"run_id": number} | row, COLUMNS)


def kill_preprocessing(workspace: Path, raw: Path, **options: int) -> KillTally:
    """Kills processes that prepare images; `options` are those of `survive_kills`."""
    return survive_kills(_command(prepare_images, raw), workspace, file_checksums, **options)


def train_models(raw: Path, workspace: Path) -> None:
    """Trains a CNN, a head on cached features, and the fine-tuning that is initialised from it."""
    from animals10.experiments import Experiment, Training
    from animals10.models import CNN, Transfer
    from animals10.training import train

    settings = Settings(root=workspace, raw=raw, image_size=64, weights="random", views=2)
    print(READY, flush=True)
    resize_images(settings, scan_images(settings))
    training = Training(learning_rate=1e-3, epochs=4)
    head = Experiment("head", Transfer("MobileNetV2", (64,), (0.2,)), training)
    tuned = Transfer("MobileNetV2", (64,), (0.2,), unfreeze_last=20)
    train(settings, Experiment("cnn", CNN((8, 8), (2, 2), (64,), (0.3,)), training))
    train(settings, head)
    train(settings, Experiment("tuned", tuned, training, init_from=head))


def training_fingerprint(workspace: Path) -> dict[str, str]:
    """Returns what trainings must leave: weights, histories, predictions, rows, cached features, and nothing else."""
    from animals10.runs import Run

    checksums = file_checksums(workspace / "data")
    found = {name: value for name, value in checksums.items() if not name.endswith("results.csv")}
    for path in (workspace / "models").iterdir():
        if path.suffix == ".lock":
            continue
        if path.name.startswith("."):
            found[f"left over: {path.name}"] = ""
            continue
        run = Run(path.name, path)
        name = run.record["spec"]["id"]
        found[f"{name} weights"] = run.record["weights_sha256"]
        found |= {f"{name} {table}": file_sha256(run.file(table)) for table in ("history.csv", "predictions.csv")}
        found[f"{name} files"] = str(sorted(file.name for file in path.iterdir()))
    return found | {"rows": str(sorted(read_table(workspace / "results.csv").model_id))}


def kill_training(workspace: Path, raw: Path, **options: int) -> KillTally:
    """Kills processes that train; `options` are those of `survive_kills`."""
    return survive_kills(_command(train_models, raw), workspace, training_fingerprint, **options)


def append_together(path: Path, processes: int, each: int) -> None:
    """Appends rows to a new table from several processes at once: `each` rows per process."""
    context = multiprocessing.get_context("spawn")  # a fork of a process that runs threads may hang
    workers = [context.Process(target=_append_rows, args=(path, number, each)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a process that appended rows ended with exit code {worker.exitcode}")


def _append_rows(path: Path, process: int, each: int) -> None:
    for number in range(each):
        append_row(path, {"run_id": f"{process}-{number}", "model_id": 'a,\n"b"', "remark": "x" * number}, COLUMNS)


def stress(cases: int, kills: int, training_kills: int, rounds: int, seed: int) -> None:
    """Runs the stress test on the sample in a temporary folder, and prints what it did and what was lost.

    Args:
        cases: Number of folders of good and bad files.
        kills: Minimum number of kills of processes that prepare images.
        training_kills: Minimum number of kills of processes that train.
        rounds: How often a worker is killed and a machine is lost on a cluster.
        seed: Decides the files and the moments.

    Raises:
        UserError: A row was lost, or something crashed or ended differently; what is left stays in the folder.
    """
    # They need hypothesis and TensorFlow, which the killed processes need not import.
    from animals10.bad_input import check_many_folders
    from animals10.cluster_stress import kill_on_cluster

    workspace = Path(tempfile.mkdtemp(prefix="stress-"))
    print(f"seed {seed}, in {workspace}", flush=True)
    tried = check_many_folders(workspace / "input", cases, seed)
    files = f"{tried.good + tried.bad} files ({tried.good} good, {tried.bad} bad)"
    print(f"cases: {tried.cases} folders with {files}", flush=True)
    append_together(workspace / "results.csv", processes=8, each=100)
    rows = read_table(workspace / "results.csv").run_id
    lost, repeated = 800 - rows.nunique(), len(rows) - rows.nunique()
    print(f"rows: {len(rows)} appended by 8 processes, {lost} lost, {repeated} twice", flush=True)
    preprocessing = kill_preprocessing(workspace / "preprocessing", compose_sample(), kills=kills, seed=seed)
    training = kill_training(workspace / "training", compose_sample(), kills=training_kills, seed=seed)
    tallies = {"preprocessing": preprocessing, "training": training}
    if rounds:
        cluster = kill_on_cluster(workspace / "cluster", compose_sample(), rounds=rounds, seed=seed)
        tallies["training on a cluster"] = cluster
    for name, tally in tallies.items():
        outcome = f"{len(tally.faults)} ended differently from an undisturbed run"
        print(f"kills during {name}: {tally.kills} in {tally.starts} starts, {outcome}", flush=True)
    faults = [*tried.faults, *(fault for tally in tallies.values() for fault in tally.faults)]
    print(*faults, sep="\n", end="\n" if faults else "")
    n_kills = sum(tally.kills for tally in tallies.values())
    print(f"cases {tried.cases}, kills {n_kills}, rows {len(rows)}, lost {lost}, faults {len(faults)}")
    if faults or lost or repeated:
        raise UserError(f"The stress test failed: something was lost or crashed. What is left is in {workspace}.")
    shutil.rmtree(workspace)
