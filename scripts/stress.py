"""Stress test, some minutes long: bad files, rows appended by many processes at once, kills at random moments.

Prints what was done and what was lost, and fails if anything was. `make test` runs short versions of the same.
"""

import argparse
import os
import random
import sys

from animals10.files import UserError
from animals10.stress import stress


def main() -> None:
    """Runs the stress test with the numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="folders of good and bad files (2000)")
    parser.add_argument("--kills", type=int, default=20, help="kills of processes that prepare images (20)")
    parser.add_argument("--training-kills", type=int, default=10, help="kills of processes that train (10)")
    parser.add_argument("--rounds", type=int, default=10, help="kills of a worker and of a machine of a cluster (10)")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="decides files and moments (random)")
    arguments = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    try:
        stress(arguments.cases, arguments.kills, arguments.training_kills, arguments.rounds, arguments.seed)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
