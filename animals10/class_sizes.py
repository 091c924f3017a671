"""How many images a class needs: what is too little is refused before the images are resized."""

import pandas as pd

from animals10.files import UserError
from animals10.layouts import in_words
from animals10.reference import match_reference
from animals10.settings import Settings

MIN_IMAGES = 10  # per class, so that a tenth of them is one image
DRAWN_SHARES = {"val": ("validation", 0.2), "test": ("test", 0.1)}  # of the training images, where a part is missing
TO_SPLIT = "to split into training, validation and test set"


def check_sizes(images: pd.DataFrame, drawn: pd.DataFrame, minimum: int, purpose: str) -> None:
    """Checks that each class has enough images that are drawn themselves.

    Args:
        images: All images.
        drawn: Those of them that are drawn themselves; their near-duplicates follow them.
        minimum: How many a class needs.
        purpose: What for, as `to split …`.

    Raises:
        UserError: A class has fewer, or there is one class only; the message names the ways out.
    """
    sizes, counts = images.category.value_counts(), drawn.category.value_counts()
    if len(counts) > 1 and counts.min() >= minimum:
        return
    few = counts[counts < minimum]
    found = in_words([f"{name} has {n}" for name, n in few.items()], 20) or "one class only"
    advice = "Add some or remove its folder"
    if len(few) and sizes[few.index].min() >= minimum:
        found_with = in_words([f"{sizes[name]:,} of {name}" for name in few.index], 20)
        advice += (
            f". With near-duplicates, as in the frames of one camera, there are {found_with}: to draw each on its own, "
            "set ANIMALS10_SPLIT=published, but then they leak into the test set. Or bring your own split, as folders "
            "train, val and test"
        )
    raise UserError(
        f"Too few images {purpose}: {found}; a class needs at least {minimum} usable ones, not counting duplicates. "
        f"{advice}. Then run 01 again."
    )


def check_scanned_sizes(settings: Settings, overview: pd.DataFrame) -> None:
    """Checks the sizes of classes as far as the scan knows them: without exact duplicates, with damaged pixels.

    Where there are tables of a split, or where the images are those of Animals-10, these decide which images are used.

    Args:
        settings: The settings.
        overview: The table of `scan_images`.

    Raises:
        UserError: A class has too few images, or a split that came with the images has none for training.
    """
    if (settings.data / "train.csv").exists():
        return
    distinct = ["relpath"] if settings.split == "published" else ["category", "sha256"]
    if "part" not in overview:
        if settings.split == "published" or match_reference(overview) is None:
            check_sizes(overview, overview.drop_duplicates(distinct), MIN_IMAGES, TO_SPLIT)
        return
    train = overview[overview.part == "train"]
    if train.empty:
        raise UserError(f"No training image is usable: {settings.data / 'rejected.csv'} tells why.")
    for part, (title, share) in DRAWN_SHARES.items():
        if not (overview.part == part).any():
            check_sizes(train, train.drop_duplicates(distinct), round(1 / share), to_draw(title))


def to_draw(title: str) -> str:
    """Returns the purpose of images from which a missing part of a split is drawn."""
    return f"to draw a {title} set from the training set"
