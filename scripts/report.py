"""Writes build/report/report.html: all stored runs as a table, as charts, and each in a view of its own.

The page contains all that it needs, libraries included, and requests nothing from the network.
"""

import argparse
import sys
from pathlib import Path

from animals10.files import UserError
from animals10.report import REPORT, write_report
from animals10.settings import Settings


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=REPORT, help="the page to write (%(default)s)")
    parser.add_argument("--with-images", action="store_true", help="embed small copies of misclassified test images")
    arguments = parser.parse_args()
    try:
        write_report(Settings.from_environment(), arguments.output, arguments.with_images)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
