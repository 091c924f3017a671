"""Runs the notebooks in order with the settings of the environment, and prints the results."""

import argparse
import sys

from animals10.files import UserError
from animals10.notebooks import run_notebooks
from animals10.settings import NOTEBOOKS, Settings


def main() -> None:
    """Runs the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("published", "checked"), help="store outputs as well, see run_notebooks")
    parser.add_argument("--notebooks", nargs="+", choices=NOTEBOOKS, default=NOTEBOOKS, help="(all)")
    arguments = parser.parse_args()
    run_notebooks(Settings.from_environment(), arguments.store, arguments.notebooks)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
