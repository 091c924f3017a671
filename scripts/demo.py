"""Serves a page on this machine alone where one drops a picture and sees what a stored model takes it for.

The page loads nothing from the network, and no picture leaves this machine; uploads are deleted when it ends.
"""

import argparse
import os
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
from matplotlib import colormaps
from PIL import Image

import auxiliary as aux
import pictures
import storage

try:
    import gradio as gr
except ImportError:
    sys.exit("The demo page needs gradio: run `make extras`.")

MEGABYTES = 20  # of an upload
SEEN = 640  # pixels of the longer edge of a picture that is shown


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


def answer(file: str | None, path: Path, cam: bool) -> tuple[dict, Image.Image | None, Image.Image | None, str]:
    """Returns class probabilities, the picture as it was understood, where the model looked, and a word to the person.

    Args:
        file: The uploaded file; None where it was taken away.
        path: The model's `.keras` file.
        cam: Whether to compute where it looked.
    """
    if not file:
        return {}, None, None, ""
    model, class_names = load(path)
    (opinion,) = aux.classify(model, class_names, [Path(file)])
    if opinion.reason:
        word = f"**{Path(file).name}** cannot be used: {opinion.reason}. Try a JPEG or PNG photograph."
        return {}, None, None, word
    with pictures.open_photograph(Path(file)) as photograph:
        shown, pixels = aux.to_rgb(photograph), pictures.as_processed(photograph, model.input_shape[1])
    shown.thumbnail((SEEN, SEEN))
    try:
        heat = heat_over(model, pixels, shown.size) if cam else None
        word = "Bright: places that speak for the first choice (Grad-CAM)." if cam else ""
    except aux.StudyError as error:
        heat, word = None, str(error)
    return dict(opinion.top(len(class_names))), shown, heat, word


def page(choice: dict[str, Path]) -> gr.Blocks:
    """Builds the page over some models, by title."""
    with gr.Blocks(title="What is in the picture?", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown("# What is in the picture?\nDrop a photograph. It stays on this machine.")
        with gr.Row():
            with gr.Column():
                file = gr.File(label=f"Picture, up to {MEGABYTES} MB", elem_id="file", height=140)
                title = gr.Dropdown(list(choice), label="Model", elem_id="model")
                cam = gr.Checkbox(True, label="Show where the model looked", elem_id="cam")
                word = gr.Markdown(elem_id="word")
                label = gr.Label(num_top_classes=3, label="Most probable classes", elem_id="label")
            with gr.Column():
                options = {"interactive": False, "buttons": [], "format": "png"}
                shown = gr.Image(label="The picture", elem_id="shown", alt_text="the picture, upright", **options)
                heat = gr.Image(label="Where the model looked", elem_id="heat", alt_text="Grad-CAM map", **options)

        def respond(file: str | None, title: str, cam: bool) -> tuple:
            return answer(file, choice[title], cam)

        gr.on([file.change, title.change, cam.change], respond, [file, title, cam], [label, shown, heat, word])
    return blocks


def main() -> None:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, help="(the first free one from 7860 on)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_OFFLINE": "1"}
        try:
            blocks = page(models(aux.Settings.from_environment()))
            options = {"server_name": "127.0.0.1", "server_port": arguments.port, "max_file_size": f"{MEGABYTES}mb"}
            options |= {"footer_links": [], "quiet": True, "ssr_mode": False, "prevent_thread_lock": True}
            _, address, _ = blocks.launch(**options)
            print(f"{address} shows the page; Ctrl-C ends it.", flush=True)
            blocks.block_thread()
        except (aux.StudyError, OSError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
