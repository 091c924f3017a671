"""Prints the results table of README from results.csv and data/published-results.csv, or writes it into README."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import auxiliary as aux

README = aux.REPOSITORY / "README.md"
BEGIN, END = "<!-- results: written by `make readme` -->", "<!-- end of results -->"


def render() -> str:
    """Returns the table in Markdown: the published runs in their order, with what results.csv has of each."""
    settings = aux.Settings(root=aux.REPOSITORY, raw=aux.REPOSITORY / "data" / "raw-img")
    table = aux.published_table(settings)
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
    table = aux.pd.DataFrame(columns).astype("str").replace({"nan": "–", "<NA>": "–"}).fillna("–")
    return table.to_markdown(index=False, disable_numparse=True)


def insert(text: str) -> str:
    """Returns README's text with the table between its two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into README.md")
    if parser.parse_args().write:
        README.write_text(insert(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(render())
