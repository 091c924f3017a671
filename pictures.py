"""Single pictures: how they are opened, judged and converted, what they measure, and which of them show the same.

`auxiliary` hands on what notebooks need of it. Nothing here knows of settings, splits or models, or writes a file.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.ndimage import laplace
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

# Formats that hold photographs. Pillow reads more (EPS would start Ghostscript): a data set needs none of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter of 1 GiB at 3 bytes a pixel), from which it warns of a bomb

# Pictures show the same up to this many different bits of 64. Measured on 330 photographs of Animals-10: copies that
# were saved anew, halved, greyed or changed in contrast differ by at most 4, two different photographs by 12 and more.
# In all of Animals-10 there are 6,000 times as many pairs, so the limit keeps away from 12.
SAME_BITS = 4
PLAIN = 2  # standard deviation of the grey values, below which a picture has nothing that a hash could tell apart
# Limits of what counts as a flaw, in the units of `measure`.
DARK, LIGHT = 40, 215
BLURRY = 100  # the usual rule of thumb for the variance of the Laplacian
ODD_SHAPE = 2.0  # the longer edge, divided by the shorter one


def files_in(folder: Path) -> list[Path]:
    """Returns what lies in a folder, sorted by name; the folder itself where it may not be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return [folder]


def open_photograph(path: Path) -> Image.Image:
    """Opens a picture without decoding its pixels; raises with a reason for `rejected.csv`."""
    if not path.is_file():
        raise ValueError("a folder, not a file" if path.is_dir() else "a broken link or special file")
    if path.stat().st_size == 0:
        raise ValueError("zero bytes")
    picture = Image.open(path, formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        raise ValueError(f"decompression bomb: {picture.width} × {picture.height} pixels")
    return picture


def reason_of(error: Exception) -> str:
    """Puts into words, for `rejected.csv`, why a picture could not be opened or decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, PermissionError):
        return "unreadable: permission denied"
    return one_line(error) if isinstance(error, ValueError) else f"damaged: {one_line(error)}"


def one_line(error: Exception) -> str:
    """Returns the first line of an error's message, or the error's name."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def to_rgb(photograph: Image.Image) -> Image.Image:
    """Returns a photograph of any mode as 8-bit RGB, upright by its EXIF orientation, on white where it is transparent.

    Pixels without an agreed range (floating-point or 32-bit) raise ValueError.
    """
    picture = ImageOps.exif_transpose(photograph)
    if picture.mode.startswith(("I", "F")):  # Pillow's own conversion would cut 16-bit values off at 255
        pixels = np.asarray(picture)
        if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels of mode {picture.mode} beyond 16 bit have no agreed range")
        picture = Image.fromarray((pixels / 257).round().astype("uint8"))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def square(photograph: Image.Image, size: int) -> Image.Image:
    """Returns a photograph as networks see it: `to_rgb`, size × size pixels, bilinear, its shape not kept."""
    return to_rgb(photograph).resize((size, size), Image.Resampling.BILINEAR)


JPEG_QUALITY = 90  # of processed pictures


def as_processed(photograph: Image.Image, size: int) -> np.ndarray:
    """Returns a photograph's pixels as they are once notebook 01 has stored it: uint8, (size, size, 3)."""
    with io.BytesIO() as file:
        square(photograph, size).save(file, "JPEG", quality=JPEG_QUALITY)
        return np.asarray(Image.open(file, formats=["JPEG"]))


def up_to_date(path: Path, sha256: str, size: int) -> bool:
    """Tells whether a JPEG is there, is size × size pixels and has its source's checksum as comment."""
    try:
        with Image.open(path, formats=["JPEG"]) as picture:
            return (picture.info.get("comment"), *picture.size) == (sha256.encode(), size, size)
    except Exception:  # not there, or damaged in whatever way: it will be made again
        return False


def jpeg_names(overview: pd.DataFrame) -> pd.Series:
    """Names the processed files; where `a.jpeg` and `a.png` would both become `a.jpg`, each gets a suffix."""
    stems = overview.name.map(lambda name: Path(name).stem)
    unclear = (overview.category + "/" + stems).str.casefold().duplicated(keep=False)
    unclear |= stems.map(lambda stem: len(os.fsencode(stem)) > 250)  # with .jpg more than a file name may hold
    digests = overview.relpath.map(lambda path: hashlib.sha256(os.fsencode(path)).hexdigest()[:8])
    # Shortened, since a file name may hold 255 bytes and a character takes up to four.
    return stems.where(~unclear, stems.str[:55] + "-" + digests) + ".jpg"


def measure(path: Path) -> dict:
    """Measures a processed picture.

    Returns:
        `phash`: its perceptual hash, 64 bits as 16 hexadecimal digits, or `plain` where it is of one colour;
        `brightness`: mean grey value, 0 to 255; `sharpness`: variance of the Laplacian of the grey values, 0 and up.
    """
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"), dtype="float32")
        phash = "plain" if grey.std() < PLAIN else str(imagehash.phash(picture))
    return {
        "phash": phash,
        "brightness": round(float(grey.mean()), 1),
        "sharpness": round(float(laplace(grey).var()), 1),
    }


def groups(checks: pd.DataFrame) -> pd.Series:
    """Groups pictures that show the same: equal `sha256`, or `phash` that differ by at most `SAME_BITS` bits.

    What shows the same as a member belongs to the group. Returns the first `relpath` of each picture's group.
    """
    bits = checks.phash.where(checks.phash != "plain", "file " + checks.sha256)
    parts = [_links(checks.sha256), _links(bits)]
    hashed = checks[checks.phash != "plain"].drop_duplicates("phash")
    rows, values = hashed.index.to_numpy(), np.array([int(text, 16) for text in hashed.phash], dtype="uint64")
    block = 256  # rows compared at once with all that follow: 50 MB for 26,179 pictures
    for start in range(0, len(values), block):
        differing = np.bitwise_count(values[start : start + block, None] ^ values[None, start:])
        first, second = np.nonzero(differing <= SAME_BITS)
        parts.append((rows[start:][first], rows[start:][second]))
    first, second = (np.concatenate(ends) for ends in zip(*parts))
    graph = coo_array((np.ones(len(first), "int8"), (first, second)), shape=(len(checks), len(checks)))
    number = pd.Series(connected_components(graph, directed=False)[1], index=checks.index)
    return checks.relpath.groupby(number).transform("min")


def _links(keys: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Links each row with the first that has the same key; two arrays of row numbers."""
    first = pd.Series(keys.index, index=keys.index).groupby(keys.to_numpy()).transform("min")
    return keys.index.to_numpy(), first.to_numpy()


def duplicates(checks: pd.DataFrame) -> pd.DataFrame:
    """Pairs each picture that shows the same as another with the first of its group.

    Returns:
        One row a picture beyond the first of a group, exact copies first: `first` and `second` (relpaths), `category`
        and `category_second`, `exact` (the same bytes) and `bits` (by which the hashes differ, if they have any).
    """
    return _paired(checks[checks.group != checks.relpath].assign(first=lambda table: table.group), checks)


def crossings(checks: pd.DataFrame, parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Pairs each validation or test picture that shows the same as a training picture with the first such one.

    `parts` are the tables `train`, `val` and `test`. The result is that of `duplicates`, with `part`.
    """
    part_of = {relpath: name for name, table in parts.items() for relpath in table.relpath}
    checks = checks.assign(part=checks.relpath.map(part_of))
    trained = checks[checks.part == "train"].groupby("group").relpath.min()
    judged = checks[checks.part.isin(["val", "test"]) & checks.group.isin(trained.index)]
    return _paired(judged.assign(first=judged.group.map(trained)), checks).assign(
        part=lambda pair: pair.second.map(part_of)
    )


def _paired(table: pd.DataFrame, checks: pd.DataFrame) -> pd.DataFrame:
    pairs = table.merge(checks, left_on="first", right_on="relpath", suffixes=("_second", ""))
    pairs["exact"] = pairs.sha256 == pairs.sha256_second
    hashes = zip(pairs.phash, pairs.phash_second)
    pairs["bits"] = [None if "plain" in pair else (int(pair[0], 16) ^ int(pair[1], 16)).bit_count() for pair in hashes]
    pairs = pairs.rename(columns={"relpath_second": "second"}).astype({"bits": "Int64"})
    pairs = pairs.sort_values(["exact", "bits", "second"], ascending=[False, True, True], ignore_index=True)
    return pairs["first second category category_second exact bits".split()]


def flaws(checks: pd.DataFrame, overview: pd.DataFrame, size: int) -> pd.DataFrame:
    """Tells of each picture, in the order of `checks`, whether it is dark, light, blurry, small or of an odd shape.

    Small are photographs whose shorter edge is under half of `size`, in pixels: they are blown up more than twice.
    """
    edges = overview.set_index("relpath").loc[checks.source, ["width", "height"]].to_numpy()
    shorter, longer = edges.min(axis=1), edges.max(axis=1)
    found = {"dark": checks.brightness < DARK, "light": checks.brightness > LIGHT, "blurry": checks.sharpness < BLURRY}
    return pd.DataFrame(found | {"small": shorter < size / 2, "odd shape": longer > ODD_SHAPE * shorter})


def on_all_cores(function: Callable, items: Sequence, title: str) -> list:
    """Maps in threads, which Pillow lets run side by side while it decodes, resizes and encodes."""
    if not items:
        return []  # without a bar for nothing
    with warnings.catch_warnings():
        # Bombs are refused by their size; what else Pillow warns of (odd EXIF, palettes) does no harm here.
        warnings.filterwarnings("ignore", module="PIL")
        return thread_map(function, items, max_workers=os.cpu_count(), tqdm_class=tqdm, desc=title, unit="file")
