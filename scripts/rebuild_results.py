"""Rebuilds results.csv from the run.json files of all finished runs. Rows and columns that others added stay."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import auxiliary as aux
from storage import rebuild_rows


def main() -> None:
    """Rebuilds the table of the workspace that the environment names (ANIMALS10_ROOT)."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        settings = aux.Settings.from_environment()
        total, added = rebuild_rows(settings.results, settings.root / "models", aux.RESULT_COLUMNS)
    except aux.StudyError as error:
        sys.exit(str(error))
    print(f"{aux.short(settings.results)}: {total} rows, {added} of them were missing.")


if __name__ == "__main__":
    main()
