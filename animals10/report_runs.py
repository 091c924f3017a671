"""What the report page shows of one run: its settings, learning curves, confusion matrix and errors."""

import base64
from collections.abc import Mapping
from dataclasses import fields
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from animals10.calibration import CALIBRATED, by_kind, coverage_curve, expected_calibration_error, reliability
from animals10.evaluation import classification_reports
from animals10.files import UserError, display_path, one_line, reading
from animals10.report_charts import CURVES
from animals10.results import PUBLISHED_KEY, RESULT_COLUMNS, ResultRow
from animals10.runs import EFFICIENCY, Run, run_of_row
from animals10.settings import Settings

MAX_ERRORS = 12  # misclassified images that a run's view lists
COVERAGES = 20  # points of the chart of accuracy against coverage, at most

# The fields of a run's view by heading; all others of `ResultRow` are listed under Training.
NETWORK = "weights params trainable_params image_size".split()
DATA = "dataset data_share corrections resize split n_train n_val n_test data_sha256".split()
RESULTS = "accuracy accuracy_low accuracy_high precision recall f1_score acc_train acc_val significance".split()
ORIGIN = "time run_id device peak_memory_mb tensorflow keras commit".split()
TRAINING = [name for name in RESULT_COLUMNS if name not in {*NETWORK, *DATA, *RESULTS, *ORIGIN, "model_id"}]
PUBLISHED = "accuracy precision recall f1_score acc_train acc_val params trainable_params time".split()
PUBLISHED_SPECIFICATION = (*PUBLISHED_KEY, *"class_balance backbone filters pool_sizes dense_units dropout".split())

# Titles and formats: those of the columns of results.csv, and of what else a view shows.
TITLES = {column.name: column.metadata["title"] for column in fields(ResultRow)}
TITLES |= {"accuracy_low": "95 % interval from", "accuracy_high": "95 % interval to", "init_from": "initialised from"}
TITLES |= {"maximum_epochs": "maximum epochs in these settings", "continues": "initialised from"}
TITLES |= {
    "significance": "McNemar test against the best run",
    "model_mb": "model file, MB",
    "multiply_adds": "multiply-adds per image, millions",
}
TITLES |= {"predict_ms": "latency at batch size 1, ms", "batch_ms": "time per image at batch size 32, ms"}
FORMATS = {column.name: column.metadata["format"] for column in fields(ResultRow)}


def run_details(settings: Settings, row: Mapping[str, Any], with_images: bool) -> dict[str, Any]:
    """Returns all that is stored of a run in the form that the template needs.

    Args:
        settings: The settings; their workspace holds the run's folder.
        row: The run's row of `collect`, with None for missing values.
        with_images: Whether to embed misclassified test images.

    Returns:
        `notes` (what is missing, in words), `model` (of its specification), `facts` (by heading), `history`, `matrix`,
        `report`, `errors`, `ece` (calibration errors in words), `reliability` and `coverage`; `images`, which two
        runs have in common if their test images are the same, and `correct`, which of these are predicted correctly;
        empty where nothing is stored.

    Raises:
        UserError: A file of the run cannot be read.
    """
    found: dict[str, Any] = {"notes": [], "model": {}, "history": [], "matrix": [], "size": 0, "report": []}
    found |= {"errors": [], "n_errors": 0, "images": "", "correct": "", "ece": [], "reliability": [], "coverage": []}
    run, spec = run_of_row(settings.root, row["model_id"], str(row["run_id"])), {}
    if not row["measured"]:
        found["notes"].append("This run was published and has not been measured here.")
    elif not run.file("run.json").exists():
        where = display_path(run.file("run.json").parent)
        found["notes"].append(f"Its folder {where} is missing: this is its row of results.csv.")
    else:
        try:
            spec = run.record["spec"]
            found["model"] = spec["model"]
            for name, read in {"history.csv": _history, "predictions.csv": _predictions}.items():
                if run.file(name).exists():
                    found |= read(run)
                else:
                    found["notes"].append(f"{name} is missing in its folder.")
            for error in found["errors"] if with_images else ():
                error["image"] = thumbnail(settings.data / "processed" / error["relpath"])
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            where = display_path(run.file("run.json").parent)
            raise UserError(f"{where} cannot be read ({reason}): move it away.") from None
    if row["epochs_cap"]:
        found["notes"].append(f"Its maximum epochs were capped at {row['epochs_cap']:.0f}: it is a trial.")
    if spec.get("model", {}).get("type") == "Ensemble":
        members = spec["model"]["members"]
        found["notes"].append(f"It is the mean of {len(members)} run{'s' * (len(members) > 1)}.")
    elif row["epochs_run"] == 0:
        found["notes"].append("It was evaluated without training.")
    return found | {"facts": _facts(row, spec)}


def _facts(row: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns titles and values by heading, from a run's row and its specification; empty values are left out."""
    published = {name: row.get(f"{name}_published") for name in PUBLISHED} | {"remark": row.get("remark")}
    if not row["measured"]:
        names = {name: row.get(f"{name}_published", row.get(name)) for name in PUBLISHED_SPECIFICATION}
        groups = {"Specification": names | {"continues": row.get("continues")}}
    else:
        training, settings = ({**spec.get(part, {})} for part in ("training", "settings"))
        start = {name: spec[name] for name in ("init_from", "initial_epoch") if spec.get(name)}
        known = {*RESULT_COLUMNS, "type", "batch_size"}
        more = {name: value for name, value in (training | settings).items() if name not in known}
        groups = {
            "Network": _spelled_out(spec.get("model", {})) | _pick(row, NETWORK) | start,
            "Training": _pick(row, TRAINING) | _spelled_out(more),
            "Data": _pick(row, DATA),
            "Results": _pick(row, RESULTS),
            "Efficiency": _pick(row, EFFICIENCY),
            "Origin": _pick(row, ORIGIN),
        }
    groups["Published"] = published
    shown = {
        heading: {
            TITLES.get(name, name.replace("_", " ")): text(value, FORMATS.get(name, "{}"))
            for name, value in group.items()
        }
        for heading, group in groups.items()
    }
    shown = {heading: {name: value for name, value in group.items() if value} for heading, group in shown.items()}
    return {heading: group for heading, group in shown.items() if group}


def _pick(row: Mapping[str, Any], names: tuple[str, ...] | list[str]) -> dict[str, Any]:
    return {name: row.get(name) for name in names}


def _spelled_out(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a part of a specification in which None, which means something there, is a word."""
    return {name: "none" if value is None else value for name, value in spec.items()}


def _history(run: Run) -> dict[str, Any]:
    best = run.row["best_epoch"]
    rows = [
        {"epoch": int(row["epoch"]), "is_best": bool(row["epoch"] == best)}
        | {f"{part}{name}": round(float(row[part + name]), 4) for part in ("", "val_") for name in CURVES}
        for row in run.history.to_dict("records")
    ]
    return {"history": rows}


def _predictions(run: Run) -> dict[str, Any]:
    predictions, names = run.predictions, run.record["class_names"]
    counts = pd.crosstab(predictions.category, predictions.predicted).reindex(index=names, columns=names, fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0).fillna(0).round(3)
    # Empty cells stay blank, so that errors stand out; the diagonal names every class on both axes.
    cells = [(truth, predicted) for truth in names for predicted in names if counts.at[truth, predicted]]
    cells += [(name, name) for name in names if not counts.at[name, name]]
    matrix = [
        {"truth": cell[0], "predicted": cell[1], "count": int(counts.at[cell]), "share": float(shares.at[cell])}
        for cell in cells
    ]
    report = classification_reports(run).droplevel(0, axis=1)
    report.columns = pd.Index(["precision", "recall", "f1", "images"])
    report = report.round(6)
    wrong = predictions[predictions.category != predictions.predicted].sort_values("confidence", ascending=False)
    errors = wrong.head(MAX_ERRORS)[["relpath", "category", "predicted", "confidence"]].assign(image="")
    found = {"matrix": matrix, "size": len(names), "report": report.reset_index(names="name").to_dict("records")}
    found |= _calibration(predictions, run.temperature)
    return found | {"errors": errors.to_dict("records"), "n_errors": len(wrong)} | _correct(predictions)


def _calibration(predictions: pd.DataFrame, temperature: float | None) -> dict[str, Any]:
    """Returns the calibration errors, the points of the reliability diagram, and accuracy against coverage."""
    found: dict[str, Any] = {"ece": [], "reliability": [], "coverage": []}
    for kind, table in by_kind(predictions, temperature).items():
        kind = f"{kind}, temperature {temperature:.3g}" if kind == CALIBRATED else kind
        confidence, is_correct = table.confidence.to_numpy("float64"), (table.category == table.predicted).to_numpy()
        ece, by_chance = expected_calibration_error(confidence, is_correct)
        found["ece"].append(f"{kind}: {ece:.3f}, by chance up to {by_chance:.3f}")
        found["reliability"] += reliability(table).round(4).assign(kind=kind).to_dict("records")
        curve = coverage_curve(table)
        some = curve.iloc[np.unique(np.searchsorted(curve.coverage[:-1], np.linspace(0.05, 1, COVERAGES)))]
        found["coverage"] += some.round(4).assign(kind=kind).to_dict("records")
    return found


def _correct(predictions: pd.DataFrame) -> dict[str, str]:
    """Returns what McNemar's test needs: a checksum of the test images, and one bit for each, in order, in base64."""
    table = predictions.sort_values("relpath")
    bits = np.packbits((table.category == table.predicted).to_numpy(bool))
    images = sha256("\n".join(table.relpath).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return {"images": images, "correct": base64.b64encode(bits.tobytes()).decode()}


def thumbnail(path: Path) -> str:
    """Returns an image as data URL of a JPEG of at most 96 pixels a side; empty if there is none."""
    if not path.exists():
        return ""
    advice = "run 01-preprocessing.ipynb again"
    with reading(path, "is no image", advice), Image.open(path, formats=["JPEG"]) as image, BytesIO() as file:
        image.thumbnail((96, 96))
        image.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def text(value: Any, form: str = "{}") -> str:
    """Returns a value for a reader; empty for a missing one.

    Args:
        value: A text, number, list or mapping.
        form: How to format numbers.
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {text(part)}" for name, part in value.items() if name != "type")
    if isinstance(value, (list, tuple)):
        return " ".join(map(text, value)) or "none"
    if isinstance(value, str) or pd.isna(value):
        return value if isinstance(value, str) else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if float(value).is_integer() and "f" not in form:
        return (form if form != "{}" else "{:,}").format(int(value))
    return (form if form != "{}" else "{:.4g}").format(float(value))
