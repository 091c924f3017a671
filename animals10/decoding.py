"""One image file of any format: opened, checked, and converted to RGB as the specification of its format says.

This module needs Pillow alone, so that it can be copied to where an exported model is used (docs/usage.md). Pillow
decodes most files rightly. What it gets wrong is put right here, or refused with the reason.

Beside the bytes of its file, an image takes at most 1 GiB while it is converted: 12 bytes for each of `MAX_PIXELS`.
Colour profiles are ignored, as by torchvision, `tf.data`, fastai and timm. Of an animation, the first frame is taken.
"""

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from PIL import ExifTags, Image, ImagePalette, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, TiffTags

try:
    import pillow_heif
except ImportError:  # it is optional: `make extras`
    pass
else:
    pillow_heif.register_heif_opener()

# Formats of photographs. Pillow reads more (EPS would start Ghostscript); a data set needs none of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
MAX_PIXELS = 89_478_485  # Pillow's limit (a quarter of 1 GiB at 3 bytes per pixel), above which it warns of a bomb
MAX_JPEG_PIXELS = 3 * MAX_PIXELS  # phones take 108 and 200 megapixels: above `MAX_PIXELS`, half the size is decoded
MAX_BYTES = 2**30  # of a file, and of what a progressive JPEG needs
ROWS = 1024  # converted at once, so that a large image has no whole copies in other modes

# By the value of the orientation tag.
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Numbers of TIFF tags, and what some values mean.
SUBFILE_TYPE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, COLOUR_MAP = 254, 258, 259, 262, 277, 284, 320
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT, SUBSAMPLING, DNG_VERSION = 332, 338, 339, 530, 50706
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6

# Long texts beside the pixels are no reason to refuse a PNG; Pillow limits them in all as well.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def read_file(path: Path) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        ValueError: It is not a regular file, is empty, or is larger than `MAX_BYTES`.
        OSError: It cannot be read.
    """
    _check_file(path)
    return path.read_bytes()


def open_image(source: str | Path | bytes) -> Image.Image:
    """Opens an image without decoding its pixels.

    Args:
        source: The path of a file, or the bytes of one.

    Raises:
        ValueError: The file cannot be used, for a reason that the message gives: it is not a regular file, is empty,
            has too many pixels, is damaged, or is of a kind that cannot be converted to RGB rightly.
        PIL.UnidentifiedImageError: Its content is in none of the `FORMATS`.
        OSError: It cannot be read.
    """
    source = Path(source) if isinstance(source, str) else source
    if isinstance(source, Path):
        _check_file(source)
    image = _open(source)
    try:
        _check_size(image)
        _check_kind(image)
    except Exception:
        image.close()
        raise
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB: EXIF orientation applied, composited on white.

    Raises:
        ValueError: It is of a kind that cannot be converted rightly: its numbers have no agreed range, say.
        OSError: Its pixels are damaged.
    """
    _check_kind(image)
    _prepare(image)
    image.load()
    orientation = ORIENTATIONS.get(_orientation(image))
    image = _with_true_transparency(_eight_bits(image) if image.mode.startswith(("I", "F")) else image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.copy() if orientation is None else image.transpose(orientation)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, ROWS):
        box = (0, top, image.width, min(top + ROWS, image.height))
        rgb.paste(_on_white(image.crop(box)), box)
    return rgb if orientation is None else rgb.transpose(orientation)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError("a folder, not a file" if path.is_dir() else "a broken link or special file")
    if not (size := path.stat().st_size):
        raise ValueError("zero bytes")
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, which is more than 1 GiB")


def _open(source: Path | bytes) -> Image.Image:
    """Opens an image. `Image.open` would refuse large ones before their format is known, and not say why others."""

    def file() -> IO[bytes]:
        return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")

    with file() as opened:
        start = opened.read(256)
    Image.init()
    reason = ""
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory and accepts and accepts(start[:16]) is True:
            try:  # given a path, Pillow closes the file when it is done with it
                given: Any = file() if isinstance(source, bytes) else str(source)
                return factory(given, "")
            except Exception as error:  # plugins raise errors of many kinds
                reason = reason or f"damaged or unusual {name}: {str(error) or type(error).__name__}"
    if start.startswith(b"\xff\xd8\xff"):
        with file() as opened, suppress(Exception):
            return _open_jpeg_without_metadata(opened.read())
    brands = {start[at : at + 4] for at in range(8, min(int.from_bytes(start[:4], "big"), len(start)), 4)}
    if start[4:8] == b"ftyp" and brands & HEIC_BRANDS and "HEIF" not in Image.OPEN:
        raise ValueError("HEIC, which needs pillow-heif: run `make extras`, then run this again")
    raise ValueError(reason) if reason else Image.UnidentifiedImageError("not an image in a known format")


def _open_jpeg_without_metadata(jpeg: bytes) -> Image.Image:
    """Opens a JPEG whose metadata Pillow cannot read: without them, except for orientation and colours."""
    kept, exif, at = [jpeg[:2]], b"", 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":  # until the pixels begin
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        content = jpeg[at + 4 : end]
        if content.startswith(b"Exif\0\0"):
            exif = exif or content
        elif not 0xE0 <= jpeg[at + 1] <= 0xEF or content.startswith(b"Adobe"):
            kept.append(jpeg[at:end])
        at = end
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(b"".join(kept) + jpeg[at:]))
    image.info["exif"] = exif
    return image


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def _check_size(image: Any) -> None:
    """Raises a `ValueError` if an image has too many pixels to decode within the limit of memory."""
    pixels, size = image.width * image.height, f"{image.width} × {image.height} pixels"
    if pixels > (MAX_JPEG_PIXELS if _is_jpeg(image) else MAX_PIXELS):
        limits = f"the limit is {MAX_PIXELS // 10**6} million, and {MAX_JPEG_PIXELS // 10**6} million for JPEG"
        raise ValueError(f"too many pixels, perhaps a decompression bomb: {size}; {limits}")
    if pixels > MAX_PIXELS and "progressive" in image.info:  # all its coefficients are held at once, in 2 bytes each
        sampling = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
        if 2 * pixels * sum(sampling) / max(sampling) + 4 * pixels / 4 > MAX_BYTES:
            raise ValueError(f"a progressive JPEG of {size} takes more than 1 GiB: store it as a baseline JPEG")


def _check_kind(image: Any) -> None:
    """Raises a `ValueError` for kinds of images that Pillow opens, but does not decode rightly."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image.tag_v2)
        is_raw = any(tile[0] == "raw" for tile in image.tile)
        if is_raw and image.tag_v2[PHOTOMETRIC] == YCBCR and image.mode != "YCbCr":
            raise ValueError("a TIFF of YCbCr colours, which Pillow before 12 misreads: store it as RGB")
    elif image.format == "BMP" and image.mode in ("1", "L") and image.tile:
        image.fp.seek(14)
        header = image.fp.read(16)
        (bits,) = struct.unpack_from("<H", header, 10 if header[0] == 12 else 14)
        if bits != {"1": 1, "L": 8}[image.mode]:
            raise ValueError(f"a BMP of {bits} bits per pixel with a palette of greys, which Pillow misreads")
    elif image.format == "PNG" and "transparency" in image.info and _raw_mode(image) == "RGB;16B":
        raise ValueError("a PNG of 16-bit colours, one of them transparent, which Pillow misreads")
    elif _is_jpeg(image) and image.mode == "CMYK" and "adobe" not in image.info:
        raise ValueError("a CMYK JPEG without Adobe's mark, whose inks may be inverted or not: store it as RGB")


def _check_tiff(tags: Mapping[int, Any]) -> None:
    """Raises a `ValueError` for TIFF files that Pillow misreads, or whose numbers have no agreed range."""
    bits, photometric, is_raw = max(tags.get(BITS, (1,))), tags.get(PHOTOMETRIC), tags.get(COMPRESSION, 1) == 1
    samples = tags.get(SAMPLES, 1)
    if tags.get(SUBFILE_TYPE, 0) & 1 or DNG_VERSION in tags:
        raise ValueError("a preview, as camera raw files (DNG, NEF, …) have it: convert the photograph to JPEG")
    if photometric is None:
        raise ValueError("a TIFF that does not say whether 0 is black or white (photometric interpretation)")
    if set(tags.get(SAMPLE_FORMAT, (1,))) != {1} or bits > 16:
        raise ValueError("a TIFF of signed, floating-point or 32-bit numbers, which have no agreed range")
    if photometric == CMYK and tags.get(INK_SET, 1) != 1:
        raise ValueError("a TIFF of other inks than CMYK")
    if photometric == YCBCR and is_raw and tags.get(SUBSAMPLING, (2, 2)) != (1, 1):
        raise ValueError("an uncompressed TIFF with subsampled colours, which Pillow misreads")
    is_right = bits == 8 and photometric in (BLACK_IS_ZERO, RGB, PALETTE, CMYK)
    is_right |= not is_raw and (samples == 1 or photometric == RGB)
    if tags.get(PLANAR, 1) == 2 and (samples == 2 or not is_right):
        raise ValueError("a TIFF with separate planes of this kind, which Pillow misreads: store the planes together")


def _raw_mode(image: Any) -> str:
    """Returns how the pixels are stored, in Pillow's terms; empty once they are decoded."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _prepare(image: Any) -> None:
    """Makes an image ready to be decoded; changes nothing once it is."""
    if not getattr(image, "tile", None):
        return
    if _is_jpeg(image) and image.width * image.height > MAX_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))
    elif isinstance(image.info.get("transparency"), int) and (raw := _raw_mode(image)) in ("L;2", "L;4"):
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}[raw]  # as the pixels will be
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        colours = image.tag_v2.get(COLOUR_MAP, ())
        if image.mode in ("P", "PA") and 0 < max(colours, default=0) < 256:  # 8 bits, where 16 are specified
            image.palette = ImagePalette.raw("RGB;L", bytes(colours))
        # Pillow reads all metadata once the pixels are decoded, and odd ones would lose the image.
        if not isinstance(image.info.get("xmp"), bytes):
            image.info.pop("xmp", None)
        exif = image.getexif()
        for group in TiffTags.TAGS_V2_GROUPS:
            exif.pop(group, None)


def _orientation(image: Image.Image) -> Any:
    """Returns the value of the orientation tag, whatever else the EXIF data hold; 1 if there is none."""
    exif = image.info.get("exif", b"")
    found = _tag_value(exif[6:] if exif.startswith(b"Exif") else exif) if isinstance(exif, bytes) else None
    if found is None:
        with suppress(Exception):  # Pillow looks at other places as well, and raises whatever it meets there
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    return found or 1


def _tag_value(exif: bytes) -> int | None:
    """Returns the orientation from the first directory of EXIF data; None if it is not there."""
    order = "<" if exif.startswith(b"II") else ">"
    with suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (n,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * n, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
            if (tag, kind, count) == (ExifTags.Base.Orientation, 3, 1):
                return struct.unpack_from(f"{order}H", exif, entry + 8)[0]
    return None


def _eight_bits(image: Any) -> Image.Image:
    """Converts greys of 12 or 16 bits to 8 bits, mode L, or LA if one of them is transparent."""
    tags = getattr(image, "tag_v2", {})
    white = 2 ** max(tags.get(BITS, (16,))) - 1
    transparent = image.info.get("transparency")
    greys = image.convert("I") if image.mode != "F" else image
    low, high = greys.getextrema()
    if image.mode == "F" or low < 0 or high > white:
        raise ValueError(f"pixels of mode {image.mode} beyond 16 bit have no agreed range")
    shades = [round(255 * min(value, white) / white) for value in range(2**16)]
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        shades = [255 - shade for shade in shades]
    grey = greys.point(shades, "L")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, greys.point([255 * (value != transparent) for value in range(2**16)], "L")))


def _with_true_transparency(image: Any) -> Image.Image:
    """Returns an image without an alpha channel that means nothing, and with one where its file leaves pixels out."""
    declares_alpha = image.format != "BMP" and not (image.format == "TIFF" and EXTRA_SAMPLES not in image.tag_v2)
    if image.mode == "RGBA" and not declares_alpha and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # many programs leave the fourth byte at 0
    frame = getattr(image, "dispose_extent", None) if image.format == "GIF" else None
    if frame and frame != (0, 0, *image.size) and "transparency" not in image.info:
        alpha = Image.new("L", image.size)
        alpha.paste(255, frame)
        image = image.convert("RGB")
        image.putalpha(alpha)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Converts an image to RGB, composited on white."""
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
