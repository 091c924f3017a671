"""Trains experiments in float32 and in bfloat16 with several seeds, and prints what that changes."""

import argparse
import sys

from animals10.catalogue import CATALOGUE
from animals10.comparisons import compare_precisions
from animals10.files import UserError
from animals10.settings import Settings

EXPERIMENTS = ("conv5invto128_dense1", "conv4inv8to128_pool_dense196", "mobnet2_best_head", "mobnet2_best")


def main() -> None:
    """Trains what is not trained yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = {experiment.id: experiment for experiment in reversed(CATALOGUE)}  # the first one of an id
    parser.add_argument(
        "--experiments", nargs="+", choices=known, default=EXPERIMENTS, metavar="ID", help="(%(default)s)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 6, 7], help="(%(default)s)")
    arguments = parser.parse_args()
    compare_precisions(Settings.from_environment(), [known[id] for id in arguments.experiments], arguments.seeds)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
