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

import keras
import psutil
import pytest

import auxiliary as aux
from animals10 import cluster_files
from animals10.cluster_connection import OBJECT_STORE, connected
from animals10.cluster_progress import RunTable
from animals10.execution import source_of
from animals10.images import map_on_all_cores
from animals10.machine import describe_machine, report_machines
from animals10.shards import Shards

HERE = Path(__file__)
needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed: `make cluster`")
VIEWS = 40  # of 35 training images: enough rows of cached features for several processes
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


def on_features(epochs):
    """Trains on cached features, which a frozen network of the user's own computes."""

    @dataclasses.dataclass(frozen=True)
    class Head:
        def build(self, n_classes, image_size, weights=None):
            inputs = keras.Input((image_size, image_size, 3))
            x = keras.layers.Rescaling(1 / 255)(inputs)
            for _ in range(4):  # so that it takes a while
                x = keras.layers.Conv2D(64, 5, padding="same", activation="relu", trainable=False)(x)
            x = keras.layers.GlobalAveragePooling2D(name="split")(x)
            return keras.Model(inputs, keras.layers.Dense(n_classes, activation="softmax")(x))

        def split_layer(self, model):
            return "split"

    return [aux.Experiment("head", Head(), aux.Training(1e-2, epochs, patience=epochs))]


def train_one_after_other(root, raw, make, n, epochs):
    """Trains the first `n` experiments in this process."""
    settings = aux.Settings(root=root, raw=raw, image_size=32, weights="random", cpus_per_run=1, views=VIEWS)
    aux.train_all(settings, globals()[make](int(epochs))[: int(n)])


def in_one_process(prepared, n, epochs, make="experiments"):
    """Trains experiments in another process, with one thread and without a cluster; returns their settings."""
    settings = prepared.model_copy(update={"root": prepared.root.parent / "one process"})
    settings.data.mkdir(parents=True)
    for path in set(prepared.data.glob("*")) - {prepared.data / "features"}:
        (settings.data / path.name).symlink_to(path)
    program = "import sys; sys.path.insert(0, sys.argv[1]); from test_cluster import train_one_after_other as train; "
    program += "train(*sys.argv[2:])"
    arguments = [str(HERE.parent), str(settings.root), str(settings.raw), make, str(n), str(epochs)]
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


def train_with_help(root, raw):
    """Trains in this process on features that another process computes as well: this one waits until it does."""
    settings = aux.Settings(root=root, raw=raw, image_size=32, weights="random", cpus_per_run=1, views=VIEWS)
    write = Shards.write

    def write_later(self, *given):
        end = time.monotonic() + 120
        while self.title == "Head-train" and len(self.missing()) > 3 and time.monotonic() < end:
            time.sleep(0.1)
        yield from write(self, *given)

    Shards.write = write_later
    with connected(settings.model_copy(update={"cluster": "local"}), num_cpus=2):
        aux.train_all(settings, on_features(2))


def cached_files(settings):
    files = [path for path in settings.data.glob("features/*/*") if path.is_file()]
    return {path.relative_to(settings.data): path.read_bytes() for path in files}


@needs_ray
@pytest.mark.slow
def test_another_process_computes_the_features_that_one_would_compute(prepared):
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_cluster as test; "
    program += "test.train_with_help(*sys.argv[2:])"
    arguments = [str(HERE.parent), str(prepared.root), str(prepared.raw)]
    environment = os.environ | {"ANIMALS10_CPUS_PER_RUN": "1", "CUDA_VISIBLE_DEVICES": "-1"}
    options = {"env": environment, "capture_output": True, "text": True, "check": True}
    done = subprocess.run([sys.executable, "-c", program, *arguments], **options)
    assert "Head-train: other processes computed" in done.stderr
    alone = in_one_process(prepared, 1, 2, "on_features")
    assert results(prepared) == results(alone) and cached_files(prepared) == cached_files(alone)


@needs_ray
@pytest.mark.slow
def test_a_killed_run_resumes_with_the_shards_that_are_there(prepared, seen, capsys):
    """Before it, a process that helps is killed."""
    killed, resumed = [], []

    def kill(row):
        if "Head-train: cached features" not in row.doing:
            return
        pid, before = int(row.worker.rpartition("/")[2]), [path.name for path in prepared.data.glob("features/*/*")]
        helpers = [process.pid for process in psutil.process_iter() if process.name().startswith("ray::Helper")]
        if not killed and helpers:
            killed.extend(helpers[:1])
            os.kill(killed[0], signal.SIGKILL)
        elif len(killed) == 1 and "000.json" in before:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        elif len(killed) == 2 and pid not in killed:
            resumed.append(int(row.doing.partition(" features ")[2].rstrip("%")))

    seen["hooks"].append(kill)
    settings = prepared.model_copy(update={"cluster": "local", "cpus_per_run": 1, "views": VIEWS})
    aux.train_all(settings, on_features(epochs=2))
    assert len(killed) == 2 and capsys.readouterr().err.count("takes it over") == 1 and resumed[0] >= 20
    alone = in_one_process(prepared, 1, 2, "on_features")
    assert results(settings) == results(alone) and cached_files(settings) == cached_files(alone)


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


# ── Images ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_ray
@pytest.mark.slow
def test_workers_prepare_the_images_as_one_process_does(settings, monkeypatch):
    monkeypatch.setattr(cluster_files, "FEWEST_FILES", 10)
    monkeypatch.setattr(cluster_files, "CHUNK", 7)
    here = settings.model_copy(update={"root": settings.root.parent / "here"})
    there = settings.model_copy(update={"cluster": "local"})
    (settings.raw / "red" / "torn.jpeg").write_bytes((settings.raw / "red" / "red 03.jpeg").read_bytes()[:700])
    (settings.raw / "red" / "none.jpeg").write_bytes(b"no image")
    calls = []
    monkeypatch.setattr(
        cluster_files, "map_on_all_cores", lambda *given: calls.append(given) or map_on_all_cores(*given)
    )
    found = []

    def prepare(one):
        aux.resize_images(one, aux.scan_images(one))
        aux.check_images(one)
        paths = [path for path in one.data.rglob("*") if path.is_file()]
        found.append({str(path.relative_to(one.data)): path.read_bytes() for path in paths})

    prepare(here)
    with connected(there, num_cpus=2):
        prepare(there)
        assert len(calls) == 3  # scan, resize and check in this process: the first time alone
        assert found[0] == found[1] and len([name for name in found[0] if name.startswith("processed/")]) == 50 + 1
        # What has not changed is not made again; an error of a worker is the same one line.
        path = there.data / "processed" / "red" / "red 00.jpg"
        before = path.stat().st_mtime_ns
        aux.resize_images(there, aux.scan_images(there))
        assert path.stat().st_mtime_ns == before
        (there.data / "checks.csv").unlink()
        path.write_bytes(b"")
        with pytest.raises(aux.UserError, match=r"red 00.jpg: .* Run 01-preprocessing.ipynb again"):
            aux.check_images(there)
    assert not list(settings.root.glob(".cluster-*"))


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
