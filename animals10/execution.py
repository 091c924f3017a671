"""One run, step by step: build the model, prepare the data, fit, evaluate, save."""

import gc
import hashlib
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from animals10.backbones import explained
from animals10.callbacks import PeakMemory, ProgressLine, ResumableEarlyStopping, dropout_in_inference_mode
from animals10.compilation import compile_model
from animals10.data_preparation import PreparedData, SharedImages, evaluation_data, prepare_data
from animals10.environment import configure_device, device_name, git_commit, software_versions
from animals10.evaluation import metrics, predict_table
from animals10.experiments import Experiment, built_config, without_freezing
from animals10.features import weights_sha256
from animals10.files import (
    UserError,
    display_path,
    file_sha256,
    reading,
    remove_stale_temporary_files,
    user_facing_os_errors,
    write_json,
    write_table,
)
from animals10.frozen_backbones import build_on_frozen_backbone
from animals10.images import STRETCH
from animals10.input_pipeline import damaged_images_named
from animals10.model_checks import check_loads_in_fresh_process, check_model
from animals10.model_files import load_model, save_model
from animals10.models import Architecture, Transfer, count_parameters, network_config
from animals10.precision import SUFFIXES, in_precision
from animals10.results import ResultRow
from animals10.runs import RUN_FILES, VALIDATION, Run
from animals10.settings import Settings
from animals10.splits import CLASS_BALANCES, Splits, resample


@dataclass(frozen=True)
class Job:
    """An experiment with all that is resolved for its run.

    Attributes:
        settings: The settings.
        splits: The data.
        experiment: The experiment.
        context: Data and resolved settings that the result depends on.
        digest: Names the run.
        weights: What the architecture's `build` takes as initial weights; None for random ones.
        start: The run or the `.keras` file that it is initialised from, if any.
        prefix: Begins the line of progress, such as `[3/49] `.
        shared: The images whose features other workspaces share, if it is a run of such a workspace, a fold say.
        callback: Takes part in the training, if there is one.
        source: The source of the architecture's class, where another process tells it.
    """

    settings: Settings
    splits: Splits
    experiment: Experiment
    context: Mapping[str, Any]
    digest: str
    weights: str | None
    start: Run | Path | None
    prefix: str = ""
    shared: SharedImages | None = None
    callback: keras.callbacks.Callback | None = None
    source: str | None = None

    @property
    def resize(self) -> str:
        """How its images are made square, see `images.resize_square`."""
        return self.context["preprocessing"].get("resize", STRETCH)

    @property
    def unfinished_folder(self) -> Path:
        """The folder of the unfinished run: it holds what a later start resumes from."""
        return self.settings.models / f".{self.experiment.id}-{self.digest}"

    @property
    def start_weights(self) -> str | None:
        """The checksum of the weights that the run is initialised from."""
        if isinstance(self.start, Run):
            return self.start.record["weights_sha256"]
        return file_sha256(self.start) if self.start else None

    @property
    def checkpoint(self) -> Path:
        """The file that training resumes from; a parent that was trained anew has another."""
        return self.unfinished_folder / (
            f"training-{self.start_weights[:12]}.npz" if self.start_weights else "training.npz"
        )


@contextmanager
def garbage_collected() -> Iterator[None]:
    """Frees at the end what was made inside, without looking through the 400,000 objects that were there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def execute(job: Job) -> Run:
    """Trains, evaluates and stores one run.

    Raises:
        UserError: Weights cannot be downloaded, a processed image is damaged, or a file cannot be read or written.
    """
    settings, splits, training = job.settings, job.splits, job.experiment.training
    clock = {"start": time.perf_counter()}
    remove_stale_temporary_files(job.unfinished_folder)
    if job.experiment.is_custom:
        check_custom(job.experiment.model, len(splits.class_names), settings.image_size)
    model, precision = build_model(job), job.context["precision"]
    trained = model if precision == "float32" else in_precision(model, precision)
    clock["build"] = time.perf_counter()
    table = resample(splits.train, training.class_balance, settings.seed)
    if training.class_balance != "none":
        write_table(table, settings.data / CLASS_BALANCES[training.class_balance])  # for people to open
    with damaged_images_named(settings, splits.train, splits.val, splits.test):
        given = settings, splits, job.experiment, trained, table, job.context
        data = prepare_data(*given, shared=job.shared, float32_model=model if trained is not model else None)
        # Before the training, which changes weights that are part of the key of a feature cache.
        evaluated = {part: _evaluated(job, model, trained, data, part) for part in ("test", "val")}
        clock["features"] = time.perf_counter()
        outcome, history = fit(job, data, table.label)
        if trained is not model:
            model.set_weights(trained.get_weights())
        clock["fit"] = time.perf_counter()
        predictions, validation = (
            predict_table(*evaluated[part], getattr(splits, part), splits.class_names) for part in ("test", "val")
        )
    clock["predict"] = time.perf_counter()
    device = device_name() + SUFFIXES.get(precision, "")
    counts = {"n_train": len(table), "n_val": len(splits.val), "n_test": len(splits.test), "device": device}
    counts |= {"params": model.count_params(), "trainable_params": count_parameters(model.trainable_weights)}
    return save(job, model, history, predictions, validation, outcome | counts | metrics(predictions), clock)


def _evaluated(
    job: Job, model: keras.Model, trained: keras.Model, data: PreparedData, name: str
) -> tuple[keras.Model, tf.data.Dataset]:
    """Returns what predicts a part of the split in the precision of the stored model, and the batches to give it."""
    if trained is model:
        return data.model, data.test if name == "test" else data.validation
    context, part = evaluation_context(job.context), getattr(job.splits, name)
    return evaluation_data(job.settings, job.experiment, model, context, part, name, shared=job.shared)


def evaluation_context(context: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the resolved settings in which the stored model is evaluated: in float32."""
    return {name: value for name, value in context.items() if name != "frozen_precision"} | {"precision": "float32"}


@lru_cache(maxsize=256)
def check_custom(architecture: Architecture, n_classes: int, image_size: int) -> None:
    """Checks a network of the user's own before it is trained: shapes, probabilities, and that it can be loaded.

    Raises:
        UserError: A check failed.
    """
    check_loads_in_fresh_process(check_model(architecture.build(n_classes, image_size), n_classes, image_size))


def build_model(job: Job) -> keras.Model:
    """Returns the model to train, with its initial weights, its layers frozen as the architecture says."""
    architecture, context, n_classes = job.experiment.model, job.context, len(job.splits.class_names)
    set_trainable = getattr(architecture, "set_trainable", None)
    expected = None
    if job.start:  # built before the seed is set; what `set_trainable` changes may differ from the parent
        plain = without_freezing(architecture)
        expected = built_config(plain, n_classes, context["image_size"], trainable=set_trainable is None)
    keras.backend.clear_session(free_memory=False)
    configure_device(job.settings.deterministic)
    keras.utils.set_random_seed(context["seed"])
    if job.start:
        path = job.start.file("model.keras") if isinstance(job.start, Run) else job.start
        model = load_model(path)[0]
        if network_config(model, trainable=set_trainable is None) != expected:
            raise UserError(
                f"{job.experiment.id} cannot be initialised from {display_path(path)}: that holds another network than "
                f"{architecture}. Give both the same architecture; only layers that its method `set_trainable` freezes "
                "or unfreezes may differ."
            )
    else:
        options = {"weights": job.weights} if hasattr(architecture, "backbone") else {}
        if job.weights and job.weights != "imagenet":
            path, advice = Path(job.weights), "restore it, or choose another folder (ANIMALS10_WEIGHTS)"
            with reading(path, "is not a file of weights", advice), h5py.File(path):
                pass
        build = (
            partial(build_on_frozen_backbone, architecture) if type(architecture) is Transfer else architecture.build
        )
        try:
            model = build(n_classes, context["image_size"], **options)
        except Exception as error:
            raise explained(error, getattr(architecture, "backbone", type(architecture).__name__)) from None
        if job.experiment.is_custom:
            model = check_model(model, n_classes, context["image_size"])
    if set_trainable:
        set_trainable(model)
    model.resize = job.resize
    return model


def fit(job: Job, data: PreparedData, labels: pd.Series) -> tuple[dict[str, Any], pd.DataFrame]:
    """Trains a model in place; returns the training's part of the row of `results.csv`, and the history."""
    training, first, model = job.experiment.training, job.experiment.initial_epoch, data.model
    epochs = job.context["maximum_epochs"]
    compile_model(model, training, data.steps * (epochs - first), data.steps if data.is_step_cheap else 1)
    tf.get_logger().addFilter(is_not_retracing_warning)
    stopping = ResumableEarlyStopping(job.checkpoint, training.patience, first)
    memory, start = PeakMemory(), min(stopping.next_epoch, epochs)
    callbacks = [stopping, memory, ProgressLine(job.prefix + job.experiment.id, range(start, epochs), data.steps)]
    callbacks += [job.callback] if job.callback else []
    if job.settings.tensorboard:
        logs = job.settings.root / "logs" / f"{job.experiment.id}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{job.digest}"
        callbacks.append(keras.callbacks.TensorBoard(logs, write_graph=False))
    batches, weights = data.training(start), class_weights(labels) if training.class_weights else None
    if weights and training.mixes:  # Keras would give a mixed image the weight of one of its classes
        vector = tf.constant([weights.get(label, 1.0) for label in range(model.output.shape[-1])])
        batches = batches.map(lambda values, shares: (values, shares, tf.linalg.matvec(shares, vector)))
        weights = None
    with dropout_in_inference_mode(data.frozen_dropouts):
        if start < epochs:
            model.fit(
                batches,
                validation_data=data.validation,
                epochs=epochs,
                initial_epoch=start,
                steps_per_epoch=data.steps,
                shuffle=False,
                class_weight=weights,
                callbacks=callbacks,
                verbose=0,
            )
        else:  # there is nothing to train, or a kill came after the last epoch
            stopping.restore(model)
    history = pd.DataFrame(stopping.history, columns=["epoch", "accuracy", "loss", "val_accuracy", "val_loss"])
    outcome: dict[str, Any] = {"epochs_run": len(history), "best_epoch": None, "acc_train": None, "acc_val": None}
    if len(history):
        if not np.isfinite(history.val_loss).any():
            job.checkpoint.unlink(missing_ok=True)
            raise UserError(
                f"{job.experiment.label} diverged: its validation loss is no number. Lower the learning rate."
            )
        best = history.loc[history.val_loss.idxmin()]
        outcome |= {"best_epoch": int(best.epoch), "acc_train": best.accuracy, "acc_val": best.val_accuracy}
    return outcome | {"train_seconds": round(stopping.seconds, 1), "peak_memory_mb": memory.megabytes}, history


def class_weights(labels: pd.Series) -> dict[int, float]:
    """Returns the weight of an image of each class in the loss: 1 on average, the same in total for all classes."""
    classes = np.unique(labels)
    weights = compute_class_weight("balanced", classes=classes, y=labels.to_numpy())
    return dict(zip(map(int, classes), map(float, weights), strict=True))


def is_not_retracing_warning(record: Any) -> bool:
    """Filters TensorFlow's log: it warns of retracing where one process traces the graphs of many models."""
    return "triggered tf.function retracing" not in record.getMessage()


def save(
    job: Job,
    model: keras.Model,
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    validation: pd.DataFrame,
    outcome: dict[str, Any],
    clock: dict[str, float],
) -> Run:
    """Stores a run in its folder: all files first, then `run.json`, then the folder gets its final name."""
    folder, now = job.unfinished_folder, datetime.now(UTC)
    write_run_files(folder, model, job.splits.class_names, history, predictions, validation)
    clock["save"] = time.perf_counter()
    run_id = f"{now:%Y%m%dT%H%M%S%f}-{job.digest}"
    row = result_row(job, outcome | {"time": f"{now:%Y-%m-%d %H:%M:%S}", "run_id": run_id})
    write_json(run_record(job, row, model, clock), folder / "run.json")
    run = finish_run(folder, job.experiment.id, run_id)
    for checkpoint in run.file("run.json").parent.glob("training*.npz"):  # not before: training is long
        checkpoint.unlink()
    return run


def write_run_files(
    folder: Path,
    model: keras.Model,
    class_names: Sequence[str],
    history: pd.DataFrame,
    predictions: pd.DataFrame,
    validation: pd.DataFrame | None,
) -> None:
    """Writes the files of a run, `RUN_FILES`, into its folder; and its validation predictions, if there are some."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / "model.keras", class_names)
    write_table(history, folder / "history.csv")
    write_table(predictions, folder / "predictions.csv")
    if validation is not None:
        write_table(validation, folder / VALIDATION)


def files_sha256(folder: Path) -> dict[str, str]:
    """Returns the checksums of the files that `write_run_files` wrote, by name."""
    return {name: file_sha256(folder / name) for name in (*RUN_FILES, VALIDATION) if (folder / name).exists()}


def finish_run(folder: Path, id: str, run_id: str) -> Run:
    """Gives the hidden folder of a run, in which all files are written, its final name."""
    final = folder.with_name(f"{id}-{run_id}")
    with user_facing_os_errors(final):
        folder.rename(final)  # from here on the run is stored
    return Run(id, final)


def result_row(job: Job, outcome: Mapping[str, Any]) -> ResultRow:
    """Returns the run's row of `results.csv`; `outcome` holds all columns that were measured."""
    maximum_epochs = job.context["maximum_epochs"]
    return ResultRow(
        **job.experiment.key._asdict(),
        batchsize=job.experiment.training.batch_size,
        class_balance=job.experiment.training.class_balance,
        image_size=job.context["image_size"],
        resize=job.resize,
        weights=job.context["weights"],
        seed=job.context["seed"],
        dataset=job.splits.dataset,
        data_sha256=job.splits.sha256,
        split=job.splits.kind,
        data_share=job.splits.share,
        corrections=job.splits.corrections,
        epochs_cap=None if maximum_epochs == job.experiment.training.epochs else maximum_epochs,
        tensorflow=tf.__version__,
        keras=keras.__version__,
        commit=git_commit(),
        **outcome,
    )


def run_record(job: Job, row: ResultRow, model: keras.Model, clock: dict[str, float]) -> dict[str, Any]:
    """Returns what `run.json` holds: the full specification, the row, checksums, times and versions."""
    experiment, splits = job.experiment, job.splits
    return {
        "spec": experiment.specification() | {"settings": dict(job.context)},
        "digest": job.digest,
        "row": asdict(row),
        "class_names": splits.class_names,
        "weights_sha256": weights_sha256(model.layers),
        "init_weights_sha256": job.start_weights,
        "seconds": {step: round(clock[step] - clock[before], 2) for before, step in pairwise(clock)},
        "images_sha256": images_sha256(splits),
        "environment": software_versions() | {"deterministic": job.settings.deterministic},
        "source": job.source or source_of(experiment),
        "files_sha256": files_sha256(job.unfinished_folder),
    }


def source_of(experiment: Experiment) -> str | None:
    """Returns the source of an architecture's class if it is the user's own; None where Python cannot tell it."""
    if experiment.is_custom:
        with suppress(OSError, TypeError):  # of some classes that a cell defines
            return inspect.getsource(type(experiment.model))
    return None


def images_sha256(splits: Splits) -> str:
    """Returns a checksum of all images of a workspace, whatever their split."""
    images = sorted(pd.concat([splits.train, splits.val, splits.test]).sha256)
    return hashlib.sha256("".join(images).encode()).hexdigest()
