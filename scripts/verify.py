"""Verifies stored runs: their files, models and predictions must agree with results.csv.

The exit status is 1 if a run fails.
"""

import argparse
import sys

from animals10.files import UserError
from animals10.settings import Settings
from animals10.verification import verify_runs


def main() -> int:
    """Verifies the runs that are named, or all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="ids, or names of folders in models/ (default: all)")
    arguments = parser.parse_args()
    return int(verify_runs(Settings.from_environment(), arguments.runs) > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
