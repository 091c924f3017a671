"""Downloads Animals-10 from Kaggle into data/raw-img, unless photographs lie there already."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import auxiliary as aux

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        aux.download_animals10(aux.Settings.from_environment())
    except aux.StudyError as error:
        sys.exit(str(error))
