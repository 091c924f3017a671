"""Measures what leakage through near-duplicates is worth in the workspace that the settings name."""

import argparse
import sys

from animals10.catalogue import find_experiment
from animals10.experiments import Experiment
from animals10.files import UserError
from animals10.leakage import measure_leakage
from animals10.leakage_results import LEAKAGE_RESULTS
from animals10.settings import Settings

EXPERIMENTS = ("mobnet2_linear_probe", "mobnet2_small")


def main() -> None:
    """Reads the command line and runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = "experiment of the catalogue to train again: <id>, or <id>:<learning rate> where several share the id"
    parser.add_argument("experiments", nargs="*", help=what)
    parser.add_argument("--observed", action="store_true", help="only evaluate the stored runs: train nothing")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="trainings per condition (default: 5)")
    parser.add_argument("--write", action="store_true", help="write the values into data/animals10-leakage.csv")
    arguments = parser.parse_args()
    if arguments.observed and arguments.experiments:
        parser.error("--observed trains nothing: leave out the experiments.")
    try:
        settings = Settings.from_environment()
        if arguments.write and settings.max_epochs:
            raise UserError("--write stores full trainings only: unset ANIMALS10_MAX_EPOCHS, or do without --write.")
        texts = [] if arguments.observed else arguments.experiments or EXPERIMENTS
        experiments = [parse_experiment(text) for text in texts]
        path = LEAKAGE_RESULTS if arguments.write else None
        measure_leakage(settings, experiments, arguments.repetitions, path)
    except UserError as error:
        sys.exit(str(error))


def parse_experiment(text: str) -> Experiment:
    """Finds the experiment that `<id>` or `<id>:<learning rate>` names."""
    id, _, rate = text.partition(":")
    try:
        return find_experiment(id, repetition=1, **({"learning_rate": float(rate)} if rate else {}))
    except ValueError:
        raise UserError(f"{text!r} names no experiment: write <id>, or <id>:<learning rate>.") from None


if __name__ == "__main__":
    main()
