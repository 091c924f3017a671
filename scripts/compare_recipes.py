"""Compares training configurations of MobileNetV2 by cross-validation on your images.

--ingredients adds the ingredients of `mobnet2_best` to a plain head, one after the other; --published trains the
experiments of notebook 03 and compares `mobnet2_best` with each of them. What is trained is kept.
"""

import argparse
import sys

from animals10.configurations import compare_configurations, ingredients, notebook_configurations
from animals10.files import UserError
from animals10.settings import Settings


def main() -> None:
    """Trains what is not trained yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5, help="number of folds (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="number of times that folds are drawn (%(default)s)")
    parser.add_argument("--published", action="store_true", help="train the experiments of notebook 03")
    parser.add_argument("--ingredients", action="store_true", help="train the ingredients of mobnet2_best")
    arguments = parser.parse_args()
    chosen = ingredients() if arguments.ingredients else ()
    chosen += notebook_configurations() if arguments.published else ()
    compare_configurations(Settings.from_environment(), chosen, arguments.folds, arguments.repeats)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
