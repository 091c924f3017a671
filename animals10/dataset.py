"""The data set: Animals-10 as it is on Kaggle, and how it is downloaded."""

import shutil

from animals10.files import REPOSITORY, UserError, display_path, one_line
from animals10.layouts import has_class_folders
from animals10.settings import Settings

ANIMALS10 = "alessiocorrado99/animals10"  # on kaggle.com
ANIMALS10_SIZE = 26_179  # images in the download
# Its class folders have Italian names; the categories are English, in the same order.
ITALIAN = ("cane", "cavallo", "elefante", "farfalla", "gallina", "gatto", "mucca", "pecora", "ragno", "scoiattolo")
ENGLISH = ("dog", "horse", "elephant", "butterfly", "chicken", "cat", "cow", "sheep", "spider", "squirrel")
# The original study's 42 runs at 224 × 224 pixels, and 22 at 200 × 200.
PUBLISHED_RESULTS = REPOSITORY / "data" / "published-results.csv"


def download(settings: Settings) -> None:
    """Downloads Animals-10 from Kaggle to `data/raw-img`, unless the raw folder has images. No account is needed.

    Raises:
        UserError: The download failed, or the raw folder is not the place for it; the message says what to do by hand.
    """
    if settings.profile == "sample" or settings.raw.is_file() or has_class_folders(settings.raw):
        return print(f"Nothing to download: there are images in {display_path(settings.raw)}.")
    if settings.raw != settings.data / "raw-img" or (settings.raw.exists() and any(settings.raw.iterdir())):
        raise UserError(f"{settings.raw} has no images in class folders (a download needs an empty data/raw-img).")
    import kagglehub  # slow to import, and rarely needed

    staging = settings.data / ".download"  # beside the target, so that the complete download moves there in one step
    try:
        kagglehub.dataset_download(ANIMALS10, output_dir=str(staging))
        source = next(path for path in sorted(staging.rglob("raw-img")) if path.is_dir())
    except Exception as error:  # kagglehub lets through whatever its network and archive libraries raise
        raise UserError(
            f"Animals-10 could not be downloaded ({type(error).__name__}: {one_line(error, most=None)}). By hand: "
            f"fetch https://www.kaggle.com/datasets/{ANIMALS10} on a machine with a network, unpack it and put its "
            f"folder raw-img at {settings.raw}. Or use images of your own: RAW=folder."
        ) from None
    source.replace(settings.raw)
    shutil.rmtree(staging)
