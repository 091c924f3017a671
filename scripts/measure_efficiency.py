"""Measures size, multiply-adds, latency and throughput of each stored run, and writes models/<run>/efficiency.json.

All runs of the workspace are measured one after the other in one process, so that their times can be compared; run
nothing else meanwhile. Earlier measurements are replaced.
"""

import argparse
import sys

from animals10.efficiency import measure_all
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Measures the runs of the workspace that the environment names (ANIMALS10_ROOT)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="calls to time at batch size 1 (%(default)s)")
    rounds = parser.parse_args().rounds
    try:
        measure_all(Settings.from_environment(), rounds)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
