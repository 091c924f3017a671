"""Compares numbers of augmented views in the feature cache by training `mobnet2_small` with several seeds."""

import argparse
import sys

from animals10.comparisons import compare_views
from animals10.files import UserError
from animals10.settings import Settings


def number_of_views(text: str) -> int | str:
    """Returns a number, or `off`."""
    return text if text == "off" else int(text)


def main() -> None:
    """Trains, and prints a row per number of views."""
    parser = argparse.ArgumentParser(description=__doc__)
    views = {"type": number_of_views, "default": [1, 2, 4, 8, "off"]}
    parser.add_argument("--views", nargs="+", **views, help="numbers of views; off: no cache (%(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 6, 7], help="(%(default)s)")
    arguments = parser.parse_args()
    compare_views(Settings.from_environment(), arguments.views, arguments.seeds)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
