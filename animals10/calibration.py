"""Calibration: how far a run's probabilities can be trusted, and better ones by temperature scaling.

A temperature divides the logits of a network. It is fitted on the validation images and never changes a predicted class
(C. Guo et al., On calibration of modern neural networks, ICML 2017). With honest probabilities, predictions below a
threshold can be rejected: the rest is more accurate (Y. Geifman and R. El-Yaniv, Selective classification for deep
neural networks, NeurIPS 2017).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from animals10.evaluation import predict_table, wilson_interval
from animals10.files import UserError, display_path, write_json, write_table
from animals10.input_pipeline import batches, damaged_images_named
from animals10.model_files import load_model, resize_of
from animals10.progress import tell
from animals10.runs import CALIBRATION, VALIDATION, Run, run_in
from animals10.settings import Settings
from animals10.splits import load_splits

ECE_BINS = 15  # as Guo et al.
DIAGRAM_BINS = 10  # of reliability diagrams
TEMPERATURES = (0.05, 20.0)  # limits of the fit
TINY = float(np.finfo("float32").tiny)  # stands for a probability of 0, whose logarithm is infinite
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
DECIMALS = 6  # of thresholds that are chosen
AS_TRAINED, CALIBRATED = "as trained", "calibrated"


@dataclass(frozen=True, eq=False)
class Calibration:
    """The temperature of a run, and its predictions with and without it. As text it is `table`, with a heading.

    Attributes:
        run: The run.
        temperature: What its logits are divided by: above 1 if the network is too confident, below 1 if it is not
            confident enough.
        predictions: Predictions in the form of `Run.predictions`, by the images (`validation`, `test`) and the kind of
            probabilities (`as trained`, `calibrated`).
    """

    run: Run
    temperature: float
    predictions: dict[tuple[str, str], pd.DataFrame]

    @property
    def table(self) -> pd.DataFrame:
        """One row per kind of images and probabilities, with the columns of `calibration_metrics`."""
        rows = [
            {"images": images, "probabilities": kind} | calibration_metrics(predictions)
            for (images, kind), predictions in self.predictions.items()
        ]
        return pd.DataFrame(rows)

    @property
    def coverage(self) -> pd.DataFrame:
        """Accuracy against coverage on the test images, with calibrated probabilities: one row per threshold.

        `threshold`, and the columns of `accepted_metrics`.
        """
        test = self.predictions["test", CALIBRATED]
        return pd.DataFrame([{"threshold": threshold} | accepted_metrics(test, threshold) for threshold in THRESHOLDS])

    def rejection(self, accuracy: float | None = None, coverage: float | None = None) -> pd.DataFrame:
        """Chooses thresholds on the validation images, and evaluates them on the test images.

        Args:
            accuracy: The accuracy that the accepted validation images must reach, above 0 to 1: then as many as
                possible are accepted.
            coverage: The share of validation images to accept at least, above 0 to 1: then the threshold is as high as
                possible.

        Returns:
            One row per kind of `probabilities`: `threshold`, below which predictions are rejected;
            `validation_accuracy` and `validation_coverage`; on the test images the columns of `accepted_metrics`. The
            images that chose the threshold reach a wanted accuracy; others may miss it by chance. If no threshold
            reaches it, the threshold is missing, and no image is accepted.

        Raises:
            UserError: Not exactly one of the two is given, or it is out of range.
        """
        given = {"accuracy": accuracy, "coverage": coverage}
        wanted = {name: value for name, value in given.items() if value is not None}
        if len(wanted) != 1:
            raise UserError("Give either an accuracy or a coverage to choose a threshold by, such as accuracy=0.99.")
        [(name, value)] = wanted.items()
        if not 0 < value <= 1:
            raise UserError(f"{name} is {value}; allowed is a share above 0, up to 1.")
        rows = []
        for kind in (AS_TRAINED, CALIBRATED):
            curve = coverage_curve(self.predictions["validation", kind], DECIMALS)
            good = curve[curve[name] >= value]  # the highest threshold is first
            one = good.tail(1) if name == "accuracy" else good.head(1)
            threshold = one.threshold.iloc[0] if len(one) else np.nan
            chosen = accepted_metrics(self.predictions["validation", kind], threshold)
            row = {"probabilities": kind, "threshold": threshold, "validation_accuracy": chosen["accuracy"]}
            row |= {"validation_coverage": chosen["coverage"]}
            rows.append(row | accepted_metrics(self.predictions["test", kind], threshold))
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        table = self.table.to_string(index=False, float_format="{:.3f}".format)
        return f"{self.run.model_id}: temperature {self.temperature:.3f}, fitted on the validation images\n{table}"


def calibrate(settings: Settings, run: Run) -> Calibration:
    """Fits the temperature of a run on its predictions for the validation images, and stores it with the run.

    The predictions are those that were stored after training (`validation.csv`). For a run of a version that did not
    store them, its `model.keras` predicts them once. `calibration.json` in the run's folder gets the temperature.

    Args:
        settings: The settings; their workspace holds the images of the run.
        run: A stored run, also an ensemble.

    Raises:
        UserError: The run is not trained, or there are no predictions for validation images that it was not trained on.
    """
    validation, test = _validation(settings, run), run.predictions
    temperature = fitted_temperature(run.model_id, validation)
    if run.temperature != temperature:
        about = {"temperature": temperature, "validation_images": len(validation)}
        write_json(about | {"time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}, run.file(CALIBRATION))
    predictions: dict[tuple[str, str], pd.DataFrame] = {}
    for images, table in {"validation": validation, "test": test}.items():
        predictions |= {(images, kind): scaled for kind, scaled in by_kind(table, temperature).items()}
    return Calibration(run, temperature, predictions)


def _validation(settings: Settings, run: Run) -> pd.DataFrame:
    """Returns the predictions for the validation images; stores them if they were not."""
    if run.file(VALIDATION).exists():
        return run.validation
    record, cannot = run.record, f"{run.model_id} cannot be calibrated"
    if record.get("spec", {}).get("model", {}).get("members") and record["row"]["acc_val"] is None:
        raise UserError(f"{cannot}: its members were trained on the validation images. Calibrate each of them instead.")
    if not run.file("model.keras").exists():
        where = display_path(run.file("run.json").parent)
        raise UserError(f"{cannot}: {where} holds neither {VALIDATION} nor model.keras. Restore one of them.")
    splits = load_splits(settings)
    if splits.sha256 != record["row"]["data_sha256"]:
        raise UserError(f"{cannot}: it was trained on other images or another split than the workspace holds now.")
    tell(f"{run.model_id}: predicting {len(splits.val):,} validation images, once.")
    model, class_names = load_model(run.file("model.keras"))
    with damaged_images_named(settings, splits.val):
        table = predict_table(model, batches(settings, splits.val), splits.val, class_names)
    return write_table(table, run.file(VALIDATION))


# ── Temperature ───────────────────────────────────────────────────────────────────────────────────────────────────────


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns what the probabilities are if the logits are divided by a temperature, float64 (images, classes).

    The logits need not be known: the logarithms of the probabilities differ from them by a constant per image.

    Args:
        probabilities: Of a network or an ensemble, (images, classes), 0 to 1.
        temperature: A positive number.
    """
    return np.exp(_log_scaled(probabilities, temperature))


def _log_scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(np.maximum(np.asarray(probabilities, "float64"), TINY))
    return log_softmax(logits / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature with the lowest mean negative log-likelihood.

    Args:
        probabilities: Of validation images, (images, classes), 0 to 1. At least one image must be classified wrongly:
            otherwise the lower the temperature, the better, without end.
        labels: Positions of the true classes, int (images,).
    """

    def loss(logarithm: float) -> float:
        return float(-_log_scaled(probabilities, np.exp(logarithm))[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def fitted_temperature(name: str, validation: pd.DataFrame) -> float:
    """Returns the temperature that fits predictions for validation images; 1, with a message, if all are correct.

    Args:
        name: The run, for the message.
        validation: In the form of `Run.predictions`.
    """
    if (validation.category == validation.predicted).all():
        tell(f"{name}: all {len(validation)} validation images are classified correctly, so the temperature stays 1.")
        return 1.0
    return round(fit_temperature(*_arrays(validation)), 4)


def scaled_predictions(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Returns predictions with the probabilities that a temperature gives; the predicted classes are the same.

    Args:
        predictions: In the form of `Run.predictions`.
        temperature: A positive number.
    """
    columns = [name for name in predictions if name.startswith("p_")]
    probabilities = scaled(predictions[columns].to_numpy(), temperature)
    return predictions.assign(confidence=probabilities.max(axis=1)).assign(**dict(zip(columns, probabilities.T)))


def by_kind(predictions: pd.DataFrame, temperature: float | None) -> dict[str, pd.DataFrame]:
    """Returns predictions by kind of probabilities: `as trained`, and with a temperature `calibrated` ones."""
    found = {AS_TRAINED: predictions}
    return found if temperature is None else found | {CALIBRATED: scaled_predictions(predictions, temperature)}


def _arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities, (images, classes), and labels, int (images,)."""
    names = pd.Index([name for name in predictions if name.startswith("p_")])
    return predictions[names].to_numpy("float64"), names.get_indexer("p_" + predictions.category)


# ── Calibrated models ─────────────────────────────────────────────────────────────────────────────────────────────────


def temperature_of(settings: Settings, path: Path) -> float:
    """Returns the temperature of the run whose model a file is; fits it if that has not been done.

    Args:
        settings: The settings; their workspace holds the images of the run.
        path: `model.keras` in the run's folder.

    Raises:
        UserError: It is the file of a model alone, or the run cannot be calibrated.
    """
    if path.name != "model.keras" or not path.with_name("run.json").exists():
        raise UserError(
            f"{display_path(path)} lies in no run's folder, so it has no validation images to calibrate on."
        )
    run = run_in(path.parent)
    found = run.temperature
    return calibrate(settings, run).temperature if found is None else found


def with_temperature(model: keras.Model, temperature: float) -> keras.Model:
    """Returns a network with calibrated probabilities.

    Args:
        model: A network from pixels to probabilities, whose layers the new one shares. Where it ends in a dense layer
            with softmax, that layer's weights are divided by the temperature, so prediction takes no longer. Else the
            logarithms of the probabilities are.
        temperature: A positive number.
    """
    end = model.operations[-1]
    if isinstance(end, keras.layers.Dense) and end.activation is keras.activations.softmax:
        scaled_end = keras.layers.Dense.from_config(end.get_config())
        outputs = scaled_end(end.input)
        scaled_end.set_weights([weights / temperature for weights in end.get_weights()])
    else:
        logarithms = keras.ops.log(keras.ops.maximum(model.output, TINY))
        outputs = keras.layers.Softmax(dtype="float32", name="calibrated")(logarithms / temperature)
    calibrated = keras.Model(model.input, outputs, name=model.name)
    calibrated.resize = resize_of(model)
    return calibrated


# ── Metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def calibration_metrics(predictions: pd.DataFrame) -> dict[str, Any]:
    """Computes how good probabilities are.

    Args:
        predictions: In the form of `Run.predictions`.

    Returns:
        `n`, images; `accuracy` with its 95 % Wilson interval, `low` to `high`; `confidence`, the mean probability of
        the predicted class, which is above the accuracy if the network is too confident; `nll`, the mean negative
        log-likelihood of the true class; `brier`, the mean squared distance of the probabilities from the true class,
        0 to 2 (G. W. Brier, Monthly Weather Review 78, 1950); `ece` and `ece_by_chance`, see
        `expected_calibration_error`.
    """
    probabilities, labels = _arrays(predictions)
    rows, is_correct = np.arange(len(labels)), (predictions.category == predictions.predicted).to_numpy()
    confidence = predictions.confidence.to_numpy("float64")
    distance = probabilities.copy()
    distance[rows, labels] -= 1
    low, high = wilson_interval(is_correct.mean(), len(labels))
    ece, by_chance = expected_calibration_error(confidence, is_correct)
    found = {"n": len(labels), "accuracy": float(is_correct.mean()), "low": low, "high": high}
    found |= {"confidence": float(confidence.mean()), "nll": float(-_log_scaled(probabilities, 1)[rows, labels].mean())}
    return found | {"brier": float((distance**2).sum(axis=1).mean()), "ece": ece, "ece_by_chance": by_chance}


def expected_calibration_error(confidence: np.ndarray, is_correct: np.ndarray, draws: int = 500) -> tuple[float, float]:
    """Returns the expected calibration error (ECE), and the value below which chance alone keeps it.

    The ECE is the mean distance of accuracy and mean confidence over bins, weighted by their numbers of images (Guo et
    al.). There are 15 bins of equal mass: they hold the same number of images, except for equal confidences. Bins of
    equal width, which Guo et al. used, overestimate it more (R. Roelofs et al., AISTATS 2022): an accurate network has
    most images in the last bin, and few in each of the others.

    Even right probabilities have an ECE above 0 on a finite number of images. An interval by resampling would not show
    that. So the second value is the 95 % quantile of the ECE if each confidence were the probability of being correct.

    Args:
        confidence: Probability of the predicted class, (images,), 0 to 1.
        is_correct: Whether it is the true class, bool (images,).
        draws: Random draws for the quantile.
    """
    bins = np.searchsorted(np.quantile(confidence, np.linspace(0, 1, ECE_BINS + 1)[1:-1]), confidence, side="right")

    def error(outcome: np.ndarray) -> float:
        return float(np.abs(np.bincount(bins, outcome - confidence, ECE_BINS)).sum() / len(confidence))

    rng = np.random.default_rng(1)
    by_chance = [error(rng.random(len(confidence)) < confidence) for _ in range(draws)]
    return error(is_correct), float(np.quantile(by_chance, 0.95))


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Returns the points of a reliability diagram: ten bins of equal width, those without images left out.

    Args:
        predictions: Table with the columns `category`, `predicted` and `confidence`.

    Returns:
        One row per bin: `confidence` (the mean), `accuracy` with its 95 % Wilson interval, `low` to `high`, and `n`.
    """
    bins = np.minimum((predictions.confidence * DIAGRAM_BINS).astype(int), DIAGRAM_BINS - 1)
    is_correct, rows = predictions.category == predictions.predicted, []
    for _, found in is_correct.groupby(bins):
        low, high = wilson_interval(found.mean(), len(found))
        confidence = float(predictions.confidence[found.index].mean())
        rows.append({"confidence": confidence, "accuracy": found.mean(), "low": low, "high": high, "n": len(found)})
    return pd.DataFrame(rows)


# ── Rejection ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def coverage_curve(predictions: pd.DataFrame, decimals: int | None = None) -> pd.DataFrame:
    """Returns accuracy against coverage (risk-coverage curve), one row per threshold, the highest first.

    Args:
        predictions: Table with the columns `category`, `predicted` and `confidence`.
        decimals: Of the thresholds, which are rounded down; None for the confidences as they are.

    Returns:
        `threshold`, `coverage`, the share of images whose confidence reaches it, and their `accuracy`.
    """
    confidence = predictions.confidence.to_numpy("float64")
    if decimals is not None:
        confidence = np.floor(confidence * 10**decimals) / 10**decimals
    is_correct = (predictions.category == predictions.predicted).to_numpy()
    thresholds, counts = np.unique(-confidence, return_counts=True)
    correct = np.bincount(np.searchsorted(thresholds, -confidence), is_correct)
    accepted = counts.cumsum()
    columns = {"threshold": -thresholds, "coverage": accepted / len(confidence)}
    return pd.DataFrame(columns | {"accuracy": correct.cumsum() / accepted})


def accepted_metrics(predictions: pd.DataFrame, threshold: float) -> dict[str, float]:
    """Returns `coverage`, the share of images whose confidence reaches a threshold, and how accurate these are.

    That is `accuracy` with its 95 % Wilson interval, `low` to `high` (missing if no image is accepted), and their
    number, `accepted` of `n`.

    Args:
        predictions: Table with the columns `category`, `predicted` and `confidence`.
        threshold: Probability, 0 to 1.
    """
    is_correct = (predictions.category == predictions.predicted)[predictions.confidence >= threshold].to_numpy()
    accuracy = float(is_correct.mean()) if len(is_correct) else np.nan
    low, high = wilson_interval(accuracy, len(is_correct))
    found = {"coverage": len(is_correct) / len(predictions), "accuracy": accuracy, "low": low, "high": high}
    return found | {"accepted": len(is_correct), "n": len(predictions)}
