"""Writes README's picture and table from results.csv and data/published-results.csv, or prints the table."""

import argparse
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import pandas as pd

import auxiliary as aux
from figures import BLUE, GREY, ORANGE, STYLE

README = aux.REPOSITORY / "README.md"
PICTURE = aux.REPOSITORY / "data" / "results.svg"
MARKS = {
    name: (f"<!-- {name}: written by `make readme` -->", f"<!-- end of {name} -->") for name in ("picture", "results")
}
HAND_BUILT = "hand-built"


def joined() -> pd.DataFrame:
    """Returns the published runs in their order, with what the repository's results.csv has of each."""
    table = aux.published_table(aux.Settings(root=aux.REPOSITORY, raw=aux.REPOSITORY / "data" / "raw-img"))
    return table.assign(backbone=table.backbone.fillna(HAND_BUILT))


def render(table: pd.DataFrame) -> str:
    """Returns the table of `joined` in Markdown."""
    interval = table.accuracy_low.map("{:.3f}".format) + " to " + table.accuracy_high.map("{:.3f}".format)
    columns = {
        "run": "`" + table.model_id + "`" + table.repetition.map({1: "", 2: " (again)"}),
        "learning rate": table.learning_rate.map("{:g}".format),
        "epochs at most": table.epochs,
        "published": table.accuracy.map("{:.3f}".format),
        "measured": table.accuracy_measured.map("{:.3f}".format),
        "95 % interval": interval.where(table.run_id.notna()),
        "epochs": table.epochs_run.astype("Int64"),
        "measured on": table.dataset,
    }
    table = pd.DataFrame(columns).astype("str").replace({"nan": "–", "<NA>": "–"}).fillna("–")
    return table.to_markdown(index=False, disable_numparse=True)


# ── The picture ───────────────────────────────────────────────────────────────────────────────────────────────────────


def figures_of(table: pd.DataFrame) -> str:
    """Returns what the picture is drawn from, a line a run: the picture carries it, so that a test can compare."""
    shown = table[["model_id", "accuracy", "accuracy_measured", "accuracy_low", "accuracy_high"]]
    return shown.to_csv(index=False, float_format="%.3f", lineterminator="\n").strip()


def measured_on(table: pd.DataFrame) -> str:
    """Returns the data of the measured runs in words."""
    data = table[["dataset", "n_test"]].dropna().drop_duplicates()
    return (
        " and ".join(f"{name} ({n:,.0f} test pictures)" for name, n in zip(data.dataset, data.n_test)) or "nothing yet"
    )


def in_words(table: pd.DataFrame) -> str:
    """Tells the picture's result: the lowest and the highest accuracy of each kind of network, untrained ones aside."""

    def spans(column: str) -> str:
        groups = table[table.epochs > 0].groupby("backbone", sort=False)[column].agg(["min", "max"]).dropna()
        return ", ".join(f"{name} {low:.3f} to {high:.3f}" for name, low, high in groups.itertuples())

    words = f"Test accuracy of the study's {len(table)} networks. Published, on all of Animals-10: {spans('accuracy')}."
    return f"{words} Measured on {measured_on(table)}: {spans('accuracy_measured') or 'none'}."


@STYLE
def draw(table: pd.DataFrame) -> str:
    """Returns a picture of `joined` as SVG: accuracies by kind of network, measured ones with their 95 % interval."""
    kinds, figures = list(table.backbone.unique()), figures_of(table)
    table = table.sort_values("backbone", key=lambda names: names.map(kinds.index), kind="stable", ignore_index=True)
    place = table.index + 4 * table.backbone.map(kinds.index)  # with a gap between two kinds
    figure, axis = plt.subplots(figsize=(9.4, 4.4), layout="constrained")
    spans = {"color": BLUE, "alpha": 0.4, "linewidth": 4}
    axis.vlines(place, table.accuracy_low, table.accuracy_high, **spans)
    measured = f"measured on {measured_on(table)}, with 95 % interval"
    axis.plot(place, table.accuracy_measured, "o", color=BLUE, markersize=5.5, label=measured)
    hollow = {"markerfacecolor": "none", "markeredgewidth": 1.6, "markersize": 6.5}
    axis.plot(place, table.accuracy, "D", color=ORANGE, **hollow, label="published, on all of Animals-10")
    axis.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="chance")
    for _, rows in table.groupby("backbone"):
        best = rows.accuracy.idxmax()
        axis.annotate(f"{rows.accuracy[best]:.3f}", (place[best], rows.accuracy[best]), (0, 7), color=ORANGE, **NUMBER)
        if rows.accuracy_measured.notna().any():
            best = rows.accuracy_measured.idxmax()
            at = place[best], rows.accuracy_high[best]
            axis.annotate(f"{rows.accuracy_measured[best]:.3f}", at, (0, 3), color=BLUE, **NUMBER)
    for row in table[table.epochs == 0].itertuples():
        axis.annotate("untrained", (place[row.Index], row.accuracy), (8, -3), textcoords="offset points", color=GREY)
    counts = table.backbone.value_counts()
    names = [f"{kind}\n{counts[kind]} runs" for kind in kinds]
    axis.set_xticks([place[table.backbone == kind].mean() for kind in kinds], names)
    axis.tick_params(axis="x", length=0)
    axis.set(ylim=(-0.02, 1.06), ylabel="test accuracy", yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    plt.close(figure)
    with (
        plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "animals10", "font.family": FONTS}),
        io.StringIO() as file,
    ):
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": figures})
        return file.getvalue()


NUMBER = {"textcoords": "offset points", "ha": "center", "fontweight": "bold"}
FONTS = ["DejaVu Sans", "Verdana", "Arial", "sans-serif"]


def insert(text: str) -> str:
    """Returns README's text with the picture's words and the table between their marks."""
    table = joined()
    found = {"picture": f"![{in_words(table)}]({PICTURE.relative_to(README.parent)})", "results": render(table)}
    for name, (begin, end) in MARKS.items():
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{found[name]}\n\n{end}{rest.split(end)[1]}"
    return text


def drawn_from(svg: str) -> str:
    """Returns the figures that a picture says it was drawn from."""
    return re.search("<dc:description>(.*?)</dc:description>", svg, re.DOTALL)[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write README.md and data/results.svg")
    if parser.parse_args().write:
        README.write_text(insert(README.read_text(encoding="utf-8")), encoding="utf-8")
        PICTURE.write_text(draw(joined()), encoding="utf-8")
    else:
        print(render(joined()))
