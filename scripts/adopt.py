"""Checks run folders of another workspace and adopts them: their rows and run files become part of this one.

The exit status is 1 if a run is refused.
"""

import argparse
import sys
from pathlib import Path

from animals10.adoption import adopt_runs
from animals10.files import UserError
from animals10.settings import Settings


def main() -> int:
    """Adopts the runs of the folders that are named; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="a workspace, its folder models/, or a run's folder")
    arguments = parser.parse_args()
    settings = Settings.from_environment()
    return int(sum(adopt_runs(settings, folder) for folder in arguments.folders) > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
