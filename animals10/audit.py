"""The near-duplicate audit of Animals-10: how its reference was made, and what its numbers are.

A pair of images is a candidate if their perceptual hashes or their features are similar. Candidates by features were
inspected by eye; `data/animals10-pairs.csv` holds every decision. `make audit` prints all numbers from these files.
"""

import numpy as np
import pandas as pd

from animals10.files import REPOSITORY, UserError, atomic_write, display_path, read_table
from animals10.quality import Links, connect, hash_links
from animals10.reference import REFERENCE_FILES, match_reference, reference_files
from animals10.settings import Settings
from animals10.similarity import MIN_COSINE_SIMILARITY
from animals10.splits import PARTS, draw_split

INSPECTED_PAIRS = REPOSITORY / "data" / "animals10-pairs.csv"
TOGETHER = ("same", "scene")  # decisions that keep a pair in one part of the reference split
BINS = (0.84, 0.86, 0.88, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 1.0)


def audit(settings: Settings, write: bool = False) -> None:
    """Prints the numbers of the audit and compares the reference with what the decisions give.

    Args:
        settings: The settings; their workspace holds Animals-10, checked by notebook 01.
        write: Whether to write the reference anew.

    Raises:
        UserError: The workspace does not hold Animals-10.
    """
    path = settings.data / "checks.csv"
    checks = read_table(path) if path.exists() else pd.DataFrame({"sha256": []})
    match = match_reference(checks) if len(checks) else None
    if match is None:
        raise UserError(f"{display_path(settings.data)} does not hold Animals-10: run notebook 01 on it first.")
    checks = checks[match.known].reset_index(drop=True)
    pairs = inspected_pairs(checks)
    hashes = hash_links(checks)
    together = pairs[pairs.decision.isin(TOGETHER)]
    groups = {
        "pHash alone": connect(checks, hashes),
        "inspection alone": connect(checks, [_links(together)]),
        "both": connect(checks, [*hashes, _links(together)]),
    }
    print(f"{len(checks):,} of {len(reference_files()):,} files of Animals-10\n")
    print("Near-duplicates by method (images beyond the first of their group)\n")
    print(group_counts(checks, groups).to_string())
    print("\nInspected pairs that pHash does not link, by cosine similarity of pooled MobileNetV2 features\n")
    print(precision_table(pairs).to_string(float_format="{:.3f}".format))
    print(f"\n{precision_sentence(pairs)}\n{recall_sentence(pairs, hashes)}\n")
    overview = checks.assign(label=checks.category.rank(method="dense").astype(int) - 1)
    published = draw_split(overview, settings.seed, overview.relpath)
    print("Leakage in a random split (SPLIT=published): images with a near-duplicate in the training set\n")
    print(leakage_counts(published, groups).to_string())
    reference = build_reference(checks, groups["both"], draw_split(overview, settings.seed, groups["both"]))
    stored = reference_files().reset_index()[list(reference)]
    is_equal = reference.equals(stored.fillna(""))
    print(
        f"\nThe reference in {display_path(REFERENCE_FILES)} is {'equal' if is_equal else 'NOT equal'} to this audit."
    )
    if write:
        with atomic_write(REFERENCE_FILES) as temporary:
            reference.to_csv(temporary, index=False, compression={"method": "gzip", "mtime": 0})


def inspected_pairs(checks: pd.DataFrame) -> pd.DataFrame:
    """Returns the inspected pairs whose files are both there, with their positions in the table of checks.

    Returns:
        `first`, `second` (positions), `cosine`, `mirrored`, `decision` (`same`: one photograph; `scene`: other shots of
        the same animals at the same place and time; `different`; `unsure`) and `stands_for`: how many candidates an
        inspected pair stands for, 1 where all of its range were inspected.
    """
    position = pd.Series(checks.index, checks.source)
    pairs = read_table(INSPECTED_PAIRS)
    pairs = pairs[pairs["first"].isin(position.index) & pairs.second.isin(position.index)]
    return pairs.assign(first=position[pairs["first"]].to_numpy(), second=position[pairs.second].to_numpy())


def group_counts(checks: pd.DataFrame, groups: dict[str, pd.Series]) -> pd.DataFrame:
    """Counts near-duplicates, groups, the images of the largest group, and groups with two labels, by method."""
    rows = {}
    for method, group in groups.items():
        sizes, labels = group.value_counts(), checks.category.groupby(group).nunique()
        rows[method] = {"near-duplicates": int((group != checks.relpath).sum()), "groups": int((sizes > 1).sum())}
        rows[method] |= {"largest group": int(sizes.max()), "groups with two labels": int((labels > 1).sum())}
    return pd.DataFrame(rows).T


def precision_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns the decisions by range of similarity: counts, candidates, and the shares of near-duplicates.

    Shares leave out pairs that could not be decided.
    """
    ranges = pd.cut(pairs.cosine, BINS, right=False)
    table = pairs.groupby([ranges, "decision"], observed=True).size().unstack(fill_value=0)
    table = table.reindex(columns=["same", "scene", "different", "unsure"], fill_value=0)
    decided = table.drop(columns="unsure").sum(axis=1)
    table["candidates"] = pairs.groupby(ranges, observed=True).stands_for.sum().round().astype(int)
    table["share same"] = table.same / decided
    table["share same or scene"] = (table.same + table.scene) / decided
    return table


def precision_sentence(pairs: pd.DataFrame) -> str:
    """Says in words how many pairs above the limit of the second stage belong together."""
    similar = pairs[(pairs.cosine >= MIN_COSINE_SIMILARITY) & (pairs.decision != "unsure")]
    together = similar.decision.isin(TOGETHER)
    return (
        f"Of {len(similar):,} decided pairs with a similarity of at least {MIN_COSINE_SIMILARITY}, {together.sum():,} "
        f"({together.mean():.1%}) are of one photograph or one scene."
    )


def recall_sentence(pairs: pd.DataFrame, hashes: list[Links]) -> str:
    """Estimates in words how many near-duplicate pairs the reference knows."""
    first, second = (np.concatenate(ends) for ends in zip(*hashes, strict=True))
    by_hash = len({(min(a, b), max(a, b)) for a, b in zip(first, second, strict=True) if a != b})
    same = pairs[pairs.decision == "same"]
    known, estimated = by_hash + len(same), by_hash + same.stands_for.sum()
    return (
        f"pHash links {by_hash:,} pairs, inspection {len(same):,} more of one photograph each. With the sampled "
        f"range, an estimated {estimated:,.0f} pairs have a similarity of at least {BINS[0]}: the reference knows "
        f"{known / estimated:.1%} of them. Pairs below that similarity were not looked for."
    )


def leakage_counts(parts: dict[str, pd.DataFrame], groups: dict[str, pd.Series]) -> pd.DataFrame:
    """Counts validation and test images with a near-duplicate in the training set, by method."""
    rows = {}
    for method, group in groups.items():
        trained = set(group[parts["train"].index])
        for name in ("val", "test"):
            leaking = group[parts[name].index].isin(trained)
            rows[f"{name}, {method}"] = {"images": len(leaking), "leaking": int(leaking.sum()), "share": leaking.mean()}
    return pd.DataFrame(rows).T.astype({"images": int, "leaking": int}).round({"share": 4})


def build_reference(checks: pd.DataFrame, groups: pd.Series, parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns the reference: all files with the number of their near-duplicate group and their part of the split.

    Files that nobody could inspect have no group and belong to training.
    """
    files = reference_files().reset_index()[["class", "file", "sha256"]]
    part = pd.concat([pd.Series(name, checks.sha256[parts[name].index]) for name in PARTS])
    sizes = groups.groupby(groups).transform("size")
    named = groups.where(sizes > 1)
    number = pd.Series(named.rank(method="dense").astype("Int64").to_numpy(), checks.sha256)
    found = files.assign(group=files.sha256.map(number), part=files.sha256.map(part).fillna("train"))
    return found.assign(group=found.group.astype("string").fillna("").astype("str"))


def _links(pairs: pd.DataFrame) -> Links:
    return pairs["first"].to_numpy(), pairs.second.to_numpy()
