"""Ill-treats the study for minutes: thousands of bad files, rows appended all at once, processes killed at random.

Prints what it did and what was lost; ends with an error if anything was. `make test` runs the same in short.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storage import append_row, read_table

COLUMNS = ("run_id", "model_id", "remark")
READY = "ready"  # what a process prints when its imports are done and its work begins


@dataclass
class Tally:
    """What a series of kills came to; `faults` says in words what did not end as it should."""

    kills: int = 0
    starts: int = 0
    faults: tuple[str, ...] = ()


def survive_kills(
    command: Sequence[str],
    workspace: Path,
    fingerprint: Callable[[Path], Mapping],
    *,
    kills: int,
    seed: int,
    each: int = 5,
    prepare: Callable[[Path], None] = lambda workspace: None,
) -> Tally:
    """Kills a process at random moments, starts it again until it ends, and compares with an undisturbed run.

    Args:
        command: Starts the process; it prints `READY` when its work begins, and gets the workspace as last argument.
        workspace: Folder for the workspaces: one undisturbed, the others killed. Deleted and made anew.
        fingerprint: What must be the same in the end: a mapping of names to values, computed from a workspace.
        kills: How many at least, of processes that were at work.
        seed: Of the moments.
        each: Kills of one workspace at the most; then its process may end.
        prepare: Called with each new workspace.

    Returns:
        The number of kills and starts, and a fault for each workspace that differs or process that failed.
    """
    moments, tally, faults = random.Random(seed), Tally(), []
    undisturbed = _fresh(workspace / "undisturbed", prepare)
    seconds, code = _run(command, undisturbed, None)
    tally.starts += 1
    if code:
        return Tally(0, 1, (f"undisturbed it ended with {code}, see {undisturbed.with_suffix('.log')}",))
    expected, number = fingerprint(undisturbed), 0
    while tally.kills < kills and len(faults) < 5 and number < 10 * kills:
        number += 1
        disturbed, code, here = _fresh(workspace / f"disturbed-{number}", prepare), -9, 0
        while code == -9:
            limit = moments.uniform(0, seconds) if here < each else None
            code = _run(command, disturbed, limit)[1]
            tally.starts += 1
            here += code == -9
        tally.kills += here
        found = fingerprint(disturbed)
        differing = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        if code or differing:
            names = ", ".join(differing[:5]) or "nothing"
            faults.append(f"{disturbed} (.log), {here} kills: ended with {code}, differing: {names}")
        else:
            shutil.rmtree(disturbed)
    if tally.kills < kills:
        faults.append(f"{tally.kills} kills instead of {kills}: the process ends too soon")
    return Tally(tally.kills, tally.starts, tuple(faults))


def _fresh(workspace: Path, prepare: Callable[[Path], None]) -> Path:
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    prepare(workspace)
    return workspace


def _run(command: Sequence[str], workspace: Path, limit: float | None) -> tuple[float, int]:
    """Runs a process, killed `limit` seconds after it is ready; returns its seconds from then and its exit code."""
    log = workspace.with_suffix(".log")
    with log.open("ab") as errors:
        process = subprocess.Popen([*command, str(workspace)], stdout=subprocess.PIPE, stderr=errors, text=True)
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


def files(workspace: Path) -> dict[str, str]:
    """Returns the checksums of all files below a folder: tables, pictures, and whatever should not be there."""
    paths = [path for path in workspace.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def prepare_photographs(workspace: Path, raw: Path) -> None:
    """Scans, resizes, checks and splits in a workspace, and appends 60 rows: what is killed."""
    import auxiliary as aux

    settings = aux.Settings(root=workspace, raw=raw, image_size=96, weights="random")
    print(READY, flush=True)
    overview = aux.scan_photographs(settings)
    for number in range(30):
        append_row(settings.results, {"run_id": number, "model_id": 'a, "b"\nc', "remark": "x" * 500}, COLUMNS)
    aux.resize_photographs(settings, overview)
    aux.check_pictures(settings)
    aux.load_splits(settings)
    for number in range(30, 60):
        append_row(settings.results, {"run_id": number, "model_id": 'a, "b"\nc', "remark": "x" * 500}, COLUMNS)


def kill_preparation(workspace: Path, raw: Path, **options: int) -> Tally:
    """Kills the preparation of photographs; `options` are those of `survive_kills`."""
    return survive_kills([sys.executable, __file__, "--victim", str(raw)], workspace, files, **options)


def train_networks(workspace: Path, raw: Path) -> None:
    """Trains a CNN, a head on stored activations and a fine-tuning of it: what is killed."""
    import auxiliary as aux

    settings = aux.Settings(root=workspace, raw=raw, image_size=64, weights="random", views=2)
    print(READY, flush=True)
    aux.resize_photographs(settings, aux.scan_photographs(settings))
    options = {"learning_rate": 1e-3, "epochs": 4}
    aux.train(settings, "cnn", aux.CNN((8, 8), (2, 2), (64,), (0.3,)), **options)
    head = aux.train(settings, "head", aux.Transfer("MobileNetV2", (64,), (0.2,)), **options)
    tuned = aux.Transfer("MobileNetV2", (64,), (0.2,), unfreeze_last=20)
    aux.train(settings, "tuned", tuned, **options, continues=head)


def trained(workspace: Path) -> dict[str, str]:
    """Returns what trainings must leave: weights, histories, predictions, rows, activations, and nothing half done."""
    import auxiliary as aux

    found = {name: value for name, value in files(workspace / "data").items() if not name.endswith("results.csv")}
    for path in (workspace / "models").iterdir():
        if path.suffix == ".lock":
            continue
        if path.name.startswith("."):
            found[f"left over: {path.name}"] = ""
            continue
        run = aux.Run(path.name, path)
        name = run.record["spec"]["model_id"]
        found[f"{name} weights"] = run.record["weights_sha256"]
        found |= {f"{name} {table}": aux.file_sha256(run.file(table)) for table in ("history.csv", "predictions.csv")}
        found[f"{name} files"] = str(sorted(file.name for file in path.iterdir()))
    return found | {"rows": str(sorted(read_table(workspace / "results.csv").model_id))}


def kill_training(workspace: Path, raw: Path, **options: int) -> Tally:
    """Kills trainings; `options` are those of `survive_kills`."""
    return survive_kills([sys.executable, __file__, "--trainee", str(raw)], workspace, trained, **options)


def append_together(path: Path, processes: int, each: int) -> None:
    """Appends rows to one new table from several processes at once."""
    context = multiprocessing.get_context("spawn")  # forks of a process that runs threads may hang
    workers = [context.Process(target=_append, args=(path, number, each)) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a process that appended rows ended with {worker.exitcode}")


def _append(path: Path, process: int, each: int) -> None:
    for number in range(each):
        append_row(path, {"run_id": f"{process}-{number}", "model_id": 'a,\n"b"', "remark": "x" * number}, COLUMNS)


def soak(workspace: Path, cases: int, kills: int, training_kills: int, seed: int) -> bool:
    """Does all of it in a folder and prints the counts; returns whether nothing was lost and nothing crashed."""
    import auxiliary as aux
    from tests.test_bad_input import try_many

    print(f"seed {seed}, in {workspace}", flush=True)
    tried = try_many(workspace / "input", cases, seed)
    print(f"cases: {tried.cases} folders with {tried.files} files ({tried.good} good, {tried.bad} bad)", flush=True)
    append_together(workspace / "results.csv", processes=8, each=100)
    rows = read_table(workspace / "results.csv").run_id
    lost = 800 - rows.nunique()
    print(f"rows: {len(rows)} appended by 8 processes, {lost} lost, {len(rows) - rows.nunique()} twice", flush=True)
    tally = kill_preparation(workspace / "kills", aux.SAMPLE, kills=kills, seed=seed)
    trainings = kill_training(workspace / "trainings", aux.SAMPLE, kills=training_kills, seed=seed)
    crashes = [*tried.faults, *tally.faults, *trainings.faults]
    for what, one in (("preparing", tally), ("training", trainings)):
        print(f"kills while {what}: {one.kills} in {one.starts} starts, ", end="")
        print(f"{len(one.faults)} ended otherwise than undisturbed", flush=True)
    print(*crashes, sep="\n", end="\n" if crashes else "")
    killed = tally.kills + trainings.kills
    print(f"cases {tried.cases}, kills {killed}, rows {len(rows)}, lost {lost}, crashes {len(crashes)}")
    return not crashes and not lost and len(rows) == 800


def main() -> None:
    """Runs the soak with the numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="folders of good and bad files to try (2000)")
    parser.add_argument("--kills", type=int, default=20, help="kills of processes that prepare photographs (20)")
    parser.add_argument("--training-kills", type=int, default=10, help="kills of processes that train (10)")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of files and moments (random)")
    parser.add_argument("--victim", nargs=2, type=Path, metavar=("RAW", "WORKSPACE"), help=argparse.SUPPRESS)
    parser.add_argument("--trainee", nargs=2, type=Path, metavar=("RAW", "WORKSPACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if arguments.victim:
        raw, workspace = arguments.victim
        return prepare_photographs(workspace, raw)
    if arguments.trainee:
        raw, workspace = arguments.trainee
        return train_networks(workspace, raw)
    workspace = Path(tempfile.mkdtemp(prefix="soak-"))
    if not soak(workspace, arguments.cases, arguments.kills, arguments.training_kills, arguments.seed):
        sys.exit(f"Something was lost or crashed; what was left is in {workspace}.")
    shutil.rmtree(workspace)


if __name__ == "__main__":
    main()
