"""Writes the figure and the tables of README.md and docs/results.md from results.csv and the published results."""

import argparse
import sys

from animals10.files import UserError
from animals10.readme import write_readme


def main() -> None:
    """Writes the files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_readme()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
