"""The processed image of an image file; how a file is opened and converted to RGB is in `decoding`.

The preprocessing contract is here: whatever changes the pixels of a processed image must change the contract.
"""

import hashlib
import io
import os
import tempfile
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar

import filelock
import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.contrib.concurrent import thread_map

from animals10.decoding import open_image, to_rgb
from animals10.files import WINDOWS_DEVICE, one_line
from animals10.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

JPEG_QUALITY = 90  # of processed images
RESAMPLING = Image.Resampling.BILINEAR
STRETCH, CROP, PAD = "stretch", "crop", "pad"
RESIZE_MODES = {  # how an image is made square, in words that go before `to a square`
    STRETCH: "resized",
    CROP: "cropped to the largest square at the centre and resized",
    PAD: "resized and padded with grey",
}
PADDING = (128, 128, 128)  # the middle of the values, which most backbones take for zero
PREPROCESSING_VERSION = 1  # raise it when processed images change in a way that the other values do not show

LARGE_PIXELS = 64_000_000  # of an image that is converted alone
# Held by one thread of all processes of this user on this machine: workers of a cluster are processes.
LARGE_IMAGE = filelock.FileLock(Path(tempfile.gettempdir()) / f"animals10-{getattr(os, 'getuid', int)()}.lock")


def preprocessing_contract(resize: str = STRETCH) -> dict[str, int | str]:
    """Returns everything besides the image size that decides the pixels of a processed image.

    Images and runs made under another contract are made anew. The default mode is not named in it, so that runs which
    were made before there were others stay valid.

    Args:
        resize: How images are made square, see `resize_square`.
    """
    contract: dict[str, int | str] = {
        "version": PREPROCESSING_VERSION,
        "jpeg_quality": JPEG_QUALITY,
        "resampling": RESAMPLING.name.lower(),
        "description": f"EXIF orientation applied, composited on white, {RESIZE_MODES[resize]} to a square, "
        "stored as RGB JPEG",
    }
    return contract if resize == STRETCH else contract | {"resize": resize}


def rejection_reason(error: Exception) -> str:
    """Says in one line why an image could not be opened or decoded, for `rejected.csv` and for messages."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, PermissionError):
        return "unreadable: permission denied"
    return one_line(error) if isinstance(error, ValueError) else f"damaged: {one_line(error)}"


def resize_square(image: Image.Image, size: int, resize: str = STRETCH) -> Image.Image:
    """Returns an image as RGB of size × size pixels.

    Large images wait for each other, so that the memory they take does not grow with the number of threads or workers.

    Args:
        image: The image.
        size: Edge of the result, in pixels.
        resize: `stretch` changes the aspect ratio. Others keep it: `crop` takes the largest square at the centre, and
            `pad` adds grey at two edges.
    """
    is_large = image.width * image.height > LARGE_PIXELS
    with LARGE_IMAGE if is_large else nullcontext():
        rgb = to_rgb(image)
        if resize == CROP:
            return ImageOps.fit(rgb, (size, size), RESAMPLING)
        if resize == PAD:  # ImageOps.pad fails where less than half a pixel of an edge would be left
            scale = size / max(rgb.size)
            fitted = rgb.resize((max(1, round(scale * rgb.width)), max(1, round(scale * rgb.height))), RESAMPLING)
            square = Image.new("RGB", (size, size), PADDING)
            square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
            return square
        return rgb.resize((size, size), RESAMPLING)


def read_square(source: Path | bytes, size: int, resize: str = STRETCH) -> Image.Image:
    """Opens an image, given as a path or as the bytes of a file, and returns it as `resize_square` does.

    Raises:
        ValueError, OSError: As `open_image` and `to_rgb` raise them. `rejection_reason` puts any of them into words.
    """
    with open_image(source) as image:
        return resize_square(image, size, resize)


def save_processed(image: Image.Image, file: Path | IO[bytes], **options: Any) -> None:
    """Saves a resized image as JPEG of the contract's quality. Pillow's other `options`, such as `comment`, pass on."""
    image.save(file, "JPEG", quality=JPEG_QUALITY, **options)


def processed_pixels(image: Image.Image, size: int, resize: str = STRETCH) -> np.ndarray:
    """Returns the pixels that a model sees of an image once it is stored as JPEG: uint8, (size, size, 3)."""
    with io.BytesIO() as file:
        save_processed(resize_square(image, size, resize), file)
        return np.asarray(Image.open(file, formats=["JPEG"]))


def crc32_if_up_to_date(path: Path, sha256: str, size: int, known: int | None) -> int | None:
    """Returns the CRC-32 of a processed image's file, or None if the image must be made again.

    Args:
        path: The processed image.
        sha256: Checksum of its source, which it has as JPEG comment.
        size: Edge of the image, in pixels.
        known: The CRC-32 that the file had when it was made. If that was not recorded, all pixels are decoded instead.
    """
    try:
        content = path.read_bytes()
        crc32 = zlib.crc32(content)
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            if (image.info.get("comment"), *image.size) != (sha256.encode(), size, size) or known not in (None, crc32):
                return None
            if known is None:
                image.load()
        return crc32
    except Exception:  # missing, or damaged in any way
        return None


def processed_names(overview: pd.DataFrame) -> pd.Series:
    """Returns the file names of processed images, one per row of the overview.

    `a.jpeg` becomes `a.jpg`. Names that would collide (`a.jpeg` and `a.png`, or `A.jpg`), be too long, or not be
    possible on Windows (`con.jpg`) get a suffix. On some systems, letter case and the Unicode encoding of accents do
    not tell names apart.
    """
    stems = overview.name.map(lambda name: Path(name).stem)
    keys = (overview.category + "/" + stems).map(lambda key: unicodedata.normalize("NFC", key.casefold()))
    is_device = stems.map(lambda stem: bool(WINDOWS_DEVICE.match(stem)))
    stems = stems.mask(is_device, stems.str.replace(".", "_"))  # what follows a dot does not help
    needs_suffix = keys.duplicated(keep=False) | is_device
    needs_suffix |= stems.map(lambda stem: len(os.fsencode(stem)) > 250)  # too long for a file name, with .jpg
    digests = overview.relpath.map(lambda path: hashlib.sha256(os.fsencode(path)).hexdigest()[:8])
    # Cut to 55 characters, since a file name may have 255 bytes and a character takes up to four.
    return stems.where(~needs_suffix, stems.str[:55] + "-" + digests) + ".jpg"


def map_on_all_cores(
    function: Callable[[Item], Result], items: Sequence[Item], title: str, unit_scale: int = 1
) -> list[Result]:
    """Applies a function to all items in threads and shows the progress, with `unit_scale` files to an item.

    Pillow releases the interpreter's lock while it decodes, resizes and encodes, so threads are enough.
    """
    if not items:
        return []  # without an empty progress bar
    with without_image_warnings():
        options = {"tqdm_class": Progress, "desc": title, "unit": "file", "unit_scale": unit_scale}
        return thread_map(function, items, max_workers=os.cpu_count(), **options)


@contextmanager
def without_image_warnings() -> Iterator[None]:
    """Hides the warnings of Pillow: bombs are rejected by their size, and odd EXIF data and palettes are harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield
