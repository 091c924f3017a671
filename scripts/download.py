"""Downloads Animals-10 from Kaggle into data/raw-img, unless photographs lie there already. No account is needed."""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kagglehub

import auxiliary as aux

ANIMALS10 = "alessiocorrado99/animals10"


def download(settings: aux.Settings) -> None:
    """Fetches the photographs unless there are some; raises StudyError with what to do where that fails."""
    if settings.profile == "sample" or aux.holds_photographs(settings.raw):
        return print(f"Nothing to download: photographs lie in {aux.short(settings.raw)}.")
    if settings.raw != settings.data / "raw-img" or (settings.raw.exists() and any(settings.raw.iterdir())):
        raise aux.StudyError(
            f"{settings.raw} holds no photographs in class folders (a download needs an empty data/raw-img)."
        )
    staging = settings.data / ".download"  # beside the target, so that what is complete moves there in one step
    try:
        kagglehub.dataset_download(ANIMALS10, output_dir=str(staging))
        source = next(path for path in sorted(staging.rglob("raw-img")) if path.is_dir())
    except Exception as error:  # kagglehub lets through whatever its network and archive libraries raise
        raise aux.StudyError(
            f"Animals-10 could not be downloaded ({type(error).__name__}: {aux.one_line(error)}). By hand: fetch "
            f"https://www.kaggle.com/datasets/{ANIMALS10}, unpack it and put its folder raw-img at {settings.raw}."
        ) from None
    source.replace(settings.raw)
    shutil.rmtree(staging)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        download(aux.Settings.from_environment())
    except aux.StudyError as error:
        sys.exit(str(error))
