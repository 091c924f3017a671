"""Compares training configurations of MobileNetV2 by cross-validation on your images.

--changes changes `mobnet2_best_head` and `mobnet2_best` in one thing at a time; --published compares the experiments of
notebook 03 with `mobnet2_best`. --finalists trains some of the changes in full, with several seeds, and evaluates them
on the test set. What is trained is kept.
"""

import argparse
import sys

from animals10.configurations import (
    PARTS,
    STORED_DIFFERENCES,
    changes,
    compare_configurations,
    find_changes,
    notebook_configurations,
)
from animals10.files import UserError
from animals10.finalists import compare_finalists
from animals10.settings import Settings


def main() -> None:
    """Trains what is not trained yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5, help="number of folds (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="number of times that folds are drawn (%(default)s)")
    parser.add_argument("--published", action="store_true", help="train the experiments of notebook 03")
    parser.add_argument("--changes", nargs="*", choices=[*PARTS], help="change one thing at a time (both parts)")
    parser.add_argument("--finalists", nargs="+", metavar="TITLE", help="titles of changes, as the tables have them")
    parser.add_argument("--store", action="store_true", help=f"store the differences in data/{STORED_DIFFERENCES.name}")
    arguments = parser.parse_args()
    settings, store = Settings.from_environment(), STORED_DIFFERENCES if arguments.store else None
    if arguments.finalists:
        compare_finalists(settings, find_changes(arguments.finalists), store=store)
        return
    chosen = () if arguments.changes is None else changes(arguments.changes or tuple(PARTS))
    chosen += notebook_configurations() if arguments.published else ()
    compare_configurations(settings, chosen, arguments.folds, arguments.repeats, store)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
