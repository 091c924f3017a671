"""The results that are printed after the notebooks: one table that fits a terminal, and what to do next."""

import textwrap
from collections.abc import Sequence

import pandas as pd

from animals10.files import REPOSITORY, UserError, display_path
from animals10.results import published_table, results_table
from animals10.runs import run_labels, run_of_row
from animals10.settings import Settings

WIDTH = 100  # columns of a terminal that the table fits
HOW_TO_READ = "A run has learned something if its 95 % interval lies above chance. Runs whose intervals overlap may be "
HOW_TO_READ += "equally good. Validation accuracy, not test accuracy, decides which run is best."
RANDOM = "Runs with random weights started from a backbone that knows nothing: their results mean nothing."


def print_results(settings: Settings) -> None:
    """Prints all runs of a workspace, best validation accuracy first, in at most 100 columns.

    Above the table stands how to read it, and below it what to do next.
    """
    if not settings.results.exists():
        print(f"There is no {display_path(settings.results)}: no run is trained yet.")
        return
    results = results_table(settings)
    if settings.profile == "sample":  # the tour caps all epochs
        results = results.sort_values("acc_val", ascending=False, kind="stable", na_position="last")
    title = f"{len(results)} run{'s' * (len(results) != 1)} of {display_path(settings.results)}"
    about = f"{title}, best validation accuracy first. {_test_images(results)} {HOW_TO_READ}"
    about += f" {RANDOM}" * bool((results.weights == "random").any())
    print("\n" + textwrap.fill(about, WIDTH, break_on_hyphens=False, break_long_words=False))
    print("\n" + "\n".join(_lines(_columns(settings, results))))
    print(f"\n{_next_step(settings)}")


def _test_images(results: pd.DataFrame) -> str:
    counts = sorted(set(results.n_test.dropna().astype(int)))
    return f"Test accuracies stand on {' or '.join(f'{count:,}' for count in counts)} images." if counts else ""


def _columns(settings: Settings, results: pd.DataFrame) -> dict[str, list[str]]:
    """Returns the texts of the table: its titles, each with one text per run."""
    published = published_table(settings, results)
    is_compared = published.run_id.notna() & ~published.agreement.str.startswith("not compared")
    published = published[is_compared].set_index("run_id").accuracy
    interval = [f"{low:.3f} to {high:.3f}" for low, high in zip(results.accuracy_low, results.accuracy_high)]
    columns = {
        "run": run_labels(results),
        "validation": _numbers(results.acc_val),
        "test": _numbers(results.accuracy),
        "95 % interval": interval,
        "chance": _numbers(results.apply(lambda row: _chance(settings, row), axis=1)),
        "published": _numbers(results.run_id.map(published)),
        "weights": [name if name in ("none", "random", "imagenet") else "file" for name in results.weights.astype(str)],
    }
    return columns if any(text != "–" for text in columns["published"]) else columns | {"published": []}


def _numbers(values: pd.Series) -> list[str]:
    return ["–" if pd.isna(value) else f"{value:.3f}" for value in values]


def _chance(settings: Settings, row: pd.Series) -> float | None:
    """Returns the accuracy of guessing; None if the files of the run are missing."""
    try:
        return 1 / len(run_of_row(settings.root, str(row.model_id), str(row.run_id)).record["class_names"])
    except UserError:
        return None


def _lines(columns: dict[str, list[str]]) -> list[str]:
    """Returns the lines of a table; a long name of a run takes several."""
    columns = {title: texts for title, texts in columns.items() if texts}
    widths = {title: max(map(len, [title, *texts])) for title, texts in columns.items()}
    others = sum(width + 2 for title, width in widths.items() if title != "run")
    widths["run"] = min(widths["run"], WIDTH - others)
    lines = [_line(widths, list(columns))]
    for run, *texts in zip(*columns.values(), strict=True):
        first, *rest = textwrap.wrap(run, widths["run"], subsequent_indent="  ")
        lines += [_line(widths, [first, *texts]), *rest]
    return lines


def _line(widths: dict[str, int], texts: Sequence[str]) -> str:
    first, *rest = zip(texts, widths.values(), strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in rest)])


def _next_step(settings: Settings) -> str:
    if settings.profile == "full":
        root = "" if settings.root == REPOSITORY else f" ROOT={display_path(settings.root)}"
        return f"Next: `make report{root}` shows all runs on one page."
    return "Next: your images: `make full RAW=folder ROOT=build/mine`; Animals-10: `make data`, `make quick`."
