import numpy as np
import pytest
from PIL import Image

from animals10 import images
from animals10.images import processed_pixels, resize_square, save_processed, to_rgb
from animals10.settings import SAMPLE

ORANGE = (230, 140, 30)


def transparent_palette():
    image = Image.new("RGB", (4, 4), ORANGE).quantize(4)
    image.info["transparency"] = image.getpixel((0, 0))
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.new("RGB", (4, 4), ORANGE).convert("CMYK"), ORANGE, id="CMYK"),
        pytest.param(Image.new("L", (4, 4), 90), (90, 90, 90), id="grey"),
        pytest.param(Image.fromarray(np.full((4, 4), 40_000, "uint16")), (156, 156, 156), id="16 bit"),
        pytest.param(Image.new("RGBA", (4, 4), (0, 0, 255, 128)), (127, 127, 255), id="half transparent"),
        pytest.param(Image.new("LA", (4, 4), (9, 0)), (255, 255, 255), id="grey, transparent"),
        pytest.param(Image.new("RGB", (4, 4), ORANGE).quantize(4), ORANGE, id="palette"),
        pytest.param(transparent_palette(), (255, 255, 255), id="palette, transparent"),
    ],
)
def test_every_colour_mode_is_converted_to_the_right_rgb(image, expected):
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - expected).max() <= 1


def test_16_bit_and_transparent_files_are_converted_after_reading_too(tmp_path):
    Image.fromarray(np.full((9, 9), 40_000, "uint16")).save(tmp_path / "a.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "b.webp")
    assert to_rgb(Image.open(tmp_path / "a.png")).getpixel((4, 4)) == (156, 156, 156)
    assert to_rgb(Image.open(tmp_path / "b.webp")).getpixel((4, 4)) == (255, 255, 255)


def test_processed_pixels_are_those_of_the_stored_file(tmp_path):
    with Image.open(SAMPLE / "gatto" / "gatto-07.png") as image:  # transparent
        save_processed(resize_square(image, 64), tmp_path / "a.jpg", comment="0" * 64)
        pixels = processed_pixels(image, 64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == "uint8"
    assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "a.jpg")))


def test_an_image_is_made_square_in_each_way():
    """A white image, twice as wide as high, with a black square at its centre."""
    image = Image.new("RGB", (80, 40), "white")
    image.paste("black", (30, 10, 50, 30))
    black = {}
    for resize in images.RESIZE_MODES:
        pixels = np.asarray(resize_square(image, 40, resize))[..., 0]
        rows, columns = np.nonzero(pixels < 64)
        black[resize] = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert (pixels[0] == (128 if resize == "pad" else 255)).all() and pixels[20, 0] == 255
    assert black == {"stretch": (10, 20), "crop": (20, 20), "pad": (10, 10)}
    for size in ((2000, 1), (1, 2000)):
        for resize in images.RESIZE_MODES:
            assert resize_square(Image.new("RGB", size), 40, resize).size == (40, 40)


def test_the_contract_shows_every_constant_that_changes_pixels(monkeypatch):
    before = images.preprocessing_contract()
    assert before == {
        "version": 1,
        "jpeg_quality": 90,
        "resampling": "bilinear",
        "description": "EXIF orientation applied, composited on white, resized to a square, stored as RGB JPEG",
    }
    for name, value in {"JPEG_QUALITY": 80, "RESAMPLING": Image.Resampling.LANCZOS, "PREPROCESSING_VERSION": 2}.items():
        with monkeypatch.context() as patch:
            patch.setattr(images, name, value)
            assert images.preprocessing_contract() != before
    for resize in ("crop", "pad"):
        contract = images.preprocessing_contract(resize)
        assert contract["resize"] == resize and contract["description"] != before["description"]
