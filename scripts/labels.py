"""Ranks images whose labels may be wrong, in data/label-issues.csv of the workspace.

With --swap, it swaps labels at random, and counts how many of these the ranking finds. For Animals-10, --inspected
counts what people saw in the images of the highest rank, and --correct makes exclude.csv and relabel.csv of it.
"""

import argparse
import sys

from animals10.catalogue import find_experiment
from animals10.files import UserError, display_path
from animals10.label_audit import correct_animals10, print_inspection_counts, print_swap_recovery
from animals10.label_errors import LABEL_ISSUES, label_issues
from animals10.settings import Settings


def main() -> None:
    """Reads the command line and does what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="mobnet2_linear_probe", help="what is trained (%(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="number of folds (%(default)s)")
    parser.add_argument("--test", action="store_true", help="rank, or correct, test images as well")
    parser.add_argument("--swap", type=float, help="share of the labels to swap, such as 0.05")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of the swaps (%(default)s)")
    parser.add_argument("--inspected", action="store_true", help="print the counts of inspected images of Animals-10")
    parser.add_argument("--correct", action="store_true", help="correct the labels of Animals-10 as inspected")
    arguments = parser.parse_args()
    if arguments.inspected:
        print_inspection_counts()
        return
    settings, experiment = Settings.from_environment(), find_experiment(arguments.experiment)
    if arguments.correct:
        correct_animals10(settings, arguments.test)
    elif arguments.swap:
        print_swap_recovery(settings, experiment, arguments.swap, arguments.seeds)
    else:
        issues = label_issues(settings, experiment, arguments.folds, arguments.test)
        print(issues.head(20).to_string(float_format="{:.3f}".format))
        where = display_path(settings.data / LABEL_ISSUES)
        print(f"{where}: {len(issues):,} images, of which {issues.confident.sum():,} count as label errors")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
