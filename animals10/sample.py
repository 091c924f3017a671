"""Draws the sample data set: a tiny stand-in for Animals-10, in the layout of the download, damaged files included.

The animals are glyphs of Noto Color Emoji (Debian: fonts-noto-color-emoji) on drawn landscapes. The images are in the
repository, so this module is needed only to draw them again. The same font and Pillow give the same files.
"""

import random
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from animals10.files import UserError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPHS = {
    "cane": "🐕🐶🐩",
    "cavallo": "🐎🐴",
    "elefante": "🐘",
    "farfalla": "🦋",
    "gallina": "🐔🐓🐤",
    "gatto": "🐈🐱",
    "mucca": "🐄🐮",
    "pecora": "🐑🐏",
    "ragno": "🕷",
    "scoiattolo": "🐿",
}
IMAGES_PER_CLASS = 12
GLYPH_SIZE = 109  # the only size, in pixels, of the font's bitmaps
EXIF_ORIENTATION = 0x0112
SKIES = [(135, 190, 235), (200, 220, 235), (250, 205, 160), (90, 110, 160), (215, 235, 215)]
GROUNDS = [(110, 150, 80), (190, 170, 110), (150, 120, 90), (95, 125, 95), (225, 230, 235)]


def draw_sample(folder: Path, font_path: Path = FONT) -> None:
    """Draws all images of the sample into a folder, which is emptied first.

    Raises:
        UserError: The font is not installed, or the folder holds other files than those of the sample.
    """
    drawn = re.compile(rf"({'|'.join(GLYPHS)})-\d\d\.(jpe?g|png)")
    if others := [path for path in folder.rglob("*") if path.is_file() and not drawn.fullmatch(path.name)]:
        raise UserError(f"{folder} would be emptied, but holds {others[0].name}: choose another folder.")
    if not font_path.exists():
        raise UserError(f"There is no {font_path}: install Noto Color Emoji (Debian: fonts-noto-color-emoji).")
    font = ImageFont.truetype(font_path, GLYPH_SIZE)
    shutil.rmtree(folder, ignore_errors=True)
    rng = random.Random(10)
    for category, glyphs in GLYPHS.items():
        (folder / category).mkdir(parents=True)
        for index in range(IMAGES_PER_CLASS):
            image, animal = _draw_image(rng, font, glyphs[index % len(glyphs)])
            suffix = "jpeg"
            if category in ("cane", "gatto", "mucca"):
                suffix = {3: "jpg", 7: "png"}.get(index, suffix)
            path = folder / category / f"{category}-{index:02}.{suffix}"
            _save(image, animal, path)
            if (category, index) == ("ragno", 9):  # a truncated download
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            if (category, index) == ("gallina", 11):  # an exact duplicate
                shutil.copy(path.with_name("gallina-00.jpeg"), path)


def _save(image: Image.Image, animal: Image.Image, path: Path) -> None:
    """Saves an image of the sample; some get a property that the preprocessing has to handle."""
    if path.name == "gatto-07.png":  # transparent, like one image of Animals-10
        animal.save(path)
    elif path.suffix == ".png":
        image.quantize(64).save(path)
    elif path.stem == "elefante-04":
        image.convert("L").save(path, quality=80)
    elif path.stem == "pecora-02":  # upright only once its EXIF orientation is applied
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=80, exif=exif)
    else:
        image.save(path, "JPEG", quality=80)


def _draw_image(rng: random.Random, font: ImageFont.FreeTypeFont, glyph: str) -> tuple[Image.Image, Image.Image]:
    """Returns an image of 150 to 300 pixels with one animal (RGB), and the animal alone, transparent around (RGBA)."""
    size = (300, rng.choice([169, 200, 225, 300])) if rng.random() < 0.75 else (rng.choice([150, 200, 225]), 300)
    glyph_image = _animal(rng, font, glyph, min(size) * rng.uniform(0.5, 0.85))
    animal = Image.new("RGBA", size)
    left = (size[0] - glyph_image.width) // 2 + rng.randint(-30, 30)
    animal.paste(glyph_image, (left, (size[1] - glyph_image.height) // 2))
    image = _landscape(rng, size)
    image.paste(animal, mask=animal)
    return image, animal


def _landscape(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Returns a sky with a gradient above hills, with the noise of a photograph."""
    width, height = size
    gradient = np.linspace(1, 1.15, height)[:, None, None]
    sky = np.array(rng.choice(SKIES)) * gradient * np.ones((1, width, 1))
    image = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    ground, horizon = rng.choice(GROUNDS), height * rng.uniform(0.45, 0.75)
    for depth in range(3):
        colour = tuple(int(value * (1 - 0.12 * depth)) for value in ground)
        phase, wavelength = rng.uniform(0, 6), rng.uniform(30, 90)
        top = horizon + depth * height / 9
        hills = [(x, top + 9 * np.sin(x / wavelength + phase)) for x in range(-5, width + 5, 5)]
        draw.polygon([*hills, (width + 5, height), (-5, height)], fill=colour)
    for _ in range(rng.randint(0, 25)):  # stones or flowers
        x, y, radius = rng.uniform(0, width), rng.uniform(horizon, height), rng.uniform(1, 4)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.choices(range(60, 256), k=3)))
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _animal(rng: random.Random, font: ImageFont.FreeTypeFont, glyph: str, height: float) -> Image.Image:
    """Returns a glyph (RGBA) about `height` pixels high, perhaps mirrored, rotated by up to 15 degrees."""
    image = Image.new("RGBA", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE))
    ImageDraw.Draw(image).text((40, 40), glyph, font=font, embedded_color=True)
    image = image.crop(image.getbbox())
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-15, 15), expand=True, resample=Image.Resampling.BICUBIC)
    scale = height / image.height
    return image.resize((round(image.width * scale), round(height)), Image.Resampling.LANCZOS)
