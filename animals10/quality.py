"""Quality of the processed images: near-duplicates, leakage between splits, and issues such as blur."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from animals10.cluster_files import map_files
from animals10.files import UserError, read_table, write_table
from animals10.hamming import pairs_within
from animals10.images import rejection_reason
from animals10.preprocessing import read_overview
from animals10.reference import REFERENCE_FILES, match_reference
from animals10.settings import Settings
from animals10.similarity import similar_pairs

# Two images are near-duplicates if their 64-bit perceptual hashes differ in at most this many bits. Measured on 330
# photographs of Animals-10: copies that were recompressed, halved, greyed or changed in contrast differ by at most 4,
# two different photographs by 12 and more. All of Animals-10 has 6,000 times as many pairs: the limit stays below 12.
MAX_HAMMING_DISTANCE = 4
BATCH = 16  # images that are measured together: small enough for the processor's cache
LOW_INFORMATION = "low information"  # stands for the hash of an image that is almost of one colour
LOW_INFORMATION_BELOW = 2  # standard deviation of the grey values; below it a hash would be that of the noise

# Limits of the issues, in the units of `measure`.
DARK_BELOW, LIGHT_ABOVE = 40, 215
BLURRY_BELOW = 100  # the usual rule of thumb for the variance of the Laplacian
ODD_ASPECT_RATIO_ABOVE = 2.0  # the longer edge, divided by the shorter one


def measure(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Measures processed images of one size.

    Returns:
        For each image `phash`: its perceptual hash, 64 bits as 16 hexadecimal digits, or `low information` if it is
        almost of one colour; `brightness`: mean grey value, 0 to 255; `sharpness`: variance of the Laplacian of the
        grey values, at least 0.

    Raises:
        UserError: An image is missing or damaged.
    """
    images = [_read_grey(path) for path in paths]
    grey = np.stack([np.asarray(image) for image in images])  # uint8, (images, size, size)
    brightness = grey.sum(axis=(1, 2), dtype="uint32") / grey[0].size
    has_low_information = _mean_square(grey) - brightness**2 < LOW_INFORMATION_BELOW**2
    values = zip(_phash(images), has_low_information, brightness, _mean_square(_laplacian(grey)))
    return [
        {
            "phash": LOW_INFORMATION if is_low else phash,
            "brightness": round(float(mean), 1),
            "sharpness": round(float(sharpness), 1),
        }
        for phash, is_low, mean, sharpness in values
    ]


def _read_grey(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("L")
    except Exception as error:
        raise UserError(f"{path}: {rejection_reason(error)}. Run 01-preprocessing.ipynb again.") from None


def _phash(images: Sequence[Image.Image]) -> list[str]:
    """Returns the perceptual hashes of grey images, bit for bit those of `phash` in the imagehash package.

    A hash tells which of the 8 × 8 lowest frequencies of a discrete cosine transform are above their median
    (N. Krawetz, Looks Like It, hackerfactor.com, 2011).
    """
    small = [np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)) for image in images]
    frequencies = dctn(np.stack(small), axes=(1, 2))[:, :8, :8].reshape(-1, 64)
    bits = np.packbits(frequencies > np.median(frequencies, axis=1, keepdims=True), axis=1)
    return [hash_bytes.tobytes().hex() for hash_bytes in bits]


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """Returns the Laplacian, int16, of images, (images, rows, columns); their borders are repeated. Its mean is 0."""
    grey = grey.astype("int16")
    found = np.zeros_like(grey)
    down, right = np.diff(grey, axis=1), np.diff(grey, axis=2)
    found[:, :-1] += down
    found[:, 1:] -= down
    found[:, :, :-1] += right
    found[:, :, 1:] -= right
    return found


def _mean_square(images: np.ndarray) -> np.ndarray:
    """Returns the mean square of each image's pixels, without rounding errors of the sum."""
    pixels = images.reshape(len(images), -1).astype("float64")
    # BLAS would start threads of its own, which wait for each other.
    return np.einsum("ij,ij->i", pixels, pixels) / pixels.shape[1]


def check_images(settings: Settings) -> pd.DataFrame:
    """Measures the processed images, groups near-duplicates, and writes `data/checks.csv`.

    Images that have not changed since they were measured are not measured again.

    Returns:
        One row per image, in the order of `data/processed-overview.csv`: its `relpath`, `category`, `source` and
        `sha256`; `phash`, `brightness` and `sharpness` (see `measure`); `group`, the first `relpath` of its
        near-duplicates. The reference decides the groups of Animals-10. Other images are compared by pHash and, where
        trained weights are there, by features.

    Raises:
        UserError: Notebook 01 has not made the images yet, or one is missing or damaged.
    """
    path, known = settings.data / "checks.csv", {}
    checks = read_overview(settings)["relpath category source sha256".split()]
    if path.exists():
        stored = read_table(path).reindex(columns="relpath sha256 phash brightness sharpness".split()).dropna()
        known = stored.drop_duplicates(["relpath", "sha256"]).set_index(["relpath", "sha256"]).to_dict("index")
    unknown = [key for key in zip(checks.relpath, checks.sha256) if key not in known]
    paths = [settings.data / "processed" / relpath for relpath, _ in unknown]
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    measured = map_files(settings, measure, batches, "check", unit_scale=BATCH)
    known |= dict(zip(unknown, chain.from_iterable(measured)))
    measurements = pd.DataFrame([known[key] for key in zip(checks.relpath, checks.sha256)])
    checks = checks.join(measurements)
    return write_table(checks.assign(group=_find_groups(settings, checks, is_new=bool(unknown))), path)


Links = tuple[np.ndarray, np.ndarray]  # positions of the two images of each pair


def near_duplicate_groups(checks: pd.DataFrame, links: Sequence[Links] = ()) -> pd.Series:
    """Groups near-duplicates: equal `sha256`, or `phash` with a Hamming distance of at most `MAX_HAMMING_DISTANCE`.

    Groups are connected components: an image belongs to a group if it is a near-duplicate of any member. Images with
    low information are grouped only if their files are equal.

    Args:
        checks: One row per image, index 0, 1, 2 …, with the columns `relpath`, `sha256` and `phash`.
        links: More pairs of near-duplicates, found otherwise.

    Returns:
        For each image the first `relpath` of its group, by which the group is named.
    """
    return connect(checks, [*hash_links(checks), *links])


def hash_links(checks: pd.DataFrame) -> list[Links]:
    """Returns the pairs of images whose files or perceptual hashes say that they are near-duplicates."""
    keys = checks.phash.where(checks.phash != LOW_INFORMATION, "file " + checks.sha256)
    links = [_link_equal(checks.sha256), _link_equal(keys)]
    hashed = checks[checks.phash != LOW_INFORMATION].drop_duplicates("phash")
    rows, hashes = hashed.index.to_numpy(), np.array([int(text, 16) for text in hashed.phash], dtype="uint64")
    first, second = pairs_within(hashes, MAX_HAMMING_DISTANCE)
    links.append((rows[first], rows[second]))
    return links


def _link_equal(keys: pd.Series) -> Links:
    """Links each row with the first row that has the same key; missing keys are equal to none."""
    keys = keys.dropna()
    first = pd.Series(keys.index, index=keys.index).groupby(keys.to_numpy()).transform("min")
    return keys.index.to_numpy(), first.to_numpy()


def connect(checks: pd.DataFrame, links: Sequence[Links]) -> pd.Series:
    """Returns for each image the first `relpath` of its connected component."""
    first, second = (np.concatenate(ends) for ends in zip(*links))
    graph = coo_array((np.ones(len(first), "int8"), (first, second)), shape=(len(checks), len(checks)))
    number = pd.Series(connected_components(graph, directed=False)[1], index=checks.index)
    # Sorted, since pandas finds the smallest of some texts by a call of Python per group.
    return checks.relpath.sort_values().groupby(number).transform("first").reindex(checks.index)


def _find_groups(settings: Settings, checks: pd.DataFrame, is_new: bool) -> pd.Series:
    """Groups the images of a workspace: Animals-10 by the reference, other images by hashes and features.

    Args:
        settings: The settings.
        checks: The measured images.
        is_new: Whether some were not measured before: then a line says how they are grouped.
    """
    match = match_reference(checks)
    if match is not None:
        # Hashes may differ a little between versions of Pillow: they decide nothing where the reference knows both.
        known = match.known.to_numpy()
        unknown = [tuple(end[~(known[a] & known[b])] for end in (a, b)) for a, b in hash_links(checks)]
        if is_new:
            print(
                f"Near-duplicate groups of {known.sum():,} Animals-10 files are those of data/{REFERENCE_FILES.name}."
            )
        return connect(checks, [_link_equal(checks.sha256), _link_equal(match.group), *unknown])
    try:
        pairs = similar_pairs(settings, checks)
    except UserError as error:
        if is_new:
            print(f"Near-duplicates are found by pHash alone: crops and mirror images are missed. {error}")
        return near_duplicate_groups(checks)
    return near_duplicate_groups(checks, [(pairs["first"].to_numpy(), pairs["second"].to_numpy())])


def near_duplicates(checks: pd.DataFrame) -> pd.DataFrame:
    """Pairs each near-duplicate with the first image of its group.

    Args:
        checks: What `check_images` returned.

    Returns:
        One row per image beyond the first of its group, exact duplicates first: `first` and `second` (relpaths),
        `category` and `category_second`, `exact` (the same bytes), `hamming_distance` (between their hashes, in bits of
        64; missing where an image has low information) and `method`: `file`, `pHash`, or `features` where only the
        features of the two images are similar, or both are near-duplicates of a third image.
    """
    return _pair(checks[checks.group != checks.relpath].assign(first=lambda table: table.group), checks)


def leakage(checks: pd.DataFrame, parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Finds leakage between splits: validation and test images that are near-duplicates of a training image.

    Args:
        checks: What `check_images` returned.
        parts: The tables of the split by name: `train`, `val`, `test`.

    Returns:
        One row per leaking image, paired with the first such training image: the columns of `near_duplicates`, and
        `part`, where the image (`second`) is.
    """
    part_of = {relpath: name for name, table in parts.items() for relpath in table.relpath}
    checks = checks.assign(part=checks.relpath.map(part_of))
    training = checks[checks.part == "train"].sort_values("relpath")  # as in `connect`
    first_in_training = training.drop_duplicates("group").set_index("group").relpath
    leaking = checks[checks.part.isin(["val", "test"]) & checks.group.isin(first_in_training.index)]
    pairs = _pair(leaking.assign(first=leaking.group.map(first_in_training)), checks)
    return pairs.assign(part=pairs.second.map(part_of))


def _pair(table: pd.DataFrame, checks: pd.DataFrame) -> pd.DataFrame:
    """Joins each image of a table with the one that its column `first` names, and compares the two."""
    pairs = table.merge(checks, left_on="first", right_on="relpath", suffixes=("_second", ""))
    pairs["exact"] = pairs.sha256 == pairs.sha256_second
    pairs["hamming_distance"] = [
        None if LOW_INFORMATION in hashes else (int(hashes[0], 16) ^ int(hashes[1], 16)).bit_count()
        for hashes in zip(pairs.phash, pairs.phash_second)
    ]
    pairs = pairs.rename(columns={"relpath_second": "second"}).astype({"hamming_distance": "Int64"})
    close = pairs.hamming_distance.le(MAX_HAMMING_DISTANCE).fillna(False)
    pairs["method"] = np.select([pairs.exact, close], ["file", "pHash"], "features")
    order = ["exact", "hamming_distance", "second"]
    pairs = pairs.sort_values(order, ascending=[False, True, True], ignore_index=True)
    return pairs["first second category category_second exact hamming_distance method".split()]


def issues(checks: pd.DataFrame, overview: pd.DataFrame, size: int) -> pd.DataFrame:
    """Tells for each image which issues it has. An image may have several.

    Args:
        checks: What `check_images` returned.
        overview: What `scan_images` returned; it has the sizes of the raw images.
        size: Edge of the processed images, in pixels.

    Returns:
        One row per image in the order of `checks`, with boolean columns: `dark` and `light` (mean grey value below
        `DARK_BELOW` or above `LIGHT_ABOVE`), `blurry` (variance of the Laplacian below `BLURRY_BELOW`), `upscaled`
        (shorter edge of the raw image below half of `size`), `odd aspect ratio` (above `ODD_ASPECT_RATIO_ABOVE`).
    """
    edges = overview.set_index("relpath").loc[checks.source, ["width", "height"]].to_numpy()
    shorter, longer = edges.min(axis=1), edges.max(axis=1)
    return pd.DataFrame(
        {
            "dark": checks.brightness < DARK_BELOW,
            "light": checks.brightness > LIGHT_ABOVE,
            "blurry": checks.sharpness < BLURRY_BELOW,
            "upscaled": shorter < size / 2,
            "odd aspect ratio": longer > ODD_ASPECT_RATIO_ABOVE * shorter,
        }
    )
