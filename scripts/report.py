"""Writes build/report/report.html: all stored runs as a table, as charts, and each in a view of its own.

The page holds all that it needs, libraries among it, and asks no network for anything. It is drawn from `results.csv`
and the folders in `models/` alone; nothing is trained or predicted anew.
"""

import argparse
import base64
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import altair as alt
import itables
import jinja2
import pandas as pd
import vl_convert
from PIL import Image

import auxiliary as aux
from figures import KEY

REPORT = aux.REPOSITORY / "build" / "report" / "report.html"
HAND_BUILT = "hand-built"
# Okabe and Ito's colours, which people of all kinds of sight can tell apart; forms say the same once more.
BLUE, ORANGE = "#0072B2", "#D55E00"
LOOKS = {HAND_BUILT: (BLUE, "circle"), "MobileNetV2": (ORANGE, "square"), "ResNet50V2": ("#009E73", "triangle-up")}
LOOKS |= {"EfficientNetV2S": ("#CC79A7", "diamond")}
COSTS = {"params": "parameters", "train_seconds": "training time in seconds"}
COSTS |= {"multiply_adds": "multiply-adds a picture, in millions", "predict_ms": "prediction time in milliseconds"}
INK = "currentColor"  # of the page: light or dark, without drawing anew
MISTAKES = 12  # that a run's view lists

# What a run's view says, by heading; what `run.json` knows beyond it is listed under Training.
NETWORK = "type backbone filters pool_sizes dense_units dropout unfreeze_last freeze_batch_norm weights params "
NETWORK += "trainable_params image_size continues"
MEASURED = "accuracy accuracy_low accuracy_high precision recall f1_score acc_train acc_val n_test dataset"
ORIGIN = "time run_id device peak_memory_mb tensorflow keras commit data_sha256"
EFFICIENCY = " ".join(aux.storage.EFFICIENCY)
PUBLISHED = "accuracy precision recall f1_score acc_train acc_val params trainable_params time remark"

LABELS = {"params": "parameters", "trainable_params": "of these trained", "batchsize": "batch size"}
LABELS |= {"n_train": "pictures to train", "n_val": "pictures to choose", "n_test": "pictures to judge"}
LABELS |= {"acc_train": "training accuracy", "acc_val": "validation accuracy", "f1_score": "F1", "time": "time (UTC)"}
LABELS |= {"accuracy_low": "95 % interval from", "accuracy_high": "95 % interval to", "dataset": "data set"}
LABELS |= {"train_seconds": "training time, s", "peak_memory_mb": "peak memory, MB"}
LABELS |= {"model_mb": "model file, MB", "multiply_adds": "multiply-adds a picture, millions"}
LABELS |= {"predict_ms": "prediction of one picture, ms", "batch_ms": "prediction of 32 together, ms a picture"}
LABELS |= {"data_sha256": "checksum of the data", "epochs": "epochs at most"}


def collect(settings: aux.Settings) -> pd.DataFrame:
    """Puts all stored runs and the published ones of their picture sizes into one table, best accuracy first.

    Returns:
        Those of `aux.results_table`, those of `data/published-results.csv` with the suffix `_published`, `verdict`,
        `measured` (whether there is a run), `setting` (data set and weights, within which figures can be compared),
        `notebook`, `backbone` and `id`, which names the row in the page.

    Raises:
        StudyError: There are no results, or they lack a column.
    """
    results = aux.results_table(settings)
    if missing := [name for name in aux.RESULT_COLUMNS if name not in results]:
        raise aux.StudyError(f"{aux.short(settings.results)} lacks the columns {', '.join(missing)}: add them first.")
    sizes = sorted(results.image_size.unique())
    joined = pd.concat(aux.published_table(settings.model_copy(update={"image_size": int(size)})) for size in sizes)
    # published_table keeps the published names; here it is the measured ones that stay as they are.
    both = [name.removesuffix("_measured") for name in joined if name.endswith("_measured")]
    joined = joined.rename(columns={name: f"{name}_published" for name in both})
    joined = joined.rename(columns={f"{name}_measured": name for name in both})
    earlier = results[~results.run_id.isin(joined.run_id)]
    known = set(joined[KEY].itertuples(index=False, name=None))
    repeated = [key in known for key in earlier[KEY].itertuples(index=False, name=None)]
    words = {True: "not judged: a later run counts", False: "no published run"}
    table = pd.concat([joined, earlier.assign(verdict=pd.Series(repeated, earlier.index, bool).map(words))])
    table = table.sort_values("accuracy", ascending=False, ignore_index=True)
    table["measured"] = table.run_id.notna()
    table["id"] = table.run_id.where(table.measured, "published-" + table.index.astype(str))
    random = table.weights.eq("random").map({True: ", random weights", False: ""})
    table["setting"] = (table.dataset + random).where(table.measured, "not measured")
    return table


def details(settings: aux.Settings, row: Mapping, pictures: bool) -> dict:
    """Reads what is stored of a run into the form that the template draws.

    Args:
        settings: The settings; their workspace holds the run's folder.
        row: The run's row of `collect`.
        pictures: Whether to embed the test pictures that the run got wrong.

    Returns:
        `notes` (what is missing, in words), `facts` (by heading), `history`, `matrix`, `report` and `mistakes`; empty
        where nothing is stored.

    Raises:
        StudyError: A file of the run cannot be read.
    """
    facts = {name: value for name, value in row.items() if name in (*aux.RESULT_COLUMNS, *aux.storage.EFFICIENCY)}
    found = {"notes": [], "history": [], "matrix": [], "size": 0, "report": [], "mistakes": [], "wrong": 0}
    folder = settings.root / "models" / f"{row['model_id']}-{row['run_id']}"
    run = aux.Run(row["model_id"], folder)
    if not row["measured"]:
        found["notes"].append("This run was published and has not been measured here.")
    elif not (folder / "run.json").exists():
        found["notes"].append(f"Its folder {aux.short(folder)} is not there: this is what results.csv says of it.")
    else:
        try:
            spec = run.record["spec"]
            facts = spec["architecture"] | {key: value for key, value in spec.items() if key != "architecture"} | facts
            for name, read in {"history.csv": _history, "predictions.csv": _predictions}.items():
                if run.file(name).exists():
                    found |= read(run)
                else:
                    found["notes"].append(f"{name} is missing in its folder.")
            for mistake in found["mistakes"]:
                picture = settings.data / "processed" / mistake["relpath"]
                mistake["picture"] = thumbnail(picture) if pictures else ""
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise aux.StudyError(
                f"{aux.short(folder)} cannot be read ({type(error).__name__}: {aux.one_line(error)}): move it away."
            ) from None
    if row["epochs_run"] == 0:
        found["notes"].append("It was judged as it was: no epoch was trained.")
    groups = {"Network": NETWORK.split(), "Training": [], "Measured": MEASURED.split()}
    groups |= {"Efficiency": EFFICIENCY.split(), "Origin": ORIGIN.split()}
    placed = sum(groups.values(), ["model_id"])
    groups["Training"] = [name for name in facts if name not in placed]
    named = {title: {name: facts[name] for name in names if name in facts} for title, names in groups.items()}
    published = {name: row.get(f"{name}_published") for name in PUBLISHED.split()}
    if not row["measured"]:
        keys = [*KEY, "class_balance", "backbone", "filters", "pool_sizes", "dense_units", "dropout", "batchsize"]
        named = {"Specification": {name: row.get(f"{name}_published", row.get(name)) for name in keys}}
    named["Published"] = published | {"remark": row.get("remark")}
    shown = {
        title: {LABELS.get(name, name.replace("_", " ")): text(value) for name, value in group.items()}
        for title, group in named.items()
    }
    shown = {title: {name: value for name, value in group.items() if value} for title, group in shown.items()}
    return found | {"facts": {title: group for title, group in shown.items() if group}}


def _history(run: aux.Run) -> dict:
    kept = run.record["row"]["best_epoch"]
    rows = [
        {"epoch": int(row.epoch), "kept": bool(row.epoch == kept)}
        | {f"{part}{name}": round(float(getattr(row, part + name)), 4) for part in ("", "val_") for name in CURVES}
        for row in run.history.itertuples()
    ]
    return {"history": rows}


def _predictions(run: aux.Run) -> dict:
    predictions, names = run.predictions, run.record["class_names"]
    counts = pd.crosstab(predictions.category, predictions.predicted).reindex(index=names, columns=names, fill_value=0)
    shares = counts.div(counts.sum(axis=1), axis=0).fillna(0).round(3)
    # Empty cells stay blank, so that mistakes stand out; the diagonal names every class on both axes.
    cells = [(truth, predicted) for truth in names for predicted in names if counts.at[truth, predicted]]
    cells += [(name, name) for name in names if not counts.at[name, name]]
    matrix = [
        {"truth": cell[0], "predicted": cell[1], "count": int(counts.at[cell]), "share": float(shares.at[cell])}
        for cell in cells
    ]
    report = aux.reports(run).droplevel(0, axis=1)
    report.columns = ["precision", "recall", "f1", "pictures"]
    wrong = predictions[predictions.category != predictions.predicted].sort_values("confidence", ascending=False)
    mistakes = wrong.head(MISTAKES)[["relpath", "category", "predicted", "confidence"]].to_dict("records")
    report = report.reset_index(names="name").to_dict("records")
    return {"matrix": matrix, "size": len(names), "report": report, "mistakes": mistakes, "wrong": len(wrong)}


def thumbnail(path: Path) -> str:
    """Returns a picture as data URL of a JPEG of at most 96 pixels a side; an empty text if there is none."""
    if not path.exists():
        return ""
    with Image.open(path, formats=["JPEG"]) as picture, BytesIO() as file:
        picture.thumbnail((96, 96))
        picture.save(file, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def text(value: object) -> str:
    """Returns a value as a person reads it; an empty text for one that is missing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value)) or "none"
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str) and float(value).is_integer():
        return f"{int(value):,}"
    return value if isinstance(value, str) else f"{value:.4g}"


# ── Charts ────────────────────────────────────────────────────────────────────────────────────────────────────────────

ROWS = alt.NamedData("rows")  # the page puts them in
VEGA_LITE = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]  # as vl-convert names it
CURVES = ("accuracy", "loss")
LEGEND = alt.Legend(orient="top", title=None, columns=2)


def curve(name: str) -> alt.LayerChart:
    """Draws accuracy or loss against epochs, in training and validation, with the epoch that was kept."""
    domain = ["training", "validation"]
    looks = {"color": [BLUE, ORANGE], "strokeDash": [[1, 0], [5, 3]], "shape": ["circle", "square"]}
    scales = {channel: alt.Scale(domain=domain, range=values) for channel, values in looks.items()}
    chart = alt.Chart(ROWS).transform_calculate(training=f"datum.{name}", validation=f"datum.val_{name}")
    chart = chart.transform_fold(domain, as_=["part", "value"])
    epoch = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    lines = chart.mark_line(point={"filled": True, "size": 28}).encode(
        x=epoch.scale(zero=False, nice=False, padding=8),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("part:N", legend=LEGEND, scale=scales["color"]),
        strokeDash=alt.StrokeDash("part:N", legend=LEGEND, scale=scales["strokeDash"]),
        shape=alt.Shape("part:N", legend=LEGEND, scale=scales["shape"]),
        tooltip=["part:N", "epoch:Q", alt.Tooltip("value:Q", title=name, format=".3f")],
    )
    kept = alt.Chart(ROWS).transform_filter("datum.kept").mark_rule(color=INK, strokeDash=[2, 3]).encode(x=epoch)
    described = f"{name} of training and validation by epoch; a dotted line marks the epoch that was kept"
    return (kept + lines).properties(width="container", height=230, description=described)


def confusion() -> alt.LayerChart:
    """Draws how many pictures of each true class were taken for which; colour is the share of the true class."""
    grid = {"grid": True, "tickBand": "extent"}
    chart = alt.Chart(ROWS).encode(
        x=alt.X("predicted:N", title="predicted", axis=alt.Axis(labelAngle=-90, labelLimit=110, **grid)),
        y=alt.Y("truth:N", title="true", axis=alt.Axis(labelLimit=90, **grid)),
        tooltip=["truth:N", "predicted:N", "count:Q", alt.Tooltip("share:Q", title="of the true class", format=".1%")],
    )
    # Opacity instead of a scale of colours: it fits a light and a dark page.
    share = alt.FillOpacity("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0, 1]))
    cells = chart.mark_rect(fill=BLUE).encode(fillOpacity=share)
    counts = chart.mark_text(fontSize=11).transform_filter("datum.count > 0")
    counts = counts.encode(
        text="count:Q", color=alt.condition("datum.share > 0.85", alt.value("white"), alt.value(INK))
    )
    described = "confusion matrix: true classes in rows, predicted ones in columns, counts of test pictures"
    return (cells + counts).properties(description=described)


def decade(values: list[float]) -> list[float]:
    """Returns what a logarithmic scale must hold at least: ten times its beginning, lest equal costs look different."""
    low, high = min(values), max(values)
    middle = (low * high) ** 0.5
    return [min(low, middle / 10**0.5), max(high, middle * 10**0.5)]


def cost(name: str, backbones: list[str], span: list[float] | None = None) -> alt.LayerChart:
    """Draws accuracy with its 95 % interval against a cost, and the Pareto front within each setting.

    `span` is what the scale of the cost holds at least.
    """
    chart = alt.Chart(ROWS).transform_filter(f"isValid(datum.{name}) && datum.{name} > 0")
    domain = {"domain": {"unionWith": span}} if span else {}
    x = alt.X(f"{name}:Q", title=COSTS[name], scale=alt.Scale(type="log", nice=False, padding=14, **domain))
    x = x.axis(format="~s" if name == "params" else "~g", tickCount=5, labelOverlap=True)
    y = alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format=".2f"))
    looks = [LOOKS.get(backbone, ("#888888", "cross")) for backbone in backbones]
    colours = alt.Scale(domain=backbones, range=[colour for colour, _ in looks])
    shapes = alt.Scale(domain=backbones, range=[shape for _, shape in looks])
    hints = [alt.Tooltip(f"{field}:N", title=field) for field in ("run", "backbone", "setting")]
    hints += [alt.Tooltip(f"{field}:Q", format=".3f") for field in ("accuracy", "low", "high")]
    hints += [alt.Tooltip(f"{name}:Q", title=COSTS[name], format=",")]
    spans = chart.mark_rule(opacity=0.3, color=INK, aria=False).encode(
        x=x, y=alt.Y("low:Q", title="test accuracy"), y2="high:Q"
    )
    points = chart.mark_point(filled=True, size=70, opacity=0.95, cursor="pointer").encode(
        x=x,
        y=y,
        color=alt.Color("backbone:N", scale=colours, legend=LEGEND),
        shape=alt.Shape("backbone:N", scale=shapes, legend=LEGEND),
        href="href:N",
        tooltip=hints,
    )
    # On the front is who beats all that cost less or the same: the best so far is compared with the best before.
    sort = [alt.SortField(name), alt.SortField("accuracy", order="descending")]
    order = {"groupby": ["setting"], "sort": sort, "ignorePeers": True, "frame": [None, 0]}
    front = chart.transform_window([alt.WindowFieldDef(op="max", field="accuracy", **{"as": "best"})], **order)
    front = front.transform_window([alt.WindowFieldDef(op="lag", field="best", **{"as": "before"})], **order)
    front = front.transform_filter("!isValid(datum.before) || datum.accuracy > datum.before")
    steps = front.mark_line(interpolate="step-after", strokeWidth=1.2, color=INK, opacity=0.7, aria=False)
    rings = front.mark_point(size=190, color=INK, strokeWidth=1.4, filled=False, aria=False).encode(x=x, y=y)
    described = f"test accuracy against {COSTS[name]}; the runs of the table above, with their Pareto front"
    layers = spans + steps.encode(x=x, y=y, detail="setting:N") + rings + points
    return layers.properties(width="container", height=300, description=described)


def render(settings: aux.Settings, pictures: bool = False) -> str:
    """Returns the page as HTML; raises StudyError where there are no results or one cannot be read."""
    table = collect(settings)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    for row in rows:
        row["details"] = details(settings, row, pictures)
        row["notebook"], row["backbone"] = _origin(row)
    done = [row for row in rows if row["measured"]]
    costs = [name for name in COSTS if any(row.get(name) for row in done)]
    charts = {name: curve(name) for name in CURVES} | {"confusion": confusion()}
    backbones = sorted({row["backbone"] for row in done}, key=_place)
    spans = {name: decade([row[name] for row in done if row.get(name)]) for name in costs}
    charts |= {name: cost(name, backbones, spans[name]) for name in costs}
    names = {"run": "model_id", "accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    names |= {name: name for name in ("id", "backbone", "setting", *costs)}
    points = [{"href": f"#{row['id']}"} | {new: row[old] for new, old in names.items()} for row in done]
    bundle = Path(itables.__file__).parent / "html"
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, **options)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("report.html.j2").render(
        rows=rows,
        done=done,
        groups=_groups(table),
        costs={name: COSTS[name] for name in costs},
        charts={name: chart.to_dict() for name, chart in charts.items()},
        points=points,
        filters={
            name: sorted({row[name] or "" for row in rows} - {""}) for name in ("notebook", "backbone", "dataset")
        },
        root="" if settings.root == aux.REPOSITORY else aux.short(settings.root),
        vega=vl_convert.javascript_bundle(vl_version=VEGA_LITE),
        tables=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
        tables_css=(bundle / "dt_bundle.css").read_text(encoding="utf-8"),
    )


def _origin(row: Mapping) -> tuple[str, str]:
    """Returns a run's notebook and backbone: as published, as its folder says, or as its weights tell."""
    if row["notebook"]:
        return row["notebook"], row["backbone"] or HAND_BUILT
    network = row["details"]["facts"].get("Network", {})
    if network.get("type", "CNN" if row["weights"] == "none" else "") == "CNN":
        return "02", HAND_BUILT
    told, is_file, _ = str(row["weights"]).partition(".weights.h5")
    return "03", network.get("backbone") or (told if is_file else "unknown")


def _place(backbone: str) -> int:
    return [*LOOKS, backbone].index(backbone)


def _groups(table: pd.DataFrame) -> list[dict]:
    """Returns a row a setting: how many runs it has, and which is the best of them."""
    done = table[table.measured]
    counts = done.setting.value_counts()
    best = done.loc[done.groupby("setting").accuracy.idxmax()].set_index("setting")
    return [best.loc[setting].to_dict() | {"setting": setting, "runs": int(n)} for setting, n in counts.items()]


def main() -> None:
    """Writes the page; ends with a line that says what is wrong if it cannot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=REPORT, help="the page to write (%(default)s)")
    parser.add_argument("--pictures", action="store_true", help="embed small copies of pictures that runs got wrong")
    arguments = parser.parse_args()
    try:
        page = render(aux.Settings.from_environment(), arguments.pictures)
    except aux.StudyError as error:
        sys.exit(str(error))
    with aux.whole_file(arguments.output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    print(f"{aux.short(arguments.output.resolve())}: {len(page.encode('utf-8', 'replace')) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
