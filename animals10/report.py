"""The report page: all stored runs as a table, as charts, and each in a view of its own.

The page contains all that it needs, libraries included, and requests nothing from the network. It is made from
`results.csv` and the folders in `models/` and `study/` alone; nothing is trained or predicted. To add a column to its
table, edit the template `report.html.j2`; the views show all fields of `results.ResultRow`.
"""

import base64
from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import itables
import jinja2
import pandas as pd
import vl_convert
from PIL import Image

from animals10.evaluation import classification_reports
from animals10.files import REPOSITORY, UserError, atomic_write, display_path, one_line, reading, refuse_to_replace
from animals10.report_charts import (
    COSTS,
    CURVES,
    FROM_SCRATCH,
    VEGA_LITE,
    at_least_a_decade,
    confusion_chart,
    cost_chart,
    learning_curve,
    position,
)
from animals10.results import PUBLISHED_KEY, RESULT_COLUMNS, ResultRow, published_table, results_table
from animals10.runs import EFFICIENCY, STUDY, Run, run_labels, run_of_row
from animals10.settings import Settings

MARK = "<title>Animals-10: runs and results</title>"  # of each page
REPORT = REPOSITORY / "build" / "report" / "report.html"
MAX_ERRORS = 12  # misclassified images that a run's view lists
SPLITS = {
    "grouped": "near-duplicates are in the same part",
    "published": "each image is drawn on its own, as the original study did",
    "given": "it came with the images",
    "own": "its tables were made by hand",
}
# Backbones that the runs in `study/` lack, and why.
UNAVAILABLE = dict.fromkeys(("ResNet50V2", "EfficientNetV2S"), "their ImageNet weights could not be had")

# The fields of a run's view by heading; all others of `ResultRow` are listed under Training.
NETWORK = "weights params trainable_params image_size".split()
RESULTS = """accuracy accuracy_low accuracy_high precision recall f1_score acc_train acc_val n_test dataset data_share
    split significance""".split()
ORIGIN = "time run_id device peak_memory_mb tensorflow keras commit data_sha256".split()
TRAINING = [name for name in RESULT_COLUMNS if name not in {*NETWORK, *RESULTS, *ORIGIN, "model_id"}]
PUBLISHED = "accuracy precision recall f1_score acc_train acc_val params trainable_params time".split()
FILTERS = ("notebook", "backbone", "dataset", "split")
SHOWN = "learning_rate epochs dataset split".split()  # what tells runs apart and has a column in the page's table
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


def write_report(settings: Settings, path: Path = REPORT, with_images: bool = False) -> None:
    """Writes the page and prints where it is and how large.

    Args:
        settings: The settings; their workspace holds the runs.
        path: The file to write.
        with_images: Whether to embed small copies of misclassified test images.

    Raises:
        UserError: There are no results, one cannot be read, or the page cannot be written, as where `path` is a file
            that this function did not write.
    """
    refuse_to_replace(path, MARK, "make report")
    page = render(settings, with_images)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    print(f"{display_path(path.resolve())}: {len(page.encode('utf-8', 'replace')) / 1e6:.1f} MB")


def render(settings: Settings, with_images: bool = False, home: str = "") -> str:
    """Returns the page as HTML.

    Args:
        settings: The settings; their workspace holds the runs.
        with_images: Whether to embed small copies of misclassified test images.
        home: The address of the page to return to, where the report is part of a site.

    Raises:
        UserError: There are no results, or one cannot be read.
    """
    table = collect(settings)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    for row in rows:
        row["details"] = run_details(settings, row, with_images)
        row["notebook"], row["backbone"] = _origin(row)
    measured = [row for row in rows if row["measured"]]
    costs = [name for name in COSTS if any(row.get(name) for row in measured)]
    charts = {name: learning_curve(name) for name in CURVES} | {"confusion": confusion_chart()}
    backbones = sorted({row["backbone"] for row in measured}, key=position)
    limits = {name: at_least_a_decade([row[name] for row in measured if row.get(name)]) for name in costs}
    charts |= {name: cost_chart(name, backbones, limits[name]) for name in costs}
    names = {"run": "label", "accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    names |= {name: name for name in ("id", "backbone", "setting", *costs)}
    points = [{"href": f"#{row['id']}"} | {new: row[old] for new, old in names.items()} for row in measured]
    groups = _groups(table)
    bundle = Path(itables.__file__).parent / "html"
    return load_template("report.html.j2").render(
        rows=rows,
        measured=measured,
        groups=groups,
        data=list(dict.fromkeys(_data(group) for group in groups)),
        splits=SPLITS,
        study=(settings.root / STUDY).is_dir(),
        unavailable=_unavailable(settings, rows),
        is_compared=bool(table.agreement.str.contains("significantly").any()),
        largest=groups[0]["dataset"] if groups else "",
        costs={name: COSTS[name] for name in costs},
        charts={name: chart.to_dict() for name, chart in charts.items()},
        points=points,
        filters={name: sorted({row[name] or "" for row in rows} - {""}) for name in FILTERS},
        titles=TITLES,
        home=home,
        root="" if settings.root == REPOSITORY else display_path(settings.root),
        vega=vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]  # its stub requires more
        tables=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
        tables_css=(bundle / "dt_bundle.css").read_text(encoding="utf-8"),
    )


def load_template(name: str) -> jinja2.Template:
    """Returns a template of this package. Values that it puts into a page are escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options: dict[str, Any] = {"autoescape": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **options)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template(name)


# ── The table ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def collect(settings: Settings) -> pd.DataFrame:
    """Joins all stored runs and the published ones of their image sizes, best validation accuracy first.

    Trials, which a cap on epochs shortened, come after all other stored runs.

    Returns:
        The columns of `results_table`, those of `data/published-results.csv` with the suffix `_published`, and
        `agreement`, `measured` (whether there is a run), `full` (whether no cap on epochs shortened it), `setting`
        (data set, share of Animals-10, split, whether weights are random and epochs capped: runs of one setting can be
        compared), `notebook`, `backbone`, `label` (unique), `short_label` (what the columns `SHOWN` do not tell) and
        `id`, which names the row in the page. Runs that are not measured come last.

    Raises:
        UserError: There are no results, or they lack a column.
    """
    results, key = results_table(settings), list(PUBLISHED_KEY)
    sizes = sorted(results.image_size.dropna().unique()) or [settings.image_size]
    joined = pd.concat(published_table(settings.model_copy(update={"image_size": int(size)})) for size in sizes)
    # In published_table the published columns have the plain names; here the measured ones have.
    both = [name.removesuffix("_measured") for name in joined if name.endswith("_measured")]
    joined = joined.rename(columns={name: f"{name}_published" for name in both})
    joined = joined.rename(columns={f"{name}_measured": name for name in both})
    others = results[~results.run_id.isin(joined.run_id)]
    known = set(joined[key].itertuples(index=False, name=None))
    is_published = [values in known for values in others[key].itertuples(index=False, name=None)]
    words = {True: "not compared: another run counts", False: "no published run"}
    others = others.assign(agreement=pd.Series(is_published, others.index, dtype=bool).map(words))
    table = pd.concat([joined, others])
    table["measured"] = table.run_id.notna()
    table["full"] = table.epochs_cap.isna()
    order = ["measured", "full", "acc_val", "acc_val_published"]
    table = table.sort_values(order, ascending=False, kind="stable", na_position="last", ignore_index=True)
    table["label"] = table["short_label"] = run_labels(table)
    for _, rows in table.groupby(SHOWN, dropna=False):
        table.loc[rows.index, "short_label"] = [label.partition(", capped at ")[0] for label in run_labels(rows)]
    table["id"] = table.run_id.where(table.measured, "published-" + table.index.astype(str))
    is_odd = ~table.id.astype("str").str.fullmatch(r"[\w.-]+")  # a row of one's own: a link needs a simple name
    table.loc[is_odd, "id"] = "row-" + table.index[is_odd].astype(str)
    table["setting"] = [_setting(row) if row["measured"] else "not measured" for row in table.to_dict("records")]
    return table


def _data(row: Mapping[str, Any]) -> str:
    """Returns a run's data set, and how much of Animals-10 it is, in words."""
    share = text(row["data_share"])
    return (text(row["dataset"]) or "unnamed data") + (f" ({share} files)" if share else "")


def _setting(row: Mapping[str, Any]) -> str:
    """Returns in words what two runs must share to be compared."""
    split = text(row["split"]) and f", {row['split']} split"
    weights = ", random weights" if row["weights"] == "random" else ""
    return _data(row) + split + weights + (", maximum epochs capped" if pd.notna(row["epochs_cap"]) else "")


def _groups(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns for each setting its number of runs, and the row with the highest validation accuracy.

    The data set with the most test images comes first; within it full runs, and the setting with the most runs.
    """
    measured = table[table.measured].assign(runs=lambda rows: rows.groupby("setting").setting.transform("size"))
    best = measured.drop_duplicates("setting")  # the table is sorted
    images = best.groupby("dataset").n_test.transform("max")
    order = ["images", "dataset", "full", "runs"]
    best = best.assign(images=images).sort_values(order, ascending=False, kind="stable")
    return best.astype(object).where(best.notna(), None).to_dict("records")


def _unavailable(settings: Settings, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Returns the backbones that were published and that the runs in `study/` lack, by the reason."""
    if not (settings.root / STUDY).is_dir():
        return {}
    published, measured = ({row["backbone"] for row in rows if row["measured"] == known} for known in (False, True))
    found: dict[str, list[str]] = {}
    for backbone, reason in UNAVAILABLE.items():
        if backbone in published - measured:
            found.setdefault(reason, []).append(backbone)
    return found


def _origin(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a run's notebook (empty if it is of neither) and backbone or architecture."""
    if row["notebook"]:
        return row["notebook"], row["backbone"] or FROM_SCRATCH
    model = row["details"]["model"]
    if not model:  # its folder is gone: the row of results.csv has to do
        backbone, is_file, _ = str(row["weights"]).partition(".weights.h5")
        return ("02", FROM_SCRATCH) if row["weights"] == "none" else ("03", backbone if is_file else "unknown")
    if model["type"] == "CNN":
        return "02", FROM_SCRATCH
    return "03" if model["type"] == "Transfer" else "", str(model.get("backbone") or model["type"])


# ── One run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_details(settings: Settings, row: Mapping[str, Any], with_images: bool) -> dict[str, Any]:
    """Returns all that is stored of a run in the form that the template needs.

    Args:
        settings: The settings; their workspace holds the run's folder.
        row: The run's row of `collect`, with None for missing values.
        with_images: Whether to embed misclassified test images.

    Returns:
        `notes` (what is missing, in words), `model` (of its specification), `facts` (by heading), `history`, `matrix`,
        `report` and `errors`; empty where nothing is stored.

    Raises:
        UserError: A file of the run cannot be read.
    """
    found: dict[str, Any] = {"notes": [], "model": {}, "history": [], "matrix": [], "size": 0, "report": []}
    found |= {"errors": [], "n_errors": 0}
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
    if row["epochs_run"] == 0:
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
    wrong = predictions[predictions.category != predictions.predicted].sort_values("confidence", ascending=False)
    errors = wrong.head(MAX_ERRORS)[["relpath", "category", "predicted", "confidence"]].assign(image="")
    found = {"matrix": matrix, "size": len(names), "report": report.reset_index(names="name").to_dict("records")}
    return found | {"errors": errors.to_dict("records"), "n_errors": len(wrong)}


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
