"""Serves a page on this machine alone where one drops a picture and sees what a stored model takes it for.

The page loads nothing from the network, and no picture leaves this machine; uploads are deleted when it ends.
"""

import argparse
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
from matplotlib import colormaps
from PIL import Image

import auxiliary as aux
import pictures
import storage

try:
    from nicegui import app, events, native, run, ui
except ImportError:
    sys.exit("The demo page needs nicegui: run `make extras`.")

MEGABYTES = 20  # of an upload
SEEN = 640  # pixels of the longer edge of a picture that is shown
TOP = 3  # classes


def models(settings: aux.Settings) -> dict[str, Path]:
    """Returns the stored models of a workspace by what people choose them by, the most accurate first.

    Raises:
        StudyError: There are none.
    """
    rows = [(run.record["row"], run) for run in storage.stored_runs(settings.root)]
    rows.sort(key=lambda item: -item[0]["accuracy"])
    found = {}
    for row, run in rows:
        weights = ", random weights" if row["weights"] == "random" else ""
        judged = f"{100 * row['accuracy']:.1f} % of {row['n_test']} test pictures of {row['dataset']} right"
        title = f"{run.model_id}: {judged}{weights}"
        found[title if title not in found else f"{title} ({row['run_id']})"] = run.file("model.keras")
    if not found:
        raise aux.StudyError(f"There are no models in {aux.short(settings.root / 'models')}: run a notebook first.")
    return found


@lru_cache(maxsize=2)
def load(path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """Loads a model and its class names; the last ones stay in memory."""
    return aux.load_model(path)


def heat_over(model: keras.Model, pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Returns the Grad-CAM of a picture's first choice, laid over the grey picture, in the picture's own shape."""
    warm = colormaps["viridis"](aux.grad_cam(model, pixels[None])[0])[..., :3]
    grey = pixels.mean(axis=-1, keepdims=True) / 255
    return Image.fromarray(np.uint8(255 * (0.55 * warm + 0.45 * grey))).resize(size)


def answer(
    file: Path, name: str, path: Path, cam: bool
) -> tuple[list[tuple[str, float]], Image.Image | None, Image.Image | None, str]:
    """Returns the most probable classes, the picture upright, where the model looked, and a word to the person.

    Args:
        file: The uploaded file.
        name: What the person calls it.
        path: The model's `.keras` file.
        cam: Whether to compute where it looked.
    """
    model, class_names = load(path)
    (opinion,) = aux.classify(model, class_names, [file])
    if opinion.reason:
        return [], None, None, f"{name} cannot be used: {opinion.reason}. Try a JPEG or PNG photograph."
    with pictures.open_photograph(file) as photograph:
        shown, pixels = aux.to_rgb(photograph), pictures.as_processed(photograph, model.input_shape[1])
    shown.thumbnail((SEEN, SEEN))
    try:
        heat = heat_over(model, pixels, shown.size) if cam else None
        word = "Bright: places that speak for the first choice (Grad-CAM)." if cam else ""
    except aux.StudyError as error:
        heat, word = None, str(error)
    return opinion.top(TOP), shown, heat, word


class Page:
    """What one person sees: an upload, the choice of a model, and the answer."""

    def __init__(self, choice: dict[str, Path], folder: Path):
        """Builds the page over some models, by title; uploads go to a folder."""
        self.choice, self.folder, self.file, self.name = choice, folder, None, ""
        ui.label("What is in the picture?").classes("text-h4").props("role=heading aria-level=1")
        ui.label("Drop a photograph. It stays on this machine.")
        with ui.row().classes("w-full gap-8"):
            with ui.column().classes("w-96 max-w-full"):
                limit = {"max_file_size": MEGABYTES * 1_000_000, "on_rejected": self.reject}
                label = f"Drop a picture here, or press +; up to {MEGABYTES} MB"
                self.upload = ui.upload(label=label, auto_upload=True, on_upload=self.take, **limit).classes("w-full")
                self.model = ui.select(list(choice), label="Model", value=next(iter(choice)), on_change=self.respond)
                self.model.classes("w-full").props("id=model")
                self.cam = ui.switch("Show where the model looked", value=True, on_change=self.respond)
                self.word = ui.label().props("role=status id=word")
                self.classes = ui.column().classes("w-full gap-1").props("id=classes")
            self.pictures = ui.row().props("id=pictures")

    def reject(self) -> None:
        """Says that a file is too large: the browser does not send it."""
        self.word.text = f"That file is larger than {MEGABYTES} MB, or no file at all."

    async def take(self, event: events.UploadEventArguments) -> None:
        """Keeps an uploaded file, in place of the one before, and answers."""
        self.upload.reset()
        if event.file.size() > MEGABYTES * 1_000_000:  # a browser may send what it likes
            return self.reject()
        self.forget()
        self.file, self.name = self.folder / uuid4().hex, event.file.name
        await event.file.save(self.file)
        await self.respond()

    def forget(self) -> None:
        """Deletes the file."""
        if self.file:
            self.file.unlink(missing_ok=True)

    async def respond(self) -> None:
        """Shows what the chosen model says of the file."""
        if self.file:
            self.word.text = "…"
            given = self.file, self.name, self.choice[self.model.value], self.cam.value
            top, shown, heat, self.word.text = await run.io_bound(answer, *given)
            self.classes.clear()
            self.pictures.clear()
            with self.classes:
                for name, probability in top:
                    ui.label(f"{name}: {100 * probability:.1f} %")
                    ui.linear_progress(probability, show_value=False).props(f'aria-label="{100 * probability:.0f} %"')
            with self.pictures:
                for picture, words in ((shown, "the picture, upright"), (heat, "where the model looked")):
                    if picture:
                        ui.image(picture).classes("max-w-full").style("width: min(26rem, 90vw)").props(f'alt="{words}"')


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, help="(the first free one from 8000 on)")
    port = parser.parse_args().port or native.find_open_port()
    try:
        choice = models(aux.Settings.from_environment())
    except aux.StudyError as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as folder:

        def root() -> None:
            page = Page(choice, Path(folder))
            ui.context.client.on_delete(page.forget)

        app.on_startup(lambda: print(f"http://127.0.0.1:{port} shows the page; Ctrl-C ends it.", flush=True))
        options = {"host": "127.0.0.1", "port": port, "title": "What is in the picture?", "dark": None}
        with suppress(KeyboardInterrupt):
            ui.run(root, **options, show=False, reload=False, show_welcome_message=False)


if __name__ in {"__main__", "__mp_main__"}:
    main()
