"""Draws the sample data set: a tiny stand-in for Animals-10, in the layout of its download, flaws included.

The animals are glyphs of Noto Color Emoji (Debian: fonts-noto-color-emoji), set on drawn landscapes. The pictures are
committed; this script is needed only to draw them again. The same font and Pillow give the same files.
"""

import argparse
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
PICTURES_A_CLASS = 12
GLYPH_SIZE = 109  # the one size, in pixels, in which the font holds its bitmaps
SKIES = [(135, 190, 235), (200, 220, 235), (250, 205, 160), (90, 110, 160), (215, 235, 215)]
GROUNDS = [(110, 150, 80), (190, 170, 110), (150, 120, 90), (95, 125, 95), (225, 230, 235)]


def landscape(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Returns a sky that fades towards a hilly ground, with the grain of a photograph."""
    width, height = size
    fade = np.linspace(1, 1.15, height)[:, None, None]
    picture = Image.fromarray(np.uint8(np.clip(np.array(rng.choice(SKIES)) * fade * np.ones((1, width, 1)), 0, 255)))
    draw = ImageDraw.Draw(picture)
    ground, horizon = rng.choice(GROUNDS), height * rng.uniform(0.45, 0.75)
    for depth in range(3):
        colour = tuple(int(value * (1 - 0.12 * depth)) for value in ground)
        phase, wave = rng.uniform(0, 6), rng.uniform(30, 90)
        hills = [(x, horizon + depth * height / 9 + 9 * np.sin(x / wave + phase)) for x in range(-5, width + 5, 5)]
        draw.polygon([*hills, (width + 5, height), (-5, height)], fill=colour)
    for _ in range(rng.randint(0, 25)):  # stones or flowers
        x, y, radius = rng.uniform(0, width), rng.uniform(horizon, height), rng.uniform(1, 4)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.choices(range(60, 256), k=3)))
    picture = picture.filter(ImageFilter.GaussianBlur(0.8))
    grain = np.random.default_rng(rng.randrange(2**32)).normal(0, 4, (height, width, 1))
    return Image.fromarray(np.uint8(np.clip(np.asarray(picture) + grain, 0, 255)))


def animal(rng: random.Random, font: ImageFont.FreeTypeFont, glyph: str, height: float) -> Image.Image:
    """Returns a glyph, about `height` pixels tall, mirrored or not, slightly turned, on a transparent ground."""
    picture = Image.new("RGBA", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE))
    ImageDraw.Draw(picture).text((40, 40), glyph, font=font, embedded_color=True)
    picture = picture.crop(picture.getbbox())
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-15, 15), expand=True, resample=Image.Resampling.BICUBIC)
    scale = height / picture.height
    return picture.resize((round(picture.width * scale), round(height)), Image.Resampling.LANCZOS)


def draw_picture(rng: random.Random, font: ImageFont.FreeTypeFont, glyph: str) -> tuple[Image.Image, Image.Image]:
    """Returns a picture of 150 to 300 pixels with one animal, and the animal alone on a transparent ground."""
    size = (300, rng.choice([169, 200, 225, 300])) if rng.random() < 0.75 else (rng.choice([150, 200, 225]), 300)
    creature = animal(rng, font, glyph, min(size) * rng.uniform(0.5, 0.85))
    alone = Image.new("RGBA", size)
    alone.paste(creature, ((size[0] - creature.width) // 2 + rng.randint(-30, 30), (size[1] - creature.height) // 2))
    picture = landscape(rng, size)
    picture.paste(alone, mask=alone)
    return picture, alone


def main() -> None:
    """Draws all pictures anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sample = Path(__file__).resolve().parents[1] / "data" / "sample" / "raw-img"
    parser.add_argument("--out", type=Path, default=sample, help="folder to draw into; emptied first (%(default)s)")
    parser.add_argument("--font", type=Path, default=Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"))
    arguments = parser.parse_args()
    if not arguments.font.exists():
        parser.error(f"there is no {arguments.font}; install Noto Color Emoji (Debian: fonts-noto-color-emoji)")
    font = ImageFont.truetype(arguments.font, GLYPH_SIZE)
    shutil.rmtree(arguments.out, ignore_errors=True)
    rng = random.Random(10)
    for folder, glyphs in GLYPHS.items():
        (arguments.out / folder).mkdir(parents=True)
        for index in range(PICTURES_A_CLASS):
            picture, alone = draw_picture(rng, font, glyphs[index % len(glyphs)])
            suffix = {3: "jpg", 7: "png"}.get(index, "jpeg") if folder in ("cane", "gatto", "mucca") else "jpeg"
            path = arguments.out / folder / f"{folder}-{index:02}.{suffix}"
            flaw = (folder, index)
            if flaw == ("gatto", 7):  # transparent, as one picture of Animals-10 is
                alone.save(path)
            elif suffix == "png":
                picture.quantize(64).save(path)
            elif flaw == ("elefante", 4):
                picture.convert("L").save(path, quality=80)
            elif flaw == ("pecora", 2):  # stored lying on its side, with a note to turn it
                exif = Image.Exif()
                exif[0x0112] = 6
                picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=80, exif=exif)
            else:
                picture.save(path, "JPEG", quality=80)
            if flaw == ("ragno", 9):  # a download that broke off
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            if flaw == ("gallina", 11):  # the same file twice
                shutil.copy(path.with_name("gallina-00.jpeg"), path)


if __name__ == "__main__":
    main()
