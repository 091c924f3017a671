"""The figure and the tables of README.md and docs/results.md, written from results.csv and the published results.

Each stands between two comments, its marks. README.md shows the best of each family, docs/results.md all runs.
"""

import io
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from animals10.catalogue import CATALOGUE
from animals10.files import REPOSITORY, UserError, atomic_write, display_path
from animals10.models import Transfer
from animals10.plots import BLUE, GREY, ORANGE, STYLE
from animals10.results import published_table, results_table
from animals10.runs import RunKey
from animals10.settings import Settings

README = REPOSITORY / "README.md"
ALL_RESULTS = REPOSITORY / "docs" / "results.md"
FIGURE = REPOSITORY / "data" / "results.svg"
MARKS = {
    name: (f"<!-- {name}: written by `make readme` -->", f"<!-- end of {name} -->") for name in ("figure", "results")
}
CNN_FAMILY = "CNN trained from scratch"
FONTS = ["DejaVu Sans", "Verdana", "Arial", "sans-serif"]
NUMBER = {"textcoords": "offset points", "ha": "center", "fontweight": "bold"}


def write_readme(settings: Settings | None = None) -> None:
    """Writes the figure, and the parts of README.md and docs/results.md that show results.

    Args:
        settings: The settings of the workspace whose results are shown; the repository's own by default.

    Raises:
        UserError: README.md or docs/results.md is missing or lacks a mark, or a file cannot be written.
    """
    settings = settings or repository_settings()
    texts = {path: updated_text(path, settings) for path in (README, ALL_RESULTS)}
    texts[FIGURE] = draw(published_and_measured(settings))
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def repository_settings() -> Settings:
    """Returns settings whose workspace is the repository itself, which holds the results that README shows."""
    return Settings(root=REPOSITORY, raw=REPOSITORY / "data" / "raw-img")


def updated_text(path: Path, settings: Settings) -> str:
    """Returns the text of README.md or docs/results.md with its marked parts written anew.

    Raises:
        UserError: The file is missing or lacks a mark.
    """
    if not path.exists():
        raise UserError(f"There is no {display_path(path)}: restore it (git restore {display_path(path)}).")
    text, table = path.read_text(encoding="utf-8"), published_and_measured(settings)
    figure = f"![{alternative_text(table)}]({Path(os.path.relpath(FIGURE, path.parent)).as_posix()})"
    parts = {"figure": figure, "results": best_of_families(settings) if path == README else all_runs(table)}
    for name, (begin, end) in MARKS.items():
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UserError(f"{display_path(path)} must hold once each: {begin} and {end}.")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{parts[name]}\n\n{end}{rest.split(end)[1]}"
    return text


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def published_and_measured(settings: Settings) -> pd.DataFrame:
    """Returns `results.published_table` with a column `family`: the backbone, or that it is a CNN from scratch."""
    table = published_table(settings)
    return table.assign(family=table.backbone.fillna(CNN_FAMILY))


def all_runs(table: pd.DataFrame) -> str:
    """Returns the table of `published_and_measured` in Markdown, one row per published run."""
    columns = {
        "run": "`" + table.model_id + "`" + table.repetition.map({1: "", 2: " (repetition 2)"}),
        "learning rate": table.learning_rate.map("{:g}".format),
        "maximum epochs": table.epochs,
        "published": table.accuracy.map("{:.3f}".format),
        "measured": table.accuracy_measured.map("{:.3f}".format),
        "95 % interval": _interval(table),
        "epochs run": table.epochs_run.astype("Int64"),
        "measured on": table.dataset,
    }
    return _markdown(pd.DataFrame(columns))


def best_of_families(settings: Settings) -> str:
    """Returns a short table in Markdown: the best published and the best measured run of each family.

    The best published run is that with the highest published test accuracy. The best measured run is chosen by
    validation accuracy among the family's runs of the catalogue on the largest test set; runs with random weights are
    left out.
    """
    table = published_and_measured(settings)
    published = table.loc[table.groupby("family", sort=False).accuracy.idxmax()].set_index("family")
    measured = _best_measured(settings).reindex(published.index)
    columns = {
        "family": published.index,
        "best published run": "`" + published.model_id + "`",
        "published": published.accuracy.map("{:.3f}".format),
        "best measured run": "`" + measured.model_id + "`",
        "measured": measured.accuracy.map("{:.3f}".format),
        "95 % interval": _interval(measured),
        "test images": measured.n_test.map("{:,.0f}".format),
        "measured on": measured.dataset,
    }
    return _markdown(pd.DataFrame(columns))


def _best_measured(settings: Settings) -> pd.DataFrame:
    """Returns the row of `results.csv` with the best validation accuracy of each family, indexed by family."""
    families = {one.key: one.model.backbone if isinstance(one.model, Transfer) else CNN_FAMILY for one in CATALOGUE}
    columns = ["family", "model_id", "accuracy", "accuracy_low", "accuracy_high", "n_test", "dataset"]
    if not settings.results.exists():
        return pd.DataFrame(columns=columns).set_index("family")
    rows = results_table(settings)  # best validation accuracy first
    rows["family"] = [families.get(RunKey(*key)) for key in zip(*(rows[name] for name in RunKey._fields), strict=True)]
    is_candidate = rows.family.notna() & rows.acc_val.notna() & rows.image_size.eq(settings.image_size)
    rows = rows[is_candidate & rows.weights.ne("random")]
    rows = rows[rows.n_test == rows.groupby("family").n_test.transform("max")]
    return rows.drop_duplicates("family")[columns].set_index("family")


def _interval(table: pd.DataFrame) -> pd.Series:
    """Returns the 95 % interval of the measured accuracy in words; missing where nothing was measured."""
    words = table.accuracy_low.map("{:.3f}".format) + " to " + table.accuracy_high.map("{:.3f}".format)
    return words.where(table.accuracy_low.notna())


def _markdown(table: pd.DataFrame) -> str:
    table = table.astype("str").replace({"nan": "–", "<NA>": "–"}).fillna("–")
    return table.to_markdown(index=False, disable_numparse=True)


# ── The figure ───────────────────────────────────────────────────────────────────────────────────────────────────────


def drawn_values(table: pd.DataFrame) -> str:
    """Returns the values that the figure shows as csv. The figure carries them, so that a test can compare."""
    shown = table[["model_id", "accuracy", "acc_val_measured", "accuracy_measured", "accuracy_low", "accuracy_high"]]
    return shown.to_csv(index=False, float_format="%.3f", lineterminator="\n").strip()


def values_in(svg: str) -> str:
    """Returns the values from which a figure was drawn, see `drawn_values`."""
    found = re.search("<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    return found[1] if found else ""


def alternative_text(table: pd.DataFrame) -> str:
    """Returns the figure in words: lowest and highest accuracy of each family, without untrained models."""

    def ranges(column: str) -> str:
        groups = table[table.epochs > 0].groupby("family", sort=False)[column].agg(["min", "max"]).dropna()
        return ", ".join(f"{family} {low:.3f} to {high:.3f}" for family, low, high in groups.itertuples())

    text = f"Test accuracy of the {len(table)} published runs. Published, on all of Animals-10: {ranges('accuracy')}."
    return f"{text} Measured on {_measured_on(table)}: {ranges('accuracy_measured') or 'none'}."


def _measured_on(table: pd.DataFrame) -> str:
    """Returns the data sets of the measured runs in words."""
    data = table[["dataset", "n_test"]].dropna().drop_duplicates()
    return " and ".join(f"{row.dataset} ({row.n_test:,.0f} test images)" for row in data.itertuples()) or "nothing yet"


@STYLE
def draw(table: pd.DataFrame) -> str:
    """Returns the figure as SVG: published and measured accuracy by family, measured ones with their 95 % interval.

    Args:
        table: See `published_and_measured`.
    """
    families, values = list(table.family.unique()), drawn_values(table)
    table = table.sort_values("family", key=lambda names: names.map(families.index), kind="stable", ignore_index=True)
    place = table.index + 4 * table.family.map(families.index)  # with a gap between families
    figure, axis = plt.subplots(figsize=(9.4, 4.4), layout="constrained")
    axis.vlines(place, table.accuracy_low, table.accuracy_high, color=BLUE, alpha=0.4, linewidth=4)
    label = f"measured on {_measured_on(table)}, with 95 % interval"
    axis.plot(place, table.accuracy_measured, "o", color=BLUE, markersize=5.5, label=label)
    hollow = {"markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 6.5}
    axis.plot(place, table.accuracy, "D", color=ORANGE, **hollow, label="published, on all of Animals-10")
    axis.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="chance")
    _annotate(axis, table, place)
    counts = table.family.value_counts()
    axis.set_xticks(
        [place[table.family == family].mean() for family in families],
        [f"{family}\n{counts[family]} runs" for family in families],
    )
    axis.tick_params(axis="x", length=0)
    axis.set(ylim=(-0.02, 1.06), ylabel="test accuracy", yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    plt.close(figure)
    svg_style = {"svg.fonttype": "none", "svg.hashsalt": "animals10", "font.family": FONTS}
    with plt.rc_context(svg_style), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": values})
        return file.getvalue()


def _annotate(axis: plt.Axes, table: pd.DataFrame, place: pd.Series) -> None:
    """Writes the accuracies of each family's best published and best measured run, and marks untrained models.

    The best measured run is the one with the highest validation accuracy, the earliest among equals.
    """
    for _, rows in table.groupby("family"):
        best = rows.accuracy.idxmax()
        axis.annotate(f"{rows.accuracy[best]:.3f}", (place[best], rows.accuracy[best]), (0, 7), color=ORANGE, **NUMBER)
        measured = rows.dropna(subset="acc_val_measured")
        if len(measured):
            order = {"by": ["acc_val_measured", "time_measured"], "ascending": [False, True]}
            best = measured.sort_values(**order).index[0]
            point = place[best], rows.accuracy_high[best]
            axis.annotate(f"{rows.accuracy_measured[best]:.3f}", point, (0, 3), color=BLUE, **NUMBER)
    for row in table[table.epochs == 0].itertuples():
        axis.annotate("untrained", (place[row.Index], row.accuracy), (8, -3), textcoords="offset points", color=GREY)
