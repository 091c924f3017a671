"""Runs on a Ray cluster are those of one process after the other, whatever dies meanwhile."""

import csv
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import auxiliary as aux
from animals10.cluster_connection import OBJECT_STORE
from animals10.cluster_progress import RunTable
from animals10.execution import source_of
from animals10.machine import describe_machine, report_machines

HERE = Path(__file__)
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: `make cluster`")
SMALL = aux.CNN((8, 8), (2, 2), (16,), (0.1,))


def experiments(epochs=3):
    """A parent with two children, one of them with a network of the user's own, and three others."""

    @dataclasses.dataclass(frozen=True)
    class Mine(aux.CNN):  # as a cell of a notebook would define it: the module of this test is not on the workers
        """Trains the last layer alone."""

        def set_trainable(self, model):
            for layer in model.layers[:-1]:
                layer.trainable = False

    training = aux.Training(1e-2, epochs, patience=epochs, batch_size=2)
    parent = aux.Experiment("parent", Mine((8, 8), (2, 2), (16,), (0.1,)), training)
    tuned = aux.Experiment("tuned", Mine((8, 8), (2, 2), (16,), (0.1,)), training, parent)
    lower = dataclasses.replace(tuned, id="lower", training=dataclasses.replace(training, learning_rate=1e-3))
    others = [aux.Experiment(f"small{n}", aux.CNN((4 * n,), (2,), (8,), (0.1,)), training) for n in (1, 2, 3)]
    return [parent, tuned, lower, *others]


def train_one_after_other(root, raw, n, epochs):
    """Trains the first `n` experiments in this process."""
    settings = aux.Settings(root=root, raw=raw, image_size=32, weights="random", cpus_per_run=1)
    aux.train_all(settings, experiments(epochs)[:n])


def in_one_process(prepared, n, epochs):
    """Trains experiments in another process, with one thread and without a cluster; returns their settings."""
    settings = prepared.model_copy(update={"root": prepared.root.parent / "one process"})
    settings.data.mkdir(parents=True)
    for path in prepared.data.glob("*"):
        (settings.data / path.name).symlink_to(path)
    program = "import sys; sys.path.insert(0, sys.argv[1]); from test_cluster import train_one_after_other as train; "
    program += "train(*sys.argv[2:4], *map(int, sys.argv[4:]))"
    arguments = [str(HERE.parent), str(settings.root), str(settings.raw), str(n), str(epochs)]
    environment = os.environ | {"ANIMALS10_CPUS_PER_RUN": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run([sys.executable, "-c", program, *arguments], env=environment, check=True, capture_output=True)
    return settings


def results(settings):
    """Returns for each run what must be equal: its metrics, and the checksums of what it learned and predicted."""
    with settings.results.open(newline="", encoding="utf-8") as file:
        ids = [row["model_id"] for row in csv.DictReader(file)]
    assert len(ids) == len(set(ids)) == len(aux.stored_runs(settings.root))
    names = ("acc_train", "acc_val", "accuracy", "precision", "recall", "f1_score", "best_epoch", "epochs_run")
    found = {}
    for run in aux.stored_runs(settings.root):
        record = run.record
        sums = {name: record["files_sha256"][name] for name in ("history.csv", "predictions.csv")}
        found[run.model_id] = {name: run.row[name] for name in names} | sums | {"w": record["weights_sha256"]}
    return found


@pytest.fixture
def seen(monkeypatch):
    """What the table of progress was told, by experiment: the latest values; and a hook that is called with them."""
    update, found, hooks = RunTable.update, {}, []

    def observe(self, digest, **values):
        update(self, digest, **values)
        row = self.rows[digest]
        found.setdefault(row.name.partition(" ")[0], []).append(dataclasses.replace(row))
        for hook in hooks:
            hook(row)

    monkeypatch.setattr(RunTable, "update", observe)
    found["hooks"] = hooks
    yield found
    workers = {
        int(row.worker.rpartition("/")[2]) for rows in found.values() for row in rows if getattr(row, "worker", "")
    }
    end = time.monotonic() + 30
    while [pid for pid in workers if psutil.pid_exists(pid)] and time.monotonic() < end:
        time.sleep(0.2)
    assert not [pid for pid in workers if psutil.pid_exists(pid)]  # no process is left over


@needs_ray
@pytest.mark.slow
def test_a_cluster_trains_what_one_process_would_train(prepared, seen, capsys):
    @dataclasses.dataclass(frozen=True)
    class Broken(aux.CNN):
        def build(self, n_classes, image_size, weights=None):
            if "ray" in sys.modules and os.environ.get("TF_NUM_INTRAOP_THREADS"):  # on a worker
                raise RuntimeError("no such layer")
            return super().build(n_classes, image_size, weights)

    broken = aux.Experiment("broken", Broken((8,), (2,)), aux.Training(1e-2, 1))
    child = dataclasses.replace(broken, id="child", init_from=broken)
    settings = prepared.model_copy(update={"cluster": "local", "cpus_per_run": 1})
    parent, tuned = experiments()[:2]
    with pytest.raises(aux.UserError, match=r"^2 experiments failed.*broken .*no such layer.*child .*not trained"):
        aux.train_all(settings, [child, tuned, broken, parent])
    assert results(settings) == results(in_one_process(prepared, n=2, epochs=3))
    run = aux.stored_runs(settings.root)["tuned"]
    assert run.record["source"] == source_of(tuned) and "Trains the last layer" in run.record["source"]
    assert run.record["init_weights_sha256"] == aux.stored_runs(settings.root)["parent"].record["weights_sha256"]
    assert seen["tuned"][-1].state == "stored" and seen["tuned"][-1].accuracy == run.history.val_accuracy.iloc[-1]
    out, errors = capsys.readouterr()
    assert "tuned (learning rate 0.01, 3 epochs)  training  on " in out and "epoch 1/3" in out
    assert "no such layer" in errors and "(raylet" not in out + errors
    assert not list(settings.root.glob(".cluster-*"))


@needs_ray
@pytest.mark.slow
def test_a_worker_and_a_machine_may_die(prepared, seen, monkeypatch, capfd):
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": OBJECT_STORE})
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    other = nodes.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
    raylet = other.all_processes["raylet"][0].process.pid
    killed, removed = [], []

    def kill(row):
        if row.state != "training" or (row.epoch or 0) < 3:
            return
        process = psutil.Process(int(row.worker.rpartition("/")[2]))
        if not killed:
            os.kill(process.pid, signal.SIGKILL)
            killed.append((row.name, row.epoch, process.pid))
        elif not removed and row.name != killed[0][0] and raylet in [parent.pid for parent in process.parents()]:
            removed.append((row.name, row.epoch, process.pid))
            nodes.remove_node(other, allow_graceful=False)

    seen["hooks"].append(kill)
    settings = prepared.model_copy(update={"cluster": "auto", "cpus_per_run": 1})
    try:
        runs = aux.train_all(settings, experiments(epochs=40))
    finally:
        nodes.shutdown()
    assert killed and removed and len(runs.trained) == 6
    out, errors = capfd.readouterr()
    assert errors.count("takes it over") >= 2 and "raylet" not in out + errors
    for name, epoch, pid in killed + removed:
        later = [row for row in seen[name.partition(" ")[0]] if not row.worker.endswith(f"/{pid}") and row.epoch]
        assert min(row.epoch for row in later) > 1 and epoch > 1, "it does not resume"
    assert results(settings) == results(in_one_process(prepared, n=6, epochs=40))


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_all_workers_and_the_runs_resume(prepared):
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_cluster as test, auxiliary as aux; "
    program += "settings = aux.Settings(root=sys.argv[2], raw=sys.argv[3], image_size=32, weights='random', "
    program += "cluster='local', cpus_per_run=1); aux.train_all(settings, test.experiments(40)[:1])"
    command = [sys.executable, "-u", "-c", program, str(HERE.parent), str(prepared.root), str(prepared.raw)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}

    def handle_ctrl_c():  # which a shell that starts pytest in the background switches off
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(command, **options, preexec_fn=handle_ctrl_c) as process:
        line = next(line for line in process.stdout if "training" in line)
        worker = int(line.partition(" on ")[2].split()[0].rpartition("/")[2])
        while not list(prepared.models.glob(".parent-*/training*.npz")):
            time.sleep(0.1)
        family = [worker, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        os.killpg(process.pid, signal.SIGINT)
        out = process.communicate(timeout=120)[0]
    assert process.returncode and "KeyboardInterrupt" in out
    end = time.monotonic() + 30
    while [pid for pid in family if psutil.pid_exists(pid)] and time.monotonic() < end:
        time.sleep(0.2)
    assert not [pid for pid in family if psutil.pid_exists(pid)]
    assert not prepared.results.exists() and list(prepared.models.glob(".parent-*/training*.npz"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    first = next(line for line in again.stdout.splitlines() if "training" in line)
    assert int(first.partition("epoch ")[2].partition("/")[0]) > 1
    assert results(prepared) == results(in_one_process(prepared, n=1, epochs=40))


# ── Machines ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_machine_that_does_not_see_the_workspace_is_named_before_anything_is_trained(tmp_path, capsys):
    (tmp_path / "token").touch()
    here = describe_machine(tmp_path / "token")
    report_machines([here, here], tmp_path)
    assert capsys.readouterr().err == ""
    older = here | {"name": "older", "instructions": ("x86_64", "AVX2")}
    report_machines([here, older], tmp_path)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "The machines differ" in line and "older: AVX2" in line
    blind = describe_machine(tmp_path / "none", seconds=0) | {"name": "blind"}
    with pytest.raises(aux.UserError, match=rf"^The machine blind does not see the workspace {tmp_path}: "):
        report_machines([here, blind], tmp_path)
    with pytest.raises(aux.UserError, match="bare lacks TensorFlow"):
        report_machines([here | {"name": "bare", "versions": {"tensorflow": "none"}}], tmp_path)


def test_without_ray_a_line_says_how_to_install_it(prepared, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(aux.UserError, match=r"^ANIMALS10_CLUSTER is 'local': Ray is not installed; `make cluster` i"):
        prepared.model_copy(update={"cluster": "local"})


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_line(prepared, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    settings = prepared.model_copy(update={"cluster": "auto"})
    with pytest.raises(aux.UserError, match=r"^There is no Ray cluster .* RAY_ADDRESS, or set ANIMALS10_CLUSTER=local"):
        aux.train(settings, aux.Experiment("small", SMALL, aux.Training(1e-2, 1)))
