"""Ensembles: the mean of several runs' probabilities as a run of its own.

An ensemble is one Keras model that averages its members. So its run is exported, verified, shown and compared like any
other, and classifies images.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import keras
import pandas as pd
import tensorflow as tf

from animals10.catalogue import CATALOGUE
from animals10.csv_append import append_row, check_table
from animals10.environment import configure_device, device_name, git_commit, software_versions
from animals10.evaluation import metrics, predict_table
from animals10.execution import files_sha256, finish_run, images_sha256, write_run_files
from animals10.experiments import check_id
from animals10.features import weights_sha256
from animals10.files import UserError, display_path, write_json
from animals10.images import preprocessing_contract
from animals10.input_pipeline import batches, damaged_images_named
from animals10.model_files import load_model
from animals10.models import network_config
from animals10.preprocessing import resize_mode
from animals10.results import RESULT_COLUMNS, ResultRow
from animals10.runs import Run, stored_runs
from animals10.settings import Settings
from animals10.splits import Splits, load_splits

KIND = "Ensemble"  # the type of model in run.json


def ensemble(settings: Settings, runs: Iterable[Run], id: str, mirrored: bool = False) -> Run:
    """Evaluates the mean probabilities of runs as a run of its own, unless it is stored, and appends its row.

    The row has 0 epochs and the learning rate 0, since nothing is trained; its training time is that of all members. It
    has a validation accuracy only if no member is the run of a fold, which has trained on validation images.

    Args:
        settings: The settings.
        runs: The members: runs of this workspace, or of the folds of its images, see `cross_validate`. One is enough if
            `mirrored`.
        id: The ensemble's id.
        mirrored: Whether to take the mean over each image and its mirror image as well (test-time augmentation).

    Returns:
        The stored run. One without a folder if a member is not trained, or if `ANIMALS10_PUBLISH` is set and no run is
        stored.

    Raises:
        UserError: Members differ in classes, image size or test images, are too few or given twice, or the id is taken.
    """
    members, splits = list(runs), load_splits(settings)
    if missing := [run for run in members if run.path is None]:
        return Run(id, why=f"its member {missing[0].model_id} is not trained: {missing[0].why}")
    _check_id(settings, id)
    _check_members(settings, splits, members, mirrored)
    digest = _digest(settings, splits, members, id, mirrored)
    stored = [run for run in stored_runs(settings.root) if run.path and run.path.name.endswith(f"-{digest}")]
    if stored and not settings.force:
        append_row(settings.results, stored[-1].row, RESULT_COLUMNS)  # a kill may have come before the row
        return stored[-1]
    if settings.publish:
        return Run(id, why="no run of it is stored.")
    check_table(settings.results, RESULT_COLUMNS)
    configure_device(settings.deterministic)
    run = _evaluate(settings, splits, members, id, digest, mirrored)
    append_row(settings.results, run.row, RESULT_COLUMNS)
    return run


def average(models: Sequence[keras.Model], mirrored: bool = False) -> keras.Model:
    """Returns a network that averages the probabilities of networks, over the mirror image as well if asked to.

    Networks that pool the same features, heads on one frozen backbone, share the layers that compute them.

    Args:
        models: Networks from pixels, (n, size, size, 3), to probabilities, (n, classes). They become parts of the new
            network and are renamed.
        mirrored: Whether each is also given the mirror image.
    """
    pixels = keras.Input(models[0].input_shape[1:], name="pixels")
    views = [pixels, keras.ops.flip(pixels, axis=2)] if mirrored else [pixels]
    starts: dict[str, list[keras.Model]] = {}
    for model in models:
        starts.setdefault(_pooled_features(model) or f"whole {len(starts)}", []).append(model)
    outputs: list[keras.KerasTensor] = []
    for group, together in enumerate(starts.values(), start=1):
        inputs, parts = views, together
        if len(together) > 1:
            pooled = [model.get_layer("pooled").output for model in together]
            backbone = keras.Model(together[0].input, pooled[0], name=f"backbone_{group}")
            inputs = [backbone(view) for view in views]
            parts = [keras.Model(start, model.output) for start, model in zip(pooled, together, strict=True)]
        for part in parts:
            part.name = f"member_{len(outputs) // len(views) + 1}"
            outputs += [part(value) for value in inputs]
    return keras.Model(pixels, keras.layers.Average(dtype="float32", name="probabilities")(outputs), name="ensemble")


def _pooled_features(model: keras.Model) -> str:
    """Returns a checksum of the layers that compute a network's pooled features; empty if no layer is called so."""
    if not any(layer.name == "pooled" for layer in model.layers):
        return ""
    start = keras.Model(model.input, model.get_layer("pooled").output)
    config = json.dumps(network_config(start, trainable=False), sort_keys=True)
    return hashlib.sha256((config + weights_sha256(start.layers)).encode()).hexdigest()


# ── Members ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_id(settings: Settings, id: str) -> None:
    check_id(id)
    is_experiment = any(one.id == id for one in CATALOGUE)
    if is_experiment or any(run.model_id == id and not is_ensemble(run) for run in stored_runs(settings.root)):
        raise UserError(f"{id} is the id of an experiment: choose another one for the ensemble.")


def is_ensemble(run: Run) -> bool:
    """Tells whether a stored run is an ensemble."""
    return run.record.get("spec", {}).get("model", {}).get("type") == KIND


def _check_members(settings: Settings, splits: Splits, members: Sequence[Run], mirrored: bool) -> None:
    if len(members) < 2 - mirrored:
        raise UserError(f"An ensemble of {len(members)} runs: there must be two or more, or one with mirrored=True.")
    names = [run.path.name for run in members if run.path]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{repeated[0]} is given twice: name each run once.")
    for run in members:
        record, row = run.record, run.row
        if row["image_size"] != settings.image_size:
            found = f"takes images of {row['image_size']} pixels", f"those of this workspace have {settings.image_size}"
        elif row["resize"] != (resize := resize_mode(settings)):
            found = f"was trained with RESIZE={row['resize']}", f"the images of this workspace have {resize}"
        elif tuple(record["class_names"]) != splits.class_names:
            found = f"knows {_in_words(record['class_names'])}", f"the classes are {_in_words(splits.class_names)}"
        elif splits.sha256 not in (row["data_sha256"], record["spec"]["settings"].get("fold_of")):
            found = "was trained or evaluated on other images or another split", "members must share the test images"
        elif not run.file("model.keras").exists():
            found = "lacks its model.keras", "restore it, or train that run again"
        else:
            continue
        raise UserError(f"{display_path(run.file('run.json').parent)} cannot be a member: it {found[0]}; {found[1]}.")


def _in_words(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"


def _digest(settings: Settings, splits: Splits, members: Sequence[Run], id: str, mirrored: bool) -> str:
    """Returns 12 hexadecimal digits that everything decides which can change the result of an ensemble."""
    weights = sorted(run.record["weights_sha256"] for run in members)
    contract = preprocessing_contract(resize_mode(settings))
    del contract["description"]
    found = {"type": KIND, "id": id, "members": weights, "mirrored": mirrored, "data_sha256": splits.sha256}
    text = json.dumps(found | {"preprocessing": contract, "image_size": settings.image_size}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ── The run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _evaluate(settings: Settings, splits: Splits, members: Sequence[Run], id: str, digest: str, mirrored: bool) -> Run:
    start, now = time.perf_counter(), datetime.now(UTC)
    model = average([load_model(run.file("model.keras"))[0] for run in members], mirrored)
    model.resize = resize_mode(settings)
    with damaged_images_named(settings, splits.val, splits.test):
        predictions = predict_table(model, batches(settings, splits.test), splits.test, splits.class_names)
        acc_val = validation = None
        if not any(_knows_validation_images(run, splits) for run in members):
            validation = predict_table(model, batches(settings, splits.val), splits.val, splits.class_names)
            acc_val = metrics(validation)["accuracy"]
    folder, run_id = settings.models / f".{id}-{digest}", f"{now:%Y%m%dT%H%M%S%f}-{digest}"
    history = pd.DataFrame(columns=["epoch", "accuracy", "loss", "val_accuracy", "val_loss"])
    write_run_files(folder, model, splits.class_names, history, predictions, validation)
    outcome = {"time": f"{now:%Y-%m-%d %H:%M:%S}", "run_id": run_id, "acc_val": acc_val, "params": model.count_params()}
    row = _row(settings, splits, members, outcome | {"model_id": id, "n_test": len(splits.test)} | metrics(predictions))
    names = [run.path.name for run in members if run.path]
    record = {
        "spec": {
            "id": id,
            "model": {"type": KIND, "members": names, "mirrored": mirrored},
            "training": {},
            "init_from": None,
            "settings": {"data_sha256": splits.sha256, "image_size": settings.image_size, "seed": settings.seed},
        },
        "digest": digest,
        "row": asdict(row),
        "class_names": splits.class_names,
        "weights_sha256": weights_sha256(model.layers),
        "init_weights_sha256": None,
        "seconds": {"predict": round(time.perf_counter() - start, 2)},
        "images_sha256": images_sha256(splits),
        "environment": software_versions() | {"deterministic": settings.deterministic},
        "source": None,
        "files_sha256": files_sha256(folder),
    }
    write_json(record, folder / "run.json")
    keras.backend.clear_session()
    return finish_run(folder, id, run_id)


def _knows_validation_images(run: Run, splits: Splits) -> bool:
    """Tells whether a member was trained on validation images: the run of a fold, or an ensemble of such runs."""
    return run.row["data_sha256"] != splits.sha256 or (is_ensemble(run) and run.row["acc_val"] is None)


def _row(settings: Settings, splits: Splits, members: Sequence[Run], outcome: dict[str, Any]) -> ResultRow:
    """Returns the row of an ensemble; values in which its members differ are `mixed`."""
    rows = [run.row for run in members]
    caps = [row["epochs_cap"] for row in rows if row["epochs_cap"] is not None]

    def common(name: str) -> str:
        return rows[0][name] if all(row[name] == rows[0][name] for row in rows) else "mixed"

    return ResultRow(
        learning_rate=0.0,
        epochs=0,
        batchsize=32,
        acc_train=None,
        dataset=splits.dataset,
        image_size=settings.image_size,
        resize=resize_mode(settings),
        repetition=1,
        n_train=max(row["n_train"] for row in rows),
        n_val=len(splits.val),
        class_balance=common("class_balance"),
        weights="random" if any(row["weights"] == "random" for row in rows) else common("weights"),
        trainable_params=0,
        epochs_run=0,
        best_epoch=None,
        train_seconds=round(sum(row["train_seconds"] for row in rows), 1),
        peak_memory_mb=max(row["peak_memory_mb"] for row in rows),
        seed=settings.seed,
        device=device_name(),
        tensorflow=tf.__version__,
        keras=keras.__version__,
        commit=git_commit(),
        data_sha256=splits.sha256,
        split=splits.kind,
        data_share=splits.share,
        corrections=splits.corrections,
        epochs_cap=min(caps, default=None),  # of one of its members: then it is a trial, too
        **outcome,
    )
