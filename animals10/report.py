"""The report page: all stored runs as a table, as charts, and each in a view of its own.

The page contains all that it needs, libraries included, and requests nothing from the network. It is made from
`results.csv` and the folders in `models/` and `study/` alone; nothing is trained or predicted. To add a column to its
table, edit the template `report.html.j2`; the views show all fields of `results.ResultRow`.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import itables
import jinja2
import pandas as pd
import vl_convert

from animals10.catalogue import CATALOGUE
from animals10.files import REPOSITORY, atomic_write, display_path, refuse_to_replace
from animals10.report_charts import (
    COSTS,
    CURVES,
    FROM_SCRATCH,
    VEGA_LITE,
    at_least_a_decade,
    confusion_chart,
    cost_chart,
    coverage_chart,
    curves_of_two,
    learning_curve,
    position,
    reliability_chart,
)
from animals10.report_map import map_section
from animals10.report_runs import TITLES, run_details, text
from animals10.results import PUBLISHED_KEY, published_table, results_table
from animals10.runs import STUDY, dataset_in_words, run_labels
from animals10.settings import Settings

MARK = 'name="generator" content="animals10"'  # of each page
REPORT = REPOSITORY / "build" / "report" / "report.html"
SPLITS = {
    "grouped": "near-duplicates are in the same part",
    "published": "each image is drawn on its own, as the original study did",
    "given": "it came with the images",
    "own": "its tables were made by hand",
}
DATASETS = {"animals10": "Animals-10", "animals10-part": "Part of Animals-10", "sample": "Sample drawings"}
# Backbones that the runs in `study/` lack, and why.
UNAVAILABLE = dict.fromkeys(("ResNet50V2", "EfficientNetV2S"), "their ImageNet weights could not be had")

FILTERS = ("notebook", "backbone", "dataset", "split")
OWN, OF_THE_STUDY = "Runs of your own", "Runs of the study"
SHOWN = "learning_rate epochs dataset split".split()  # what tells runs apart and has a column in the page's table


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
    charts: dict[str, Any] = {name: learning_curve(name) for name in CURVES}
    charts |= {"confusion": confusion_chart(), "reliability": reliability_chart(), "coverage": coverage_chart()}
    charts |= {f"{name}-of-two": curves_of_two(name) for name in CURVES}
    backbones = sorted({row["backbone"] for row in measured}, key=position)
    limits = {name: at_least_a_decade([row[name] for row in measured if row.get(name)]) for name in costs}
    charts |= {name: cost_chart(name, backbones, limits[name]) for name in costs}
    specifications = {name: chart.to_dict() for name, chart in charts.items()}
    if found_map := map_section(settings):
        specifications["map"] = found_map.pop("chart")
    names = {"run": "label", "accuracy": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    names |= {name: name for name in ("id", "backbone", "setting", "device", *costs)}
    points = [{"href": f"#{row['id']}"} | {new: row[old] for new, old in names.items()} for row in measured]
    groups = _groups(table)
    largest = groups[0]["dataset"] if groups else ""
    found = {heading: [row for row in rows if row["heading"] == heading] for heading in (OWN, OF_THE_STUDY)}
    bundle = Path(itables.__file__).parent / "html"
    return load_template("report.html.j2").render(
        title=f"{DATASETS.get(largest, largest)}: runs and results" if largest else "Runs and results",
        rows=rows,
        tables={heading: some for heading, some in found.items() if some},
        of_the_study=OF_THE_STUDY,
        measured=measured,
        groups=groups,
        data=list(dict.fromkeys(dataset_in_words(group) for group in groups)),
        splits=SPLITS,
        study=(settings.root / STUDY).is_dir(),
        unavailable=_unavailable(settings, rows),
        is_compared=bool(table.agreement.str.contains("significantly").any()),
        largest=largest,
        costs={name: COSTS[name] for name in costs},
        charts=specifications,
        map=found_map,
        points=points,
        filters={name: sorted({row[name] or "" for row in rows} - {""}) for name in FILTERS},
        titles=TITLES,
        home=home,
        root="" if settings.root == REPOSITORY else display_path(settings.root),
        vega=vl_convert.javascript_bundle(vl_version=VEGA_LITE),  # type: ignore[call-arg]  # its stub requires more
        datatables=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
        datatables_css=(bundle / "dt_bundle.css").read_text(encoding="utf-8"),
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
        (data set, share of Animals-10, label corrections, split, whether weights are random and epochs capped: runs of
        one setting can be compared), `heading` (`OWN` if the catalogue does not hold the run's id), `notebook`,
        `backbone`, `label` (unique), `short_label` (what the columns `SHOWN` do not tell) and `id`, which names the row
        in the page. Runs that are not measured come last.

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
    is_own = table.measured & ~table.model_id.isin([experiment.id for experiment in CATALOGUE])
    table["heading"] = is_own.map({True: OWN, False: OF_THE_STUDY})
    table["setting"] = [_setting(row) if row["measured"] else "not measured" for row in table.to_dict("records")]
    return table


def _setting(row: Mapping[str, Any]) -> str:
    """Returns in words what two runs must share to be compared."""
    split = text(row["split"]) and f", {row['split']} split"
    weights = ", random weights" if row["weights"] == "random" else ""
    return dataset_in_words(row) + split + weights + (", maximum epochs capped" if pd.notna(row["epochs_cap"]) else "")


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
