"""Simulates the training of the study on a Ray cluster of this machine: runs wait for their scaled durations.

Prints for each number of workers, in hours: the makespan; the lower bound max(critical path, work / workers); and the
makespan of the same order of runs without overhead, which tells how much of the rest is the order's.
"""

import argparse
import sys
from pathlib import Path

from animals10.cluster_simulation import simulate
from animals10.files import REPOSITORY, UserError


def main() -> None:
    """Runs the simulations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results.csv", help="durations (results.csv)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64], help="(2 4 8 16 32 64)")
    parser.add_argument("--seconds", type=float, default=60, help="of each simulation, at least (60)")
    arguments = parser.parse_args()
    try:
        simulate(arguments.results, arguments.workers, arguments.seconds)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
