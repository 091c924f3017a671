"""Prints the near-duplicate audit of Animals-10, whose workspace the settings name."""

import argparse
import sys

from animals10.audit import audit
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Reads the command line and runs the audit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write data/animals10-files.csv.gz anew")
    arguments = parser.parse_args()
    try:
        audit(Settings.from_environment(), arguments.write)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
