"""Draws the cut-outs of the sample again; see animals10/sample.py."""

import argparse
import sys
from pathlib import Path

from animals10.files import UserError
from animals10.sample import CUT_OUTS, FONT, draw_cut_outs


def main() -> None:
    """Draws the cut-outs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=CUT_OUTS, help="the file to write (%(default)s)")
    parser.add_argument("--font", type=Path, default=FONT, help="Noto Color Emoji (%(default)s)")
    arguments = parser.parse_args()
    draw_cut_outs(arguments.out, arguments.font)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
