"""The sample data set: a stand-in for Animals-10 that is small and can be learned, with the issues of the download.

The repository ships the cut-outs of animals alone. `compose_sample` draws scenes around them, at first use. It is
integer arithmetic from a fixed seed, and the images are stored without loss: every machine gets the same pixels.
The cut-outs are glyphs of Noto Color Emoji; `draw_cut_outs` is needed only to draw them again.
"""

import math
import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import filelock
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from animals10.files import REPOSITORY, UserError, atomic_write, file_sha256, reading, user_facing_os_errors

CUT_OUTS = REPOSITORY / "data" / "sample" / "cut-outs.png"
SAMPLE = REPOSITORY / "build" / "sample-images" / "raw-img"
SEED = 10
IMAGES_PER_CLASS = 48

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the only size of the font's bitmaps
CELL = 136  # pixels: edge of the square that holds a cut-out
GLYPHS = {
    "cane": "🐕🐶🐩🦮",
    "cavallo": "🐎🐴🏇",
    "elefante": "🐘🦣",
    "farfalla": "🦋",
    "gallina": "🐔🐓🐤🐥",
    "gatto": "🐈🐱😺",
    "mucca": "🐄🐮🐂🐃",
    "pecora": "🐑🐏🐐",
    "ragno": "🕷",
    "scoiattolo": "🐿",
}
SKIES = ((135, 190, 235), (200, 220, 235), (250, 205, 160), (90, 110, 160), (215, 235, 215), (240, 240, 245))
GROUNDS = ((110, 150, 80), (190, 170, 110), (150, 120, 90), (95, 125, 95), (225, 230, 235), (70, 90, 60))
WALLS = ((220, 200, 180), (170, 190, 200), (200, 170, 170), (235, 230, 210), (120, 130, 150), (160, 180, 150))

# The issues of the download. All files are PNGs; as there, some names say otherwise.
NAMED_JPEG = ("cane-03.jpg", "gatto-03.jpeg", "mucca-03.jpeg")
TRANSPARENT, GREYSCALE, TURNED, TRUNCATED = "gatto-07", "elefante-04", "pecora-02", "ragno-09"
PALETTE = ("cane-07", "mucca-07")
DUPLICATE, NEAR_DUPLICATE = ("gallina-00", "gallina-11"), ("cavallo-05", "cavallo-13")
SMALL, WIDE = "scoiattolo-20", "elefante-30"  # to be upscaled; of an odd aspect ratio
EXIF_ORIENTATION = 0x0112


def compose_sample(folder: Path = SAMPLE) -> Path:
    """Composes the images of the sample, unless they are there: 480 PNGs, in seconds.

    Args:
        folder: Where to: one folder per class, with the names of the download. What an older version composed there
            is replaced.

    Returns:
        The folder.

    Raises:
        UserError: The cut-outs are missing or damaged, or the folder cannot be written.
    """
    stamp = folder.with_name(f".{folder.name}-made-of")
    version = f"{file_sha256(CUT_OUTS)} {file_sha256(Path(__file__))}"
    with user_facing_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):  # notebooks may start at the same time
            if stamp.exists() and stamp.read_text(encoding="utf-8") == version:
                return folder
            if stamp.exists():
                shutil.rmtree(folder, ignore_errors=True)
            print(f"Drawing the {len(GLYPHS) * IMAGES_PER_CLASS} images of the sample (once) …", flush=True)
            for path, content in _files(folder):
                path.parent.mkdir(parents=True, exist_ok=True)
                content.save(path, "PNG", compress_level=3, exif=content.info.get("exif", b""))
            _damage(folder)
            stamp.write_text(version, encoding="utf-8")
    return folder


def draw_cut_outs(path: Path = CUT_OUTS, font_path: Path = FONT) -> None:
    """Draws the cut-outs: one row of squares per class, each with one animal, transparent around it.

    Raises:
        UserError: The font is not installed (Debian: fonts-noto-color-emoji).
    """
    if not font_path.exists():
        raise UserError(f"There is no {font_path}: install Noto Color Emoji (Debian: fonts-noto-color-emoji).")
    font = ImageFont.truetype(font_path, FONT_SIZE)
    sheet = Image.new("RGBA", (CELL * max(map(len, GLYPHS.values())), CELL * len(GLYPHS)))
    for row, glyphs in enumerate(GLYPHS.values()):
        for column, glyph in enumerate(glyphs):
            cell = Image.new("RGBA", (2 * CELL, 2 * CELL))
            ImageDraw.Draw(cell).text((CELL // 2, CELL // 2), glyph, font=font, embedded_color=True)
            animal = cell.crop(cell.getbbox())
            place = ((CELL - animal.width) // 2 + column * CELL, (CELL - animal.height) // 2 + row * CELL)
            sheet.paste(animal, place)
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


@cache
def _cut_outs() -> dict[str, list[np.ndarray]]:
    """Returns the cut-outs of each class: (height, width, 4) from 0 to 255, colours multiplied with the opacity."""
    with reading(CUT_OUTS, "is damaged", "restore it with git"), Image.open(CUT_OUTS) as image:
        sheet = np.asarray(image.convert("RGBA")).astype(np.int32)
    sheet[..., :3] = sheet[..., :3] * sheet[..., 3:] // 255
    found: dict[str, list[np.ndarray]] = {}
    for row, (category, glyphs) in enumerate(GLYPHS.items()):
        cells = [sheet[row * CELL : (row + 1) * CELL, column * CELL :][:, :CELL] for column in range(len(glyphs))]
        found[category] = [_cropped(cell) for cell in cells]
    return found


def _cropped(cell: np.ndarray) -> np.ndarray:
    """Returns a cut-out without the transparent rows and columns around it, but for one."""
    rows, columns = (np.flatnonzero(cell[..., 3].any(axis=axis)) for axis in (1, 0))
    return np.pad(cell[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], ((1, 1), (1, 1), (0, 0)))


# ── Images ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _files(folder: Path) -> Iterator[tuple[Path, Image.Image]]:
    """Yields the path and the image of each file; what `save` needs to know is in the image's `info`."""
    names = {Path(name).stem: name for name in NAMED_JPEG}
    for category, animals in _cut_outs().items():
        for index in range(IMAGES_PER_CLASS):
            stem = f"{category}-{index:02}"
            rng = random.Random(f"{SEED} {stem}")
            pixels, animal = _compose(rng, animals[index % len(animals)], _size(rng, stem))
            yield folder / category / names.get(stem, f"{stem}.png"), _with_issue(stem, pixels, animal)


def _size(rng: random.Random, stem: str) -> tuple[int, int]:
    """Returns the height and width of an image."""
    if stem in (SMALL, WIDE):
        return (90, 120) if stem == SMALL else (150, 330)
    short = rng.randrange(150, 225)
    return (short, 225) if rng.random() < 0.75 else (225, short)


def _with_issue(stem: str, pixels: np.ndarray, animal: np.ndarray) -> Image.Image:
    """Returns an image; some get a property that the preprocessing has to handle."""
    if stem == TRANSPARENT:
        opacity = np.maximum(animal[..., 3:], 1)
        return Image.fromarray(
            np.dstack([np.minimum(animal[..., :3] * 255 // opacity, 255), animal[..., 3]]).astype("u1")
        )
    if stem == GREYSCALE:
        return Image.fromarray((pixels @ (299, 587, 114) // 1000).astype("u1"))
    if stem in PALETTE:  # six levels of each colour
        levels = (pixels * 5 + 127) // 255
        image = Image.fromarray((levels @ (36, 6, 1)).astype("u1"), "P")
        image.putpalette([51 * level for index in range(216) for level in (index // 36, index // 6 % 6, index % 6)])
        return image
    if stem == TURNED:  # upright only once its EXIF orientation is applied
        image = Image.fromarray(np.rot90(pixels).astype("u1"))
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6
        image.info["exif"] = exif
        return image
    return Image.fromarray(pixels.astype("u1"))


def _damage(folder: Path) -> None:
    """Makes the exact duplicate, the near-duplicate and the truncated file."""
    first, copy = (folder / stem.split("-")[0] / f"{stem}.png" for stem in DUPLICATE)
    shutil.copy(first, copy)
    first, copy = (folder / stem.split("-")[0] / f"{stem}.png" for stem in NEAR_DUPLICATE)
    with Image.open(first) as image:
        pixels = np.asarray(image)[2:-2, 2:-2]
    Image.fromarray(pixels // 8 * 8 + 4).save(copy, "PNG")  # cropped, and with fewer colours
    truncated = folder / TRUNCATED.split("-")[0] / f"{TRUNCATED}.png"
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])


def _compose(rng: random.Random, animal: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image of one animal, (height, width, 3), and the animal alone, (height, width, 4)."""
    height, width = size
    scene = rng.choice((_landscape, _landscape, _room, _thicket))(rng, height, width)
    layer = _placed(rng, animal, height, width)
    light = rng.randrange(80, 121)  # per cent
    colours = np.minimum(layer[..., :3] * light // 100, layer[..., 3:])
    pixels = colours + scene * (255 - layer[..., 3:]) // 255
    bits = rng.choice((1, 3, 7))  # of the noise, the same for red, green and blue
    noise = np.frombuffer(rng.randbytes(2 * height * width), "u1").reshape(2, height, width, 1) & bits
    return np.clip(pixels + noise[0].astype(np.int32) - noise[1], 0, 255), layer


def _placed(rng: random.Random, animal: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a layer of the given size with one animal: perhaps mirrored, rotated by up to 20 degrees, and scaled."""
    if rng.random() < 0.5:
        animal = animal[:, ::-1]
    rows, columns = animal.shape[:2]
    size = min(height, width) * rng.randrange(45, 90) // 100  # of the longer edge, in pixels
    finer = 2 if size < 100 else 1  # a small one is drawn at twice its size, and then halved
    angle, scale = math.radians(rng.randrange(-20, 21)), max(rows, columns) / size
    # Positions in the cut-out are counted in 1/256 pixels. Rounding them hides how exact a machine's sine is.
    cosine, sine = (round(256 * 256 * scale / finer * f(angle)) for f in (math.cos, math.sin))
    reach = size // 8
    y_middle = height // 2 + rng.randrange(-reach, reach + 1)
    x_middle = width // 2 + rng.randrange(-reach - (width - size) // 4, reach + (width - size) // 4 + 1)
    half = size * 3 // 4 + 1  # a rotated cut-out reaches no further from its middle
    top, left = max(y_middle - half, 0), max(x_middle - half, 0)
    bottom, right = min(y_middle + half, height), min(x_middle + half, width)
    y, x = np.ogrid[: finer * (bottom - top), : finer * (right - left)]
    y, x = y - finer * (y_middle - top), x - finer * (x_middle - left)
    row = (cosine * y + sine * x) // 256 + 128 * rows
    column = (cosine * x - sine * y) // 256 + 128 * columns
    inside = (row >= 0) & (row < 256 * (rows - 1)) & (column >= 0) & (column < 256 * (columns - 1))
    drawn = np.zeros((*row.shape, 4), np.int32)
    drawn[inside] = _bilinear(animal, row[inside], column[inside])
    blocks = drawn.reshape(bottom - top, finer, right - left, finer, 4)
    layer = np.zeros((height, width, 4), np.int32)
    layer[top:bottom, left:right] = blocks.sum(axis=(1, 3), dtype=np.int32) // finer**2
    return layer


def _bilinear(pixels: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Returns the values of an image at positions between its pixels, which are given in 1/256 pixels."""
    top, left, down, right = row // 256, column // 256, (row % 256)[:, None], (column % 256)[:, None]
    flat, width = pixels.reshape(-1, pixels.shape[-1]), pixels.shape[1]
    first = top * width + left
    above = flat[first] * (256 - right) + flat[first + 1] * right
    below = flat[first + width] * (256 - right) + flat[first + width + 1] * right
    return (above * (256 - down) + below * down) >> 16


# ── Scenes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _landscape(rng: random.Random, height: int, width: int) -> np.ndarray:
    """Returns a sky with clouds over hills with stones and flowers, (height, width, 3)."""
    scene = _lighter_below(rng.choice(SKIES), height, width)
    horizon = height * rng.randrange(40, 75) // 100
    for _ in range(rng.randrange(4)):
        colour = [min(value + 20, 255) for value in rng.choice(SKIES)]
        _ellipse(
            scene, rng.randrange(horizon), rng.randrange(width), rng.randrange(6, 18), rng.randrange(20, 60), colour
        )
    ground, rows, columns = rng.choice(GROUNDS), np.arange(height)[:, None], np.arange(width)
    for depth in range(3):
        phase, length = rng.randrange(1000), rng.randrange(30, 90)
        top = horizon + depth * height // 9 + _wave(columns, length, phase) * 9 // 1024
        scene[rows >= top] = [value * (100 - 12 * depth) // 100 for value in ground]
    _dots(rng, scene, horizon, rng.randrange(30))
    return scene


def _room(rng: random.Random, height: int, width: int) -> np.ndarray:
    """Returns a wall, striped or with frames, over a floor, (height, width, 3)."""
    scene = _lighter_below(rng.choice(WALLS), height, width)
    floor = height * rng.randrange(55, 85) // 100
    if rng.random() < 0.5:
        distance, shade = rng.randrange(16, 50), rng.randrange(75, 95)
        stripes = np.arange(width) % distance < distance // 2
        scene[:, stripes] = scene[:, stripes] * shade // 100
    for _ in range(rng.randrange(4)):
        top, left = rng.randrange(floor), rng.randrange(width)
        scene[top : min(top + rng.randrange(20, 60), floor), left : left + rng.randrange(20, 60)] = rng.choice(WALLS)
    scene[floor:] = [value * 70 // 100 for value in rng.choice(WALLS)]
    return scene


def _thicket(rng: random.Random, height: int, width: int) -> np.ndarray:
    """Returns a ground seen from above with leaves all over it, (height, width, 3)."""
    ground = rng.choice(GROUNDS)
    scene = _lighter_below(ground, height, width)
    for _ in range(rng.randrange(20, 70)):
        colour = [min(max(value + rng.randrange(-45, 46), 0), 255) for value in ground]
        _ellipse(scene, rng.randrange(height), rng.randrange(width), rng.randrange(3, 20), rng.randrange(3, 20), colour)
    _dots(rng, scene, 0, rng.randrange(12))
    return scene


def _lighter_below(colour: tuple[int, ...], height: int, width: int) -> np.ndarray:
    light = 100 + 15 * np.arange(height, dtype=np.int32)[:, None, None] // height
    return np.minimum(np.array(colour, np.int32) * light // 100, 255) * np.ones((1, width, 1), np.int32)


def _wave(x: np.ndarray, length: int, phase: int) -> np.ndarray:
    """Returns a wave between -1024 and 1024, of a length that is given in 1/6 of a period."""
    table = np.array([round(1024 * math.sin(2 * math.pi * index / 1000)) for index in range(1000)])
    return table[(x * 1000 // (6 * length) + phase) % 1000]


def _dots(rng: random.Random, scene: np.ndarray, top: int, n: int) -> None:
    for _ in range(n):
        y, x, radius = rng.randrange(top, len(scene)), rng.randrange(scene.shape[1]), rng.randrange(1, 5)
        _ellipse(scene, y, x, radius, radius, [rng.randrange(60, 256) for _ in range(3)])


def _ellipse(scene: np.ndarray, y: int, x: int, y_radius: int, x_radius: int, colour: list[int]) -> None:
    top, left = max(y - y_radius, 0), max(x - x_radius, 0)
    part = scene[top : y + y_radius + 1, left : x + x_radius + 1]
    rows, columns = np.ogrid[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]]
    part[(rows * x_radius) ** 2 + (columns * y_radius) ** 2 <= (x_radius * y_radius) ** 2] = colour
