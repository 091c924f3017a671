"""What is trained first on a cluster, and the simulation of the whole study."""

import dataclasses
import os
import shutil
import subprocess

import pytest

import auxiliary as aux
from animals10.cluster_simulation import StudyWorkspace, makespan_of_order
from animals10.files import REPOSITORY
from animals10.planning import Task, estimated_work, work_ahead

TRAINING = aux.Training(1e-3, 10)


def test_the_longest_chain_of_work_comes_first(tmp_path):
    workspace = StudyWorkspace(aux.Settings(root=tmp_path, image_size=64))

    @dataclasses.dataclass(frozen=True)
    class Broken(aux.CNN):
        def build(self, n_classes, image_size, weights=None):
            raise RuntimeError

    small, large = (aux.Experiment(f"cnn{n}", aux.CNN((n,), (2,), (), ()), TRAINING) for n in (4, 8))
    short = dataclasses.replace(small, id="short", training=aux.Training(1e-3, 5))
    child = dataclasses.replace(small, id="child", training=aux.Training(1e-3, 8), init_from=short)
    unknown = aux.Experiment("unknown", Broken((4,), (2,)), TRAINING)
    tasks = [Task(one, one.label, True, True) for one in (small, short, large, child, unknown)]
    ahead = work_ahead(workspace, tasks)
    order = [name.split()[0] for name in sorted(ahead, key=lambda name: -ahead[name])]
    assert order == ["unknown", "cnn8", "short", "cnn4", "child"]
    head = aux.Experiment("head", aux.Transfer("MobileNetV2"), TRAINING)
    tuned = dataclasses.replace(head, model=aux.Transfer("MobileNetV2", unfreeze_last=20))
    assert estimated_work(workspace, small) == 18_170 * 10 * 3 * (62 * 62 * 4 * 27 + 31 * 31 * 4 * 10)
    assert estimated_work(workspace, head) < estimated_work(workspace, tuned)


def test_a_simulated_order_gives_a_free_worker_the_most_urgent_task():
    parent = aux.Experiment("parent", aux.CNN((4,), (2,)), TRAINING)
    child = dataclasses.replace(parent, id="child", init_from=parent)
    other = dataclasses.replace(parent, id="other")
    tasks = [Task(one, one.label, True, True) for one in (parent, child, other)]
    durations = dict(zip((task.digest for task in tasks), (2, 3, 4), strict=True))
    urgent = dict(zip(durations, (5, 3, 4), strict=True))
    assert [makespan_of_order(tasks, durations, urgent, n) for n in (1, 2, 3)] == [9, 5, 5]
    assert makespan_of_order(tasks, durations, dict(zip(durations, (1, 3, 4), strict=True)), 1) == 9


@pytest.mark.skipif(os.name == "nt" or not shutil.which("bash"), reason="no POSIX shell")
def test_the_slurm_script_is_in_the_language_of_bash():
    subprocess.run(["bash", "-n", "docs/slurm.sbatch"], cwd=REPOSITORY, check=True)
    text = (REPOSITORY / "docs" / "slurm.sbatch").read_text(encoding="utf-8")
    assert "make full CLUSTER=auto" in text and "docs/slurm.sbatch" in text
