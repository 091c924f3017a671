"""The demo: a page on this machine where one drops an image, or chooses an example, and sees a model's prediction.

The page requests nothing from the network, and no image leaves this machine; uploads are deleted when it ends. It
needs nicegui, which is optional: `make extras` installs it.
"""

import tempfile
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import keras
import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageOps

from animals10.calibration import temperature_of, with_temperature
from animals10.dataset import ENGLISH, ITALIAN
from animals10.decoding import open_image, to_rgb
from animals10.files import UserError, display_path
from animals10.grad_cam import grad_cam
from animals10.images import processed_pixels
from animals10.inference import classify
from animals10.model_files import load_model, resize_of
from animals10.runs import run_labels, stored_runs
from animals10.sample import compose_sample
from animals10.settings import Settings

MAX_MEGABYTES = 20  # of an upload
SHOWN_PIXELS = 640  # longer edge of an image that is shown
TOP = 3  # classes
EXAMPLE_PIXELS = 112  # edge of an example's square thumbnail
# Choices beside the result on a desktop, above it on a phone; both fit on the screen.
STYLE = """
.nicegui-content { padding: 1rem clamp(.8rem, 2vw, 2rem); gap: .6rem; }
#page { display: grid; grid-template-columns: minmax(0, 25rem) minmax(0, 1fr); gap: 1rem 2.5rem; }
#page { width: 100%; align-items: start; }
#examples { display: grid; grid-template-columns: repeat(5, 1fr); gap: .3rem; width: 100%; }
#examples .q-img { width: 100%; aspect-ratio: 1; }
#images { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; width: 100%; }
#images .q-img { height: min(calc(100vh - 22rem), 40rem); min-height: 9rem; }
.q-uploader__subtitle { display: none; }
.q-uploader__list { min-height: 2rem; padding: 0; }
.q-field__native span { white-space: normal !important; }
#message { min-height: 1.5rem; overflow-wrap: anywhere; }
@media (max-width: 900px) {
  #page { grid-template-columns: minmax(0, 1fr); }
  #page h1 { font-size: 1.4rem; }
  #examples { grid-template-columns: repeat(10, 1fr); }
  #images .q-img { height: 44vw; }
}
"""


def titled_models(settings: Settings) -> dict[str, Path]:
    """Returns the stored models of a workspace by the titles that people choose from, best validation accuracy first.

    A trial, which a cap on epochs shortened, follows others where its experiment has a full run as well. Models without
    a validation accuracy, which were not trained, come after these, and runs whose model is missing are last.

    Raises:
        UserError: There are none.
    """
    runs = stored_runs(settings.root)
    rows = [run.row for run in runs]
    full = {row["model_id"] for row in rows if row["epochs_cap"] is None}
    found = []
    for run, row, label in zip(runs, rows, run_labels(rows), strict=True):
        validation = "not trained" if row["acc_val"] is None else f"validation accuracy {100 * row['acc_val']:.1f} %"
        test = f"test accuracy {100 * row['accuracy']:.1f} % ({row['n_test']} images of {row['dataset']})"
        weights = ", random weights" if row["weights"] == "random" else ""
        path = run.file("model.keras")
        is_trial = row["epochs_cap"] is not None and row["model_id"] in full
        rank = (path.exists(), row["acc_val"] is not None, not is_trial, row["acc_val"] or 0)
        missing = "" if path.exists() else ", its model is missing"
        found.append((rank, f"{label}: {validation}, {test}{weights}{missing}", path))
    if not found:
        raise UserError(f"There are no models in {display_path(settings.models)}: run a notebook first.")
    found.sort(key=lambda item: item[0], reverse=True)
    return {title: path for _, title, path in found}


@lru_cache(maxsize=2)
def _cached_models(path: Path, temperature: float | None) -> tuple[keras.Model, keras.Model, tuple[str, ...]]:
    """Loads a model and its class names; the last ones stay in memory.

    Returns:
        The model as it is, which Grad-CAM takes; with the temperature, if there is one; and the class names.
    """
    model, class_names = load_model(path)
    return model, model if temperature is None else with_temperature(model, temperature), class_names


def overlay(model: keras.Model, pixels: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Returns the Grad-CAM heatmap for the top-1 class, laid over the image in grey, in the size of the original."""
    heatmap = colormaps["viridis"](grad_cam(model, pixels[None])[0])[..., :3]
    grey = pixels.mean(axis=-1, keepdims=True) / 255
    return Image.fromarray(np.uint8(255 * (0.55 * heatmap + 0.45 * grey))).resize(size)


def predict_file(
    file: Path, name: str, path: Path, with_grad_cam: bool, settings: Settings | None = None
) -> tuple[list[tuple[str, float]], Image.Image | None, Image.Image | None, str]:
    """Classifies an uploaded file.

    Args:
        file: The file.
        name: Its name for the user.
        path: The model's `.keras` file.
        with_grad_cam: Whether to compute the Grad-CAM heatmap.
        settings: The settings, if probabilities shall be calibrated.

    Returns:
        The most probable classes, the image with its EXIF orientation applied, the Grad-CAM heatmap over it, and a
        message. If the file is not a usable image, or the model cannot be loaded or calibrated, the message says why,
        and there is nothing else.
    """
    try:
        temperature = temperature_of(settings, path) if settings else None
        model, calibrated, class_names = _cached_models(path, temperature)
    except UserError as error:
        return [], None, None, str(error)
    (prediction,) = classify(calibrated, class_names, [file])
    if prediction.reason:
        return [], None, None, f"{name} cannot be used: {prediction.reason}. Try a JPEG or PNG photograph."
    with open_image(file) as image:
        shown, pixels = to_rgb(image), processed_pixels(image, model.input_shape[1], resize_of(model))
    shown.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    try:
        heatmap = overlay(model, pixels, shown.size) if with_grad_cam else None
        message = "Bright: strong evidence for the top-1 class (Grad-CAM)." if with_grad_cam else ""
    except UserError as error:  # a network without feature maps, say
        heatmap, message = None, str(error)
    return prediction.top(TOP), shown, heatmap, message


@lru_cache(maxsize=1)
def example_images() -> dict[str, tuple[Path, Image.Image]]:
    """Returns one drawing of the sample for each of its classes, by class name: its file and a square thumbnail."""
    found: dict[str, tuple[Path, Image.Image]] = {}
    for path in sorted(compose_sample().glob("*/*")):
        name = dict(zip(ITALIAN, ENGLISH, strict=True)).get(path.parent.name, path.parent.name)
        if name in found:
            continue
        with suppress(OSError, ValueError, SyntaxError), open_image(path) as image:  # some are damaged on purpose
            found[name] = path, ImageOps.fit(to_rgb(image), (EXAMPLE_PIXELS, EXAMPLE_PIXELS))
    return found


class Page:
    """The page of one visitor: an upload or an example, the choice of a model, and the prediction."""

    def __init__(self, ui: Any, run: Any, models: dict[str, Path], folder: Path, settings: Settings | None):
        """Builds the page with nicegui's `ui` and `run`, for models by title; uploads go to a folder.

        With settings, probabilities are calibrated.
        """
        self.ui, self.run, self.models, self.folder, self.settings = ui, run, models, folder, settings
        self.file: Path | None = None
        self.name = ""
        ui.add_css(STYLE)
        with ui.element("main").props("id=page"):
            with ui.column().classes("w-full gap-3"):
                with ui.element("h1").classes("text-h5"):
                    ui.label("Which class does the image belong to?")
                limit = {"max_file_size": MAX_MEGABYTES * 1_000_000, "on_rejected": self.reject}
                label = f"Drop an image here, or press +; up to {MAX_MEGABYTES} MB. It stays on this machine."
                self.upload = ui.upload(label=label, auto_upload=True, on_upload=self.take, **limit).classes("w-full")
                if examples := example_images():
                    ui.label("Or choose a drawing:")
                    with ui.element("div").props("id=examples"):
                        for name, (path, thumbnail) in examples.items():
                            button = ui.button(on_click=partial(self.choose, path, name)).props("flat padding=none")
                            button.props(f'aria-label="drawing: {name}" title="{name}"')
                            with button:
                                ui.image(thumbnail).props('alt=""')
                choice = {"value": next(iter(models)), "on_change": self.respond}
                self.model = ui.select(list(models), label="Model", **choice).classes("w-full").props("id=model")
                if settings:
                    ui.label("Probabilities are calibrated.")
                self.cam = ui.switch("Show the Grad-CAM heatmap", value=True, on_change=self.respond)
            with ui.column().classes("w-full gap-2").props("id=result"):
                self.message = ui.label("The prediction will be here.").props("role=status id=message")
                self.classes = ui.column().classes("w-full gap-1").props("id=classes")
                self.images = ui.element("div").props("id=images")

    def reject(self) -> None:
        """Shows that a file is too large: the browser does not send it."""
        self.message.text = f"That file is larger than {MAX_MEGABYTES} MB, or is not a file."

    async def take(self, event: Any) -> None:
        """Stores an uploaded file in place of the one before, and classifies it."""
        self.upload.reset()
        if event.file.size() > MAX_MEGABYTES * 1_000_000:  # a browser may send what it likes
            return self.reject()
        self.delete_upload()
        self.file, self.name = self.folder / uuid4().hex, event.file.name
        await event.file.save(self.file)
        await self.respond()

    async def choose(self, path: Path, name: str) -> None:
        """Classifies an example in place of an upload."""
        self.delete_upload()
        self.file, self.name = path, name
        await self.respond()

    def delete_upload(self) -> None:
        """Deletes the uploaded file; an example stays."""
        if self.file and self.file.parent == self.folder:
            self.file.unlink(missing_ok=True)

    async def respond(self) -> None:
        """Shows the prediction of the chosen model for the uploaded file."""
        if not self.file:
            return
        self.message.text = "…"
        given = self.file, self.name, self.models[self.model.value], self.cam.value
        top, shown, heatmap, message = await self.run.io_bound(predict_file, *given, self.settings)
        if given != (self.file, self.name, self.models[self.model.value], self.cam.value):
            return  # the visitor has chosen another one meanwhile
        self.message.text = message
        self.classes.clear()
        self.images.clear()
        with self.classes:
            for name, probability in top:
                self.ui.label(f"{name}: {100 * probability:.1f} %")
                bar = self.ui.linear_progress(probability, show_value=False)
                bar.props(f'aria-label="{100 * probability:.0f} %"')
        with self.images:
            for image, description in ((shown, "the image"), (heatmap, "Grad-CAM heatmap over the image")):
                if image:
                    self.ui.image(image).props(f'fit=contain position="50% 0" alt="{description}"')


def serve(settings: Settings, port: int | None = None, calibrated: bool = False) -> None:
    """Serves the page on this machine alone until Ctrl-C.

    Args:
        settings: The settings; their workspace holds the models.
        port: The port; None for the first free one from 8000 on.
        calibrated: Whether to show calibrated probabilities.

    Raises:
        UserError: nicegui is not installed, or there are no models.
    """
    try:
        from nicegui import app, native, run, ui
    except ImportError:
        raise UserError("The demo page needs nicegui, which is not installed: run `make extras`.") from None
    models = titled_models(settings)
    port = port or native.find_open_port()
    with tempfile.TemporaryDirectory() as folder:

        def root() -> None:
            page = Page(ui, run, models, Path(folder), settings if calibrated else None)
            ui.context.client.on_delete(page.delete_upload)

        app.on_startup(lambda: print(f"http://127.0.0.1:{port} shows the page; Ctrl-C ends it.", flush=True))
        options: dict[str, Any] = {"host": "127.0.0.1", "port": port, "title": "Image classification", "dark": None}
        with suppress(KeyboardInterrupt):
            ui.run(root, **options, show=False, reload=False, show_welcome_message=False)
