"""Files of all kinds, with the pixels that the specifications of their formats ask for, or the reason for refusal."""

import io
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from animals10 import decoding
from animals10.bad_input import HEIC, MASKS, ODD_ENTRIES, bmp_file, exif_data, jpeg_bomb, jpeg_with, png_file, tiff_file
from animals10.decoding import open_image, to_rgb
from animals10.files import REPOSITORY
from animals10.images import processed_pixels
from animals10.settings import SAMPLE

PIXELS = 8 * 6
WHITE = (255, 255, 255)


def saved(image, file_format, **options):
    with io.BytesIO() as file:
        image.save(file, file_format, **options)
        return file.getvalue()


def shorts(*values):
    return struct.pack(f"<{len(values)}H", *values) * PIXELS


def one_grey(bits, value, transparent):
    """A PNG of one grey value, and the grey value that counts as transparent."""
    packed = int(8 * f"{value:0{bits}b}", 2).to_bytes(bits, "big")
    return png_file(bits, 0, [packed] * 6, tRNS=struct.pack(">H", transparent))


def part_of_a_gif():
    gif = saved(Image.new("L", (4, 3), 90), "GIF")
    return gif[:6] + struct.pack("<HH", 8, 6) + gif[10:]  # the frame covers a quarter of the image


ALPHA = {"t277": 4, "t262": 2, "t258": (8,) * 4}
KINDS = {
    "BMP, alpha bytes of 0": (bmp_file(32, bytes((30, 20, 10, 0)) * PIXELS, masks=MASKS), (10, 20, 30)),
    "BMP, half transparent": (bmp_file(32, bytes((0, 0, 255, 128)) * PIXELS, masks=MASKS), (255, 127, 127)),
    "BMP, fourth byte of no meaning": (bmp_file(32, bytes((30, 20, 10, 0)) * PIXELS), (10, 20, 30)),
    "BMP, 16 bits": (bmp_file(16, shorts(0b11111 << 10)), (255, 0, 0)),
    "BMP, palette of 4 bits": (bmp_file(4, b"\x11" * 24, bytes(4) + b"\x1e\x14\x0a\0"), (10, 20, 30)),
    "TIFF, 0 is white": (tiff_file(bytes([55]) * PIXELS, t262=0), (200, 200, 200)),
    "TIFF, 0 is white, 1 bit": (tiff_file(bytes(6), t258=1, t262=0), WHITE),
    "TIFF, 0 is white, 4 bits": (tiff_file(b"\x33" * 24, t258=4, t262=0), (204, 204, 204)),
    "TIFF, 0 is white, 16 bits": (tiff_file(shorts(257 * 55), t258=16, t262=0), (200, 200, 200)),
    "TIFF, 16 bits": (tiff_file(shorts(257 * 55), t258=16), (55, 55, 55)),
    "TIFF, 12 bits": (tiff_file(b"\x80\x08\x00" * 24, t258=12), (128, 128, 128)),
    "TIFF, bits reversed": (tiff_file(b"\x80" * PIXELS, t266=2), (1, 1, 1)),
    "TIFF, colours of 16 bits": (tiff_file(shorts(2570, 5140, 7710), t258=(16,) * 3, t262=2, t277=3), (10, 20, 30)),
    "TIFF, planes": (tiff_file(b"\1" * 48 + b"\2" * 48 + b"\3" * 48, t258=(8,) * 3, t262=2, t277=3, t284=2,
        t273=(8, 56, 104), t279=(48,) * 3), (1, 2, 3)),
    "TIFF, palette": (tiff_file(bytes(PIXELS), t262=3, t320=[2560] * 256 + [5120] * 256 + [7680] * 256), (10, 20, 30)),
    "TIFF, 8-bit palette": (tiff_file(bytes(PIXELS), t262=3, t320=[10] * 256 + [20] * 256 + [30] * 256), (10, 20, 30)),
    "TIFF, CMYK": (tiff_file(bytes((0, 255, 255, 0)) * PIXELS, t258=(8,) * 4, t262=5, t277=4), (255, 0, 0)),
    "TIFF, CIELab": (tiff_file(bytes((138, 81, 70)) * PIXELS, t258=(8,) * 3, t262=8, t277=3), (251, 5, 4)),
    "TIFF, YCbCr": (tiff_file(bytes((76, 85, 255)) * PIXELS, t258=(8,) * 3, t262=6, t277=3, t530=(1, 1)), (254, 0, 0)),
    "TIFF, alpha": (tiff_file(bytes((0, 0, 255, 128)) * PIXELS, **ALPHA, t338=2), (127, 127, 255)),
    "TIFF, premultiplied": (tiff_file(bytes((0, 0, 128, 128)) * PIXELS, **ALPHA, t338=1), (127, 127, 255)),
    "TIFF, no alpha": (tiff_file(bytes((10, 20, 30, 0)) * PIXELS, **ALPHA, t338=0), (10, 20, 30)),
    "TIFF, undeclared bytes of 0": (tiff_file(bytes((10, 20, 30, 0)) * PIXELS, **ALPHA), (10, 20, 30)),
    "TIFF, all transparent": (tiff_file(bytes((10, 20, 30, 0)) * PIXELS, **ALPHA, t338=2), WHITE),
    "TIFF, grey and alpha": (tiff_file(bytes((0, 128)) * PIXELS, t258=(8, 8), t277=2, t338=2), (127,) * 3),
    "TIFF, grey, premultiplied": (tiff_file(bytes((64, 128)) * PIXELS, t258=(8, 8), t277=2, t338=1), (191,) * 3),
    "PNG, 1 bit, transparent": (one_grey(1, 0, 0), WHITE),
    "PNG, 2 bits": (one_grey(2, 1, 2), (85, 85, 85)),
    "PNG, 2 bits, transparent": (one_grey(2, 1, 1), WHITE),
    "PNG, 4 bits, transparent": (one_grey(4, 3, 3), WHITE),
    "PNG, 8 bits, transparent": (one_grey(8, 90, 90), WHITE),
    "PNG, 16 bits": (one_grey(16, 257 * 55, 257 * 55 + 1), (55, 55, 55)),
    "PNG, 16 bits, transparent": (one_grey(16, 257 * 55, 257 * 55), WHITE),
    "PNG, grey and alpha, 16 bits": (png_file(16, 4, [bytes((0, 0, 128, 128)) * 8] * 6), (127, 127, 127)),
    "PNG, alpha, 16 bits": (png_file(16, 6, [bytes((0, 0, 0, 0, 255, 255, 128, 128)) * 8] * 6), (127, 127, 255)),
    "PNG, one colour transparent": (saved(Image.new("RGB", (8, 6), (1, 2, 3)), "PNG", transparency=(1, 2, 3)), WHITE),
    "PNG, palette half transparent": (png_file(8, 3, [bytes(8)] * 6, PLTE=b"\0\0\xff", tRNS=b"\x80"), (127, 127, 255)),
    "PPM, 10 bits": (b"P5 8 6 1023 " + struct.pack(">H", 512) * PIXELS, (128, 128, 128)),
    "CMYK JPEG": (saved(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
    "animated GIF": (saved(Image.new("RGB", (8, 6), (255, 0, 0)), "GIF", save_all=True,
        append_images=[Image.new("RGB", (8, 6))]), (255, 0, 0)),
    "animated PNG": (saved(Image.new("RGB", (8, 6), (255, 0, 0)), "PNG", save_all=True,
        append_images=[Image.new("RGB", (8, 6))]), (255, 0, 0)),
}  # fmt: skip


LATER = "TIFF, YCbCr", "TIFF, grey, premultiplied"  # are refused by Pillow before 12, instead of misread


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_converted_as_its_format_says(kind):
    content, expected = KINDS[kind]
    if kind in LATER and Image.core.PILLOW_VERSION < "12":
        with pytest.raises(ValueError, match=r"which Pillow before 12 misreads|unknown pixel mode"):
            open_image(content)
        return
    with open_image(content) as image:
        for _ in range(2):  # the second time it is decoded already
            pixels = np.asarray(to_rgb(image)).astype(int)
            assert pixels.shape == (6, 8, 3) and np.abs(pixels - expected).max() <= 1


def test_what_a_gif_leaves_out_is_transparent():
    with open_image(part_of_a_gif()) as image:
        pixels = np.asarray(to_rgb(image))
    assert (pixels[:3, :4] == 90).all() and (pixels[3:] == 255).all() and (pixels[:, 4:] == 255).all()


def test_a_large_image_is_converted_in_strips_without_a_seam(monkeypatch):
    image = Image.effect_noise((40, 50), 90).convert("RGBA")
    image.putalpha(Image.effect_noise((40, 50), 90))
    whole = to_rgb(image)
    monkeypatch.setattr(decoding, "ROWS", 7)
    assert to_rgb(image).tobytes() == whole.tobytes()


TWO_GREYS = bytes(4) + b"\xff\xff\xff\0"
REFUSED = {
    "BMP of 8 bits per pixel with a palette of greys": bmp_file(8, bytes(PIXELS), TWO_GREYS),
    "preview": tiff_file(bytes(PIXELS), t254=1),
    "whether 0 is black or white": tiff_file(bytes(PIXELS)).replace(b"\x06\1\3\0", b"\x07\1\3\0"),
    "TIFF of signed, floating-point or 32-bit": tiff_file(bytes(PIXELS), t339=2),
    "signed, floating-point or 32-bit": tiff_file(bytes(4 * PIXELS), t258=32),
    "floating-point or 32-bit": saved(Image.new("F", (8, 6), 0.5), "TIFF"),
    "have no agreed range": b"Pf 8 6 -1.0 " + bytes(4 * PIXELS),
    "other inks than CMYK": tiff_file(bytes(4 * PIXELS), t258=(8,) * 4, t262=5, t277=4, t332=2),
    "subsampled colours": tiff_file(bytes(3 * PIXELS), t258=(8,) * 3, t262=6, t277=3),
    "separate planes": tiff_file(bytes(6 * PIXELS), t258=(16,) * 3, t262=2, t277=3, t284=2),
    "TIFF with separate planes": tiff_file(bytes(PIXELS), t262=0, t284=2),
    "unusual TIFF: unknown pixel mode": tiff_file(bytes(PIXELS), t258=7),
    "PNG of 16-bit colours": png_file(16, 2, [bytes(48)] * 6, tRNS=bytes(6)),
    "CMYK JPEG without Adobe's mark": saved(Image.new("CMYK", (8, 6)), "JPEG").replace(b"Adobe", b"Other"),
    "65000 × 65000 pixels": jpeg_bomb(),
    "known format": b"a letter",
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_converted_rightly_is_refused_with_the_reason(reason):
    with pytest.raises((ValueError, UnidentifiedImageError), match=reason):
        to_rgb(open_image(REFUSED[reason]))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_orientation_tag_is_applied_once(file_format):
    image = Image.new("RGB", (48, 32), "white")
    image.paste("black", (0, 0, 24, 16))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(image, file_format, exif=exif)
        with open_image(content) as file:
            found = [np.asarray(to_rgb(file)).astype(int) for _ in range(2)]
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
        assert np.array_equal(found[0], expected) and np.array_equal(found[1], expected)


ODD_SEGMENTS = {
    "odd entries": (exif_data(6, *ODD_ENTRIES), 0xE1, 6),
    "texts that lie outside": (exif_data(6, (0x010E, 2, 4000, 2**31)), 0xE1, 6),
    "cut entries": (exif_data(6)[:-6], 0xE1, 6),
    "no EXIF": (b"Exif\0\0no", 0xE1, 1),
    "no such orientation": (exif_data(9), 0xE1, 1),
    "cut Photoshop block": (b"Photoshop 3.0\x008BIM\4\4", 0xED, 1),
    "cut colour profile": (b"ICC_PROFILE\0", 0xE2, 1),
    "cut index of images": (b"MPF\0II*\0\x08\0\0\0\1\0", 0xE2, 1),
    "cut JFIF": (b"JFIF", 0xE0, 1),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # which Pillow gives for odd EXIF data
@pytest.mark.parametrize("name", ODD_SEGMENTS)
def test_odd_metadata_lose_neither_the_image_nor_its_orientation(name):
    segment, marker, orientation = ODD_SEGMENTS[name]
    with open_image(jpeg_with(segment, marker)) as image:
        found = to_rgb(image)
    plain = Image.open(io.BytesIO(jpeg_with(b"", 0xE5)))
    assert found.tobytes() == (plain.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else plain).tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tag", [0x010E, 0x011A, 0x0128, 0x02BC, 0x8769, 0xA005])
def test_an_entry_of_any_type_loses_no_image(tag):
    for kind, value in itertools.product(range(1, 17), (0, 3, 8, 2**32 - 1)):
        with open_image(jpeg_with(exif_data(6, (tag, kind, 2, value)))) as image:
            assert to_rgb(image).size == (17, 23)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_metadata_of_other_formats_lose_no_image_either():
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    contents = [
        saved(image, "PNG", exif=exif_data(6, *ODD_ENTRIES)),
        saved(image, "WEBP", exif=exif_data(6, *ODD_ENTRIES), lossless=True),
        tiff_file(bytes((10, 20, 30)) * PIXELS, t258=(8,) * 3, t262=2, t277=3, t274=6, t34665=9, t34853=8),
        tiff_file(bytes((10, 20, 30)) * PIXELS, t258=(8,) * 3, t262=2, t277=3, t700=(1, 2)),
    ]
    for content in contents:
        with open_image(content) as file:
            found = to_rgb(file)
        assert found.size == ((8, 6) if content is contents[-1] else (6, 8)) and found.getpixel((3, 3)) == (10, 20, 30)
    text = b"prompt\0\0" + zlib.compress(bytes(3_000_000))
    with open_image(png_file(8, 0, [bytes(8)] * 6, zTXt=text)) as file:
        assert to_rgb(file).size == (8, 6)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the peak of a process's memory")
def test_a_photograph_of_200_megapixels_takes_less_than_1_gib(tmp_path):
    path = tmp_path / "large.jpg"
    image = Image.new("L", (16_320, 12_240), 200)
    image.paste(50, (0, 0, 8_160, 12_240))
    image.save(path)
    program = """if True:
        import resource, sys
        from pathlib import Path
        from animals10.images import read_square
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        image = read_square(Path(sys.argv[1]), 64)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(image.getpixel((9, 9)), image.getpixel((55, 9)), peak // 1024 < 1024)
    """
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stdout == "(50, 50, 50) (200, 200, 200) True\n", done.stderr
    with open_image(path) as image:
        assert image.size == (16_320, 12_240)  # which the overview shows


def test_a_progressive_jpeg_that_would_take_more_is_refused():
    jpeg = saved(Image.new("RGB", (16, 16)), "JPEG", progressive=True, subsampling=0)
    at = jpeg.index(b"\xff\xc2") + 5
    with pytest.raises(ValueError, match="a progressive JPEG of 16320 × 12240 pixels takes more than 1 GiB"):
        open_image(jpeg[:at] + struct.pack(">HH", 12_240, 16_320) + jpeg[at + 4 :])


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_is_read_with_the_extra(brand):
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: run `make extras`")
    with open_image(HEIC[:8] + brand + HEIC[12:]) as image:
        rgb = to_rgb(image)
    assert rgb.size == (32, 24)
    assert np.abs(np.subtract([rgb.getpixel((9, 4)), rgb.getpixel((9, 19))], [(20, 40, 200), (230, 140, 30)])).max() < 9


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_without_the_extra_the_reason_names_it(brand, monkeypatch):
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ValueError, match=r"HEIC, which needs pillow-heif: run `make extras`"):
        open_image(HEIC[:8] + brand + HEIC[12:])


def test_the_documented_script_sees_the_pixels_that_the_model_was_trained_on(tmp_path):
    """Beside an exported model there is neither this package nor what it needs, except for Pillow and NumPy."""
    text = (REPOSITORY / "docs" / "usage.md").read_text()
    (script,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "model.tflite.json" in code]
    script = script.replace("from ai_edge_litert.interpreter import Interpreter\n", "").split("predict =")[0]
    shutil.copy(decoding.__file__, tmp_path)
    (tmp_path / "model.tflite.json").write_text('{"input": {"shape": ["n", 32, 32, 3]}}')
    files = {"transparent": KINDS["PNG, palette half transparent"][0], "deep": KINDS["TIFF, 0 is white, 16 bits"][0]}
    files |= {"turned": jpeg_with(exif_data(6)), "drawing": (SAMPLE / "gatto" / "gatto-07.png").read_bytes()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        program = f"{script.replace('dog.jpeg', name)}\nimport sys\nassert 'pandas' not in sys.modules\n"
        program += f"np.save('{name}.npy', pixels)"
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
        with open_image(content) as image:
            expected = processed_pixels(image, 32)
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected[None])
