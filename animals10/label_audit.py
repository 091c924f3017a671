"""What is known of the labels of Animals-10, and how well wrong labels are found where it is known which are wrong.

People looked at the images of Animals-10 that `label_errors` ranks first; `data/animals10-label-issues.csv` holds every
decision. `make labels` prints all numbers from it.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from animals10.corrections import EXCLUDE, RELABEL
from animals10.cross_validation import derived_workspace, link_data
from animals10.experiments import Experiment
from animals10.files import REPOSITORY, UserError, display_path, read_table, write_table
from animals10.label_errors import label_issues
from animals10.preprocessing import read_overview
from animals10.reference import reference_files
from animals10.settings import Settings
from animals10.splits import load_splits

INSPECTED = REPOSITORY / "data" / "animals10-label-issues.csv"
SWAPS = "label-swaps"  # folder in the workspace
# Decisions: another of the ten animals; none of the ten; several of the ten, or not to be told; as labelled.
DECISIONS = ("wrong label", "no such animal", "ambiguous", "label right")


def inspected_images() -> pd.DataFrame:
    """Returns the inspected images of Animals-10, in the order of their rank.

    Returns:
        `class` (the Italian folder), `file`, `part` of the reference split, `rank` among all images, `category` (the
        label), `suggested`, `score` and `confident` (see `label_errors.rank_labels`), `decision` (of `DECISIONS`) and
        `decided`: the right class of an image with a wrong label, else empty.
    """
    return read_table(INSPECTED)


def print_inspection_counts() -> None:
    """Prints what people saw in the images of Animals-10 of the highest rank."""
    print(inspection_counts(inspected_images()).to_string(float_format="{:.2f}".format))


def inspection_counts(images: pd.DataFrame) -> pd.DataFrame:
    """Counts the decisions by part and by rank; one row per group of images."""
    chosen = {"all inspected": images, "count as label errors": images[images.confident]}
    chosen |= {f"first {n}": images.head(n) for n in (40, 100) if len(images) >= n}
    chosen |= {part: images[images.part == part] for part in ("train", "val", "test")}
    table = pd.DataFrame({name: some.decision.value_counts() for name, some in chosen.items()}).T
    table = table.reindex(columns=DECISIONS).fillna(0).astype(int)
    table.insert(0, "images", table.sum(axis=1))
    return table.assign(**{"share wrong or none": (table["wrong label"] + table["no such animal"]) / table.images})


def correct_animals10(settings: Settings, test: bool = False) -> None:
    """Writes `data/exclude.csv` and `data/relabel.csv` of a workspace with Animals-10 from the inspected images.

    Args:
        settings: The settings.
        test: Whether test images are corrected as well: then accuracies are those on other labels.

    Raises:
        UserError: The workspace holds none of these images, or one of the two files is there already.
    """
    files = reference_files().reset_index().merge(inspected_images(), on=["class", "file"])
    files = files[(files.part_y != "test") | test]
    found = read_overview(settings)[["relpath", "sha256"]].merge(files, on="sha256")
    if found.empty:
        raise UserError(f"{display_path(settings.data)} holds none of the inspected images of Animals-10.")
    tables = {EXCLUDE: found[found.decision == "no such animal"][["relpath", "decision"]]}
    wrong = found[found.decision == "wrong label"]
    tables[RELABEL] = wrong[["relpath", "decided"]].rename(columns={"decided": "category"})
    for name in tables:
        if (settings.data / name).exists():
            raise UserError(f"{display_path(settings.data / name)} is there already: move it away.")
    for name, table in tables.items():
        write_table(table, settings.data / name)
        print(f"{display_path(settings.data / name)}: {len(table)} images")


def swap_recovery(settings: Settings, experiment: Experiment, share: float, seed: int) -> dict[str, float]:
    """Swaps labels of training and validation images at random, and counts how many of the swaps `label_issues` finds.

    Args:
        settings: The settings; a workspace with swapped labels is made in its folder `label-swaps/`.
        experiment: What is trained on each fold.
        share: Share of the labels that are swapped, each for another class at random.
        seed: Decides the draw.

    Returns:
        `images`, `swapped`; `found`, the swaps among as many images of the highest rank; `share found`; `confident`,
        the number of images that count as label errors, and `of them swapped`. Labels that were wrong before count as
        errors of the ranking, so its real quality is a little higher.
    """
    splits = load_splits(settings)
    parts = {"test": splits.test, "val": splits.val, "train": splits.train}
    swapped = settings.root / SWAPS / f"{share:g}-{seed}"
    workspace = derived_workspace(settings, parts, swapped)
    (settings.data / "features").mkdir(exist_ok=True)
    link_data(settings, workspace.data, "features")  # the images are the same
    images = pd.concat([splits.train, splits.val]).sort_values("relpath")
    rng = np.random.default_rng(seed)
    chosen = images.iloc[rng.choice(len(images), round(share * len(images)), replace=False)]
    shift = rng.integers(1, len(splits.class_names), len(chosen))
    labels = (chosen.label.to_numpy() + shift) % len(splits.class_names)
    table = pd.DataFrame({"relpath": chosen.relpath, "category": np.array(splits.class_names, object)[labels]})
    write_table(table, workspace.data / RELABEL)
    ranked = label_issues(workspace, experiment)
    is_swapped = ranked.relpath.isin(chosen.relpath)
    found, n = int(is_swapped.head(len(chosen)).sum()), len(chosen)
    row = {"images": len(images), "swapped": n, "found": found, "share found": found / n}
    return row | {"confident": int(ranked.confident.sum()), "of them swapped": int(is_swapped[ranked.confident].sum())}


def print_swap_recovery(settings: Settings, experiment: Experiment, share: float, seeds: Sequence[int]) -> pd.DataFrame:
    """Prints, and returns, what `swap_recovery` found for several seeds, one row each."""
    table = pd.DataFrame({seed: swap_recovery(settings, experiment, share, seed) for seed in seeds}).T
    table = table.rename_axis("seed").astype(dict.fromkeys(("images", "swapped", "found", "confident"), int))
    print(table.astype({"of them swapped": int}).to_string(float_format="{:.3f}".format))
    return table
