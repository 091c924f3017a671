"""Restores results.csv from the run.json of all finished runs. Rows and columns of other origin are kept."""

import argparse
import sys

from animals10.files import UserError
from animals10.settings import Settings
from animals10.verification import rebuild_results


def main() -> None:
    """Restores the table of the workspace that ANIMALS10_ROOT names."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rebuild_results(Settings.from_environment())


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
