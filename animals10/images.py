"""One image: how a file is opened, checked and converted, and what the processed image of it is.

The preprocessing contract is here: whatever changes the pixels of a processed image must change the contract.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from animals10.files import one_line

Item = TypeVar("Item")
Result = TypeVar("Result")

# Formats of photographs. Pillow reads more (EPS would start Ghostscript); a data set needs none of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's limit (a quarter of 1 GiB at 3 bytes per pixel), above which it warns of a bomb

JPEG_QUALITY = 90  # of processed images
RESAMPLING = Image.Resampling.BILINEAR
PREPROCESSING_VERSION = 1  # raise it when processed images change in a way that the other values do not show


def preprocessing_contract() -> dict[str, int | str]:
    """Returns everything besides the image size that decides the pixels of a processed image.

    Images and runs made under another contract are made anew.
    """
    return {
        "version": PREPROCESSING_VERSION,
        "jpeg_quality": JPEG_QUALITY,
        "resampling": RESAMPLING.name.lower(),
        "description": "EXIF orientation applied, composited on white, resized to a square, stored as RGB JPEG",
    }


def open_image(path: Path) -> Image.Image:
    """Opens an image without decoding its pixels.

    Raises:
        ValueError: The file is not a regular file, is empty, or has more than `MAX_PIXELS` pixels.
        PIL.UnidentifiedImageError: Its content is in none of the `FORMATS`.
        OSError: It cannot be read. `rejection_reason` puts any of these into words.
    """
    if not path.is_file():
        raise ValueError("a folder, not a file" if path.is_dir() else "a broken link or special file")
    if path.stat().st_size == 0:
        raise ValueError("zero bytes")
    image = Image.open(path, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"decompression bomb: {image.width} × {image.height} pixels")
    return image


def rejection_reason(error: Exception) -> str:
    """Says in one line why an image could not be opened or decoded, for `rejected.csv` and for messages."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, PermissionError):
        return "unreadable: permission denied"
    return one_line(error) if isinstance(error, ValueError) else f"damaged: {one_line(error)}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB: EXIF orientation applied, composited on white.

    Raises:
        ValueError: Its pixels are floating-point or 32-bit numbers, whose range nobody has agreed on.
    """
    oriented = ImageOps.exif_transpose(image)
    if oriented.mode.startswith(("I", "F")):  # Pillow's own conversion would clip 16-bit values at 255
        pixels = np.asarray(oriented)
        if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels of mode {oriented.mode} beyond 16 bit have no agreed range")
        oriented = Image.fromarray((pixels / 257).round().astype("uint8"))
    if oriented.has_transparency_data:
        oriented = oriented.convert("RGBA")
        oriented = Image.alpha_composite(Image.new("RGBA", oriented.size, "white"), oriented)
    return oriented.convert("RGB")


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Returns an image as RGB of size × size pixels. The aspect ratio is not kept."""
    return to_rgb(image).resize((size, size), RESAMPLING)


def save_processed(image: Image.Image, file: Path | IO[bytes], **options: Any) -> None:
    """Saves a resized image as JPEG of the contract's quality. Pillow's other `options`, such as `comment`, pass on."""
    image.save(file, "JPEG", quality=JPEG_QUALITY, **options)


def processed_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Returns the pixels that a model sees of an image once it is stored as JPEG: uint8, (size, size, 3)."""
    with io.BytesIO() as file:
        save_processed(resize_square(image, size), file)
        return np.asarray(Image.open(file, formats=["JPEG"]))


def is_up_to_date(path: Path, sha256: str, size: int) -> bool:
    """Tells whether a processed image exists, has size × size pixels, and has its source's checksum as JPEG comment."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return (image.info.get("comment"), *image.size) == (sha256.encode(), size, size)
    except Exception:  # missing, or damaged in any way: it will be made again
        return False


def processed_names(overview: pd.DataFrame) -> pd.Series:
    """Returns the file names of processed images, one per row of the overview.

    `a.jpeg` becomes `a.jpg`. Names that would collide (`a.jpeg` and `a.png`, or `A.jpg`) or be too long get a suffix.
    """
    stems = overview.name.map(lambda name: Path(name).stem)
    needs_suffix = (overview.category + "/" + stems).str.casefold().duplicated(keep=False)
    needs_suffix |= stems.map(lambda stem: len(os.fsencode(stem)) > 250)  # too long for a file name, with .jpg
    digests = overview.relpath.map(lambda path: hashlib.sha256(os.fsencode(path)).hexdigest()[:8])
    # Cut to 55 characters, since a file name may have 255 bytes and a character takes up to four.
    return stems.where(~needs_suffix, stems.str[:55] + "-" + digests) + ".jpg"


def map_on_all_cores(function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """Applies a function to all items in threads and shows a progress bar.

    Pillow releases the interpreter's lock while it decodes, resizes and encodes, so threads are enough.
    """
    if not items:
        return []  # without an empty progress bar
    with warnings.catch_warnings():
        # Bombs are rejected by their size. Pillow's other warnings (odd EXIF data, palettes) are harmless here.
        warnings.filterwarnings("ignore", module="PIL")
        return thread_map(function, items, max_workers=os.cpu_count(), tqdm_class=tqdm, desc=title, unit="file")
