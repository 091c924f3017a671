"""The figure, and the tables of README.md, docs/results.md and the notebooks' texts, written from results.csv.

In README.md and docs/results.md, each stands between two comments, its marks. README.md shows the best of each family,
docs/results.md all runs. The notebooks' tables have a row for each experiment, in the order of the catalogue.
"""

import io
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd

from animals10.catalogue import CATALOGUE
from animals10.files import REPOSITORY, UserError, atomic_write, display_path, reading, refuse_to_replace
from animals10.leakage_results import DIFFERENCE, leakage_results
from animals10.models import Transfer
from animals10.notebooks import read_notebook
from animals10.plots import BLUE, ORANGE, STYLE
from animals10.results import is_other, no_results, published_runs, published_table, results_table
from animals10.runs import RunKey, run_labels
from animals10.settings import NOTEBOOKS, Settings

README = REPOSITORY / "README.md"
ALL_RESULTS = REPOSITORY / "docs" / "results.md"
FIGURE = REPOSITORY / "data" / "results.svg"
FIGURE_MARK = "model_id,accuracy"  # of the values that the figure carries, see `drawn_values`
SPLITS = ("published", "grouped")
KEY = list(RunKey._fields)
CNN_FAMILY = "CNN trained from scratch"
FONTS = ["DejaVu Sans", "Verdana", "Arial", "sans-serif"]
NUMBER = {"textcoords": "offset points", "ha": "center", "fontweight": "bold"}


def write_readme(settings: Settings | None = None) -> None:
    """Writes the figure, and the parts of README.md, docs/results.md and the notebooks' texts that show results.

    Args:
        settings: The settings of the workspace whose results are shown; the repository's own by default.

    Raises:
        UserError: README.md or docs/results.md is missing or lacks a mark, a notebook lacks an experiment, the figure
            is one of your own, or a file cannot be written.
    """
    refuse_to_replace(FIGURE, FIGURE_MARK, "make readme")
    settings = settings or repository_settings()
    texts = {path: updated_text(path, settings) for path in (README, ALL_RESULTS)}
    texts |= updated_notebooks(settings)
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
    with reading(path, "cannot be read"):
        text = path.read_text(encoding="utf-8")
    table = published_and_measured(settings)
    figure = f"![{alternative_text(table)}]({Path(os.path.relpath(FIGURE, path.parent)).as_posix()})"
    parts = {"figure": figure}
    if path == README:
        parts |= {"results": best_of_families(settings), "near-duplicates": near_duplicates(leakage_results())}
    else:
        parts |= {"results": all_runs(settings), "repetitions": repeated_runs(settings)}
    for name, part in parts.items():
        begin, end = f"<!-- {name}: written by `make readme` -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise UserError(f"{display_path(path)} must hold once each: {begin} and {end}.")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return text


# ── Tables ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def study_rows(settings: Settings) -> pd.DataFrame:
    """Returns the rows of `results.results_table` that count: on Animals-10, at the settings' image size, in full.

    Runs with random weights, trials with a cap on epochs, and runs that were configured in another way than the
    catalogue's experiment of their name are left out. Of several runs of one experiment on one split, the latest
    counts.
    """
    if not settings.results.exists():
        return no_results()
    rows = results_table(settings)
    rows = rows[rows.dataset.eq("animals10") & rows.image_size.eq(settings.image_size)]
    rows = rows[rows.epochs_cap.isna() & rows.weights.ne("random")]
    rows = rows[~is_other(settings.root, rows)]
    return rows[~rows.sort_values("time").duplicated([*KEY, "split"], keep="last").reindex(rows.index)]


def published_and_measured(settings: Settings) -> pd.DataFrame:
    """Returns `results.published_table` of `study_rows`, with a column `family`: the backbone, or that it is a CNN."""
    table = published_table(settings, study_rows(settings))
    return table.assign(family=table.backbone.fillna(CNN_FAMILY))


def all_runs(settings: Settings) -> str:
    """Returns the table of all published runs in Markdown, and the number of comparisons in words."""
    table, accuracies = published_and_measured(settings), _accuracies(study_rows(settings))
    difference = table.difference.map("{:+.3f}".format) + _interval(table, "difference")
    on_gpu = table.device.notna() & ~table.device.astype("str").str.startswith("CPU")
    times = table.train_seconds.map(_duration, na_action="ignore") + on_gpu.map({True: " (GPU)", False: ""})
    compared = table.difference_low.notna()
    found = table[KEY].join(accuracies, on=KEY).fillna("not measured")
    columns = {
        "run": "`" + table.model_id + "`" + table.repetition.map({1: "", 2: " (repetition 2)"}),
        "learning rate": table.learning_rate.map("{:g}".format),
        "maximum epochs": table.epochs,
        "published": table.accuracy.map("{:.3f}".format),
        **{f"{split} split": found[split] for split in SPLITS},
        "training time": times,
        "difference": difference.where(compared),
        "agreement": table.agreement.where(compared),
    }
    level = f"0.05 / {compared.sum()}"
    return (
        f"{_markdown(pd.DataFrame(columns))}\n\nLevel of significance: {level} (Bonferroni). {data_sentence(settings)}"
    )


def repeated_runs(settings: Settings) -> str:
    """Returns the table of the experiments that were repeated or never published in Markdown: mean and spread."""
    rows, lines = study_rows(settings), []
    published = published_runs(settings)[KEY[:3]].itertuples(index=False, name=None)
    published_keys = set(published)
    for (*key, split), runs in rows.groupby([*KEY[:3], "split"]):
        if len(runs) == 1 and tuple(key) in published_keys:
            continue
        runs = runs.sort_values("repetition")
        lines.append(
            {
                "run": f"`{key[0]}`",
                "learning rate": f"{key[1]:g}",
                "maximum epochs": key[2],
                "split": split,
                "test accuracies": ", ".join(runs.accuracy.map("{:.4f}".format)),
                "mean": f"{runs.accuracy.mean():.4f}",
                "standard deviation": f"{runs.accuracy.std():.4f}" if len(runs) > 1 else None,
            }
        )
    return _markdown(pd.DataFrame(lines)) if lines else "Nothing was repeated yet."


def best_of_families(settings: Settings) -> str:
    """Returns a short table in Markdown: the best published and the best measured run of each family, on both splits.

    The best published run is that with the highest published test accuracy. The best measured run has the highest
    validation accuracy on the grouped split, among first repetitions of the catalogue's experiments.
    """
    families = {one.key: one.model.backbone if isinstance(one.model, Transfer) else CNN_FAMILY for one in CATALOGUE}
    rows, table = study_rows(settings), published_and_measured(settings)
    rows["key"] = [RunKey(*values) for values in zip(*(rows[name] for name in KEY), strict=True)]
    candidates = rows[rows.split.eq("grouped") & rows.repetition.eq(1) & rows.acc_val.notna()]
    published, accuracies = table.set_index(KEY).accuracy.map("{:.3f}".format), _accuracies(rows)
    lines = []
    for family, runs in table.groupby("family", sort=False):
        best = {RunKey(*runs.loc[runs.accuracy.idxmax(), KEY]): "published"}
        for key in candidates.key[candidates.key.map(families.get) == family].head(1):  # best validation first
            best[key] = "published and measured" if key in best else "measured"
        for (key, words), name in zip(best.items(), run_labels([key._asdict() for key in best]), strict=True):
            line = {"family": family, "run": f"`{name}`", "best": words, "published": published.get(key)}
            lines.append(line | {f"{split} split": accuracies[split].get(key, "not measured") for split in SPLITS})
    return f"{_markdown(pd.DataFrame(lines))}\n\n{data_sentence(settings)}"


def near_duplicates(results: pd.DataFrame) -> str:
    """Returns what `make leakage` measured, in words.

    Args:
        results: See `leakage_results.leakage_results`.
    """
    rows = results[results.split == "published"]
    observed = rows[rows.part == "observed"].groupby("test_images")
    n, low, high = observed.n.first(), observed.accuracy.min(), observed.accuracy.max()
    ranges = {name: f"{low[name]:.3f} to {high[name]:.3f}" for name in ("leaked", "others")}
    probe = rows[(rows.model_id == "mobnet2_linear_probe") & (rows.condition == DIFFERENCE)].set_index("test_images")
    n_runs = len(observed.get_group("all"))
    worth, on_all = probe.loc["leaked"], probe.accuracy["leaked"] * n.leaked / n["all"]
    return (
        f"**Near-duplicates.** In a random split such as the original study's, {n.leaked:,} of {n['all']:,} test "
        f"images ({100 * n.leaked / n['all']:.1f} %) have a near-duplicate in the training set, and {n_runs} "
        f"trained runs are more accurate on these images ({ranges['leaked']}) than on the others ({ranges['others']}). "
        f"Only a part of this is leakage: trained again without the near-duplicates, a linear probe loses "
        f"{worth.accuracy:.3f} on these images (95 % interval {worth.low:.3f} to {worth.high:.3f}), which is "
        f"{on_all:.3f} on all test images. Images with near-duplicates are also easier than others."
    )


def data_sentence(settings: Settings) -> str:
    """Returns on which data the rows that count were measured, in words."""
    rows = study_rows(settings)
    if rows.empty:
        return "Nothing is measured yet."
    shares = " and ".join(sorted(rows.data_share.unique()))
    sizes = rows.groupby("split").n_test.unique().map(lambda counts: " or ".join(f"{n:,}" for n in sorted(counts)))
    parts = ", ".join(f"{count} test images on the {split} split" for split, count in sizes.items())
    return f"Measured on {shares} images of Animals-10: {parts}."


def _accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the test accuracies with their intervals in words, by key; one column per split."""
    texts = rows.accuracy.map("{:.3f}".format).astype("str") + _interval(rows, "accuracy")
    return (
        rows.assign(text=texts)
        .pivot(index=KEY, columns="split", values="text")
        .reindex(columns=[*SPLITS])
        .fillna("not measured")
    )


def _interval(table: pd.DataFrame, name: str) -> pd.Series:
    """Returns the 95 % interval of a column in words."""
    low, high = (table[f"{name}_{end}"].map("{:.3f}".format).astype("str") for end in ("low", "high"))
    return " (" + low + " to " + high + ")"


def _duration(seconds: float) -> str:
    """Returns a duration in words."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _markdown(table: pd.DataFrame) -> str:
    table = table.astype("str").replace({"nan": "–", "<NA>": "–", "None": "–"}).fillna("–")
    return table.to_markdown(index=False, disable_numparse=True)


# ── Notebooks ────────────────────────────────────────────────────────────────────────────────────────────────────────

EXPERIMENT = re.compile(r"^\| `(?P<id>[^`]+)` \| (?P<question>[^|]*) \| [^|]* \| [^|]* \|", re.MULTILINE)


def updated_notebooks(settings: Settings) -> dict[Path, str]:
    """Returns the text of notebooks 02 and 03 with the published and measured accuracies in their tables written anew.

    A row of such a table begins with the id, the question, the published and the measured test accuracy; measured is
    the one on the grouped split.

    Raises:
        UserError: The rows of the tables are not the experiments of the catalogue, in its order.
    """
    published = published_and_measured(settings).set_index(KEY).accuracy.map("{:.3f}".format)
    rows = study_rows(settings)
    measured = rows[rows.split == "grouped"].set_index(KEY).accuracy.map("{:.3f}".format)
    experiments, texts = iter(CATALOGUE), {}

    def filled(row: re.Match) -> str:
        experiment = next(experiments, None)
        if experiment is None or experiment.id != row["id"]:
            found, wanted = row["id"], experiment.id if experiment else "the end"
            raise UserError(f"The notebooks' tables have a row of {found} where the catalogue has {wanted}.")
        cells = published.get(experiment.key, "–"), measured.get(experiment.key, "not measured")
        return f"| `{row['id']}` | {row['question']} | {' | '.join(cells)} |"

    for path in (REPOSITORY / name for name in NOTEBOOKS[1:]):
        notebook = read_notebook(path)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = EXPERIMENT.sub(filled, cell.source)
        texts[path] = nbformat.writes(notebook) + "\n"
    if left := next(experiments, None):
        raise UserError(f"The notebooks' tables lack a row of {left.id}.")
    return texts


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
        texts = {family: [f"{value:.3f}" for value in (low, high)] for family, low, high in groups.itertuples()}
        return ", ".join(f"{family} {' to '.join(dict.fromkeys(ends))}" for family, ends in texts.items())

    text = f"Test accuracy of the {(table.epochs > 0).sum()} published runs that were trained. "
    text += f"Published, on all of Animals-10: {ranges('accuracy')}. "
    return text + f"Measured on {_measured_on(table)}: {ranges('accuracy_measured') or 'none'}."


def _measured_on(table: pd.DataFrame) -> str:
    """Returns the data of the measured runs in words."""
    shares = table.data_share.dropna().unique()
    return f"{' and '.join(shares)} images" if len(shares) else "nothing yet"


@STYLE
def draw(table: pd.DataFrame) -> str:
    """Returns the figure as SVG: published and measured accuracy by family, measured ones with their 95 % interval.

    Args:
        table: See `published_and_measured`. Runs without training are left out.
    """
    families, values = list(table.family.unique()), drawn_values(table)
    table = table[table.epochs > 0]
    table = table.sort_values("family", key=lambda names: names.map(families.index), kind="stable", ignore_index=True)
    place = table.index + 4 * table.family.map(families.index)  # with a gap between families
    figure, axis = plt.subplots(figsize=(9.4, 4.4), layout="constrained")
    axis.vlines(place, table.accuracy_low, table.accuracy_high, color=BLUE, alpha=0.4, linewidth=4)
    label = f"measured on {_measured_on(table)}, with 95 % interval"
    axis.plot(place, table.accuracy_measured, "o", color=BLUE, markersize=5.5, label=label)
    hollow = {"markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 6.5}
    axis.plot(place, table.accuracy, "D", color=ORANGE, **hollow, label="published, on all of Animals-10")
    _annotate(axis, table, place)
    counts = table.family.value_counts()
    axis.set_xticks(
        [place[table.family == family].mean() for family in families],
        [f"{family}\n{counts[family]} runs" for family in families],
    )
    axis.tick_params(axis="x", length=0)
    axis.set(ylim=(0.45, 1.03), ylabel="test accuracy")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    plt.close(figure)
    svg_style = {"svg.fonttype": "none", "svg.hashsalt": "animals10", "font.family": FONTS}
    with plt.rc_context(svg_style), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": values})
        return file.getvalue()


def _annotate(axis: plt.Axes, table: pd.DataFrame, place: pd.Series) -> None:
    """Writes the accuracies of each family's best published and best measured run.

    The best measured run is the one with the highest validation accuracy, the earliest among equals.
    """
    for _, rows in table.groupby("family"):
        best, offset = rows.accuracy.idxmax(), 7
        point = place[best], rows.accuracy[best]
        measured = rows.dropna(subset="acc_val_measured")
        if len(measured):
            order = {"by": ["acc_val_measured", "time_measured"], "ascending": [False, True]}
            top = measured.sort_values(**order).index[0]
            above = place[top], rows.accuracy_high[top]
            axis.annotate(f"{rows.accuracy_measured[top]:.3f}", above, (0, 3), color=BLUE, **NUMBER)
            if top == best:  # then both values stand above the run, one over the other
                point, offset = above, 16
        axis.annotate(f"{rows.accuracy[best]:.3f}", point, (0, offset), color=ORANGE, **NUMBER)
