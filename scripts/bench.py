"""Times the plain way of transfer learning and ours, side by side on the same synthetic photographs.

Plain: each epoch pushes every photograph through the whole network (ANIMALS10_STORE=off). Ours: what frozen layers say
is computed once a view and stored. Backbones have random weights, which does not change the time. Epochs are measured
by trainings of one and of three epochs (heads on stored activations: 31) in both ways and, where a run has more,
extrapolated: the difference is that of two (30) epochs. Early stopping is off. The lower limit is made of bare calls:
one forward pass a view through the backbone, and the trained part's own steps on arrays in memory.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

import auxiliary as aux
from auxiliary import activations, keras, tf

FOREVER = 10**6  # epochs of patience
ANIMALS10_TRAIN = 18_320  # photographs that the study trained on, balanced to the mean
# The published transfer runs by what an epoch of theirs costs.
KINDS = {
    "MobileNetV2 head": aux.Transfer("MobileNetV2", (128,)),
    "MobileNetV2 last 20": aux.Transfer("MobileNetV2", (128,), unfreeze_last=20),
    "ResNet50V2 head": aux.Transfer("ResNet50V2", (128,)),
    "ResNet50V2 last 20": aux.Transfer("ResNet50V2", (128,), unfreeze_last=20),
    "EfficientNetV2S head": aux.Transfer("EfficientNetV2S", (256,)),
    "EfficientNetV2S last 30": aux.Transfer("EfficientNetV2S", (256,), unfreeze_last=30, freeze_batch_norm=False),
}


def published_epochs() -> dict[str, list[int]]:
    """Returns the epochs of the 15 published transfer runs by kind."""
    epochs = {kind: [] for kind in KINDS}
    for row in aux.read_table(aux.PUBLISHED).query("image_size == 224 and notebook == '03'").itertuples():
        head = row.unfreeze_last == 0 or row.model_id == "mobnet2_dense256_finetune"
        epochs[f"{row.backbone} head" if head else f"{row.backbone} last {row.unfreeze_last:.0f}"].append(row.epochs)
    return epochs


def draw_photographs(folder: Path, n: int) -> None:
    """Draws n photographs of ten classes, in the usual size of the data set (300 × 225), with some structure."""
    rng = np.random.default_rng(5)
    for index in range(n):
        coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((300, 225), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture) + rng.normal(0, 6, (225, 300, 1))
        path = folder / f"class {index % 10}" / f"{index:05}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(path, quality=85)


class Bench:
    """Trainings in one workspace; each figure is seconds."""

    def __init__(self, settings: aux.Settings, repeat: int):
        """Takes a prepared workspace and how often each training is repeated; the median counts."""
        self.settings, self.repeat, self.counter = settings, repeat, 0

    def train(self, architecture: aux.Transfer, epochs: int, **changes) -> tuple[float, dict]:
        """Returns the seconds of a whole run, from the call to the stored model, and of its steps."""
        self.counter += 1
        settings = self.settings.model_copy(update=changes)
        started = time.perf_counter()
        run = aux.train(
            settings, f"bench{self.counter}", architecture, learning_rate=1e-4, epochs=epochs, patience=FOREVER
        )
        return time.perf_counter() - started, run.record["seconds"]

    def slope(self, architecture: aux.Transfer, epochs: int, **changes) -> tuple[float, float]:
        """Returns the medians of what a run costs before its epochs, and of one epoch. Stores must be there."""
        fixed, epoch = [], []
        for _ in range(self.repeat):
            one, many = self.train(architecture, 1, **changes)[0], self.train(architecture, epochs, **changes)[0]
            epoch.append((many - one) / (epochs - 1))
            fixed.append(one - epoch[-1])
        return statistics.median(fixed), statistics.median(epoch)

    def store(self, architecture: aux.Transfer, **changes) -> float:
        """Returns the seconds that computing a backbone's stores anew takes, in a run of one epoch."""
        shutil.rmtree(self.settings.data / "activations", ignore_errors=True)
        return self.train(architecture, 1, **changes)[1]["activations"]


def seconds(function, repeat: int = 5) -> float:
    """Returns the median of some calls, after one that does not count."""
    times = []
    for index in range(repeat + 1):
        started = time.perf_counter()
        function()
        times += [time.perf_counter() - started] if index else []
    return statistics.median(times)


def bare_rates(architecture: aux.Transfer) -> tuple[float, float, float]:
    """Returns photographs a second of bare calls: the frozen part, and the trained part's training and judging."""
    keras.backend.clear_session()
    model = architecture.build(10)
    outputs = {name: layer.output for name, layer in architecture.boundaries(model).items()}
    bottom = keras.Model(model.input, list(outputs.values()))
    forward = activations.inference(bottom)
    pixels = tf.random.uniform((32, 224, 224, 3), maxval=255.0)
    cut = forward(pixels)[0 if architecture.unfreeze_last else 1].numpy()
    end = keras.Model(outputs["cut" if architecture.unfreeze_last else "pooled"], model.output)
    end.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    labels = np.arange(32) % 10
    training = seconds(lambda: end.train_on_batch(cut, labels))
    return 32 / seconds(lambda: forward(pixels)), 32 / training, 32 / seconds(lambda: end.test_on_batch(cut, labels))


MEMORY = """
import sys, psutil, tensorflow as tf
sys.path.insert(0, {repository!r})
import auxiliary as aux
table = aux.read_table(aux.Path({table!r}))
table = aux.pd.concat([table] * (-(-{n} // len(table)))).head({n}).reset_index(drop=True)
settings = aux.Settings(root={root!r}, raw={root!r})
process = psutil.Process()
before = process.memory_info().rss
if {plain}:
    paths = [str(settings.data / "processed" / path) for path in table.relpath]
    decode = lambda path: tf.cast(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), tf.float32)
    dataset = tf.data.Dataset.from_tensor_slices(paths).map(decode).shuffle({n}).batch(32).prefetch(2)
else:
    dataset = aux.training_batches(settings, table, range(1))
peak = 0
for index, _ in enumerate(dataset):
    peak = max(peak, process.memory_info().rss) if index % 10 == 0 else peak
print("PEAK", (peak - before) / 1e6)
"""


def pipeline_memory(settings: aux.Settings, n: int, plain: bool) -> float:
    """Returns the MB by which a process grows at most while an epoch of n photographs passes its input pipeline."""
    values = {"repository": str(aux.REPOSITORY), "table": str(settings.data / "train.csv"), "n": n, "plain": plain}
    script = MEMORY.format(root=str(settings.root), **values)
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return float(output.rpartition("PEAK")[2])


def resizing(settings: aux.Settings, overview: aux.pd.DataFrame) -> dict[str, float]:
    """Returns photographs a second of notebook 01's resizing, a plain Pillow loop and the bare calls on all cores."""
    paths = [settings.raw / path for path in overview.relpath]
    with tempfile.TemporaryDirectory() as folder:

        def bare(item: tuple[int, Path]) -> None:
            index, path = item
            with Image.open(path) as picture:
                small = picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            small.save(f"{folder}/{index}.jpg", quality=90)

        def all_cores() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(bare, enumerate(paths)))

        def ours() -> None:
            with tempfile.TemporaryDirectory() as root:
                other = settings.model_copy(update={"root": Path(root)})
                aux.write_table(aux.pd.DataFrame(columns=["relpath", "stage", "reason"]), other.data / "rejected.csv")
                aux.resize_photographs(other, overview)

        ways = {
            "plain loop": lambda: [bare(item) for item in enumerate(paths)],
            "bare calls, all cores": all_cores,
            "notebook 01": ours,
        }
        return {name: len(paths) / seconds(way, 3) for name, way in ways.items()}


def pipeline(settings: aux.Settings, table: aux.pd.DataFrame) -> None:
    """Prints how fast pictures are decoded and varied, and how fast two hand-built networks train on them."""
    rates = {}
    for name, augmented in (("decoded", False), ("decoded and varied", True)):
        rates[name] = len(table) / seconds(
            lambda a=augmented: list(aux.training_batches(settings, table, range(1), 32, a))
        )
    for filters in ((64, 64, 32, 32), (8, 16, 32, 64, 128)):
        keras.backend.clear_session()
        model = aux.CNN(filters, (2,) * len(filters)).build(10)
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        pixels, labels = np.random.default_rng(5).uniform(0, 255, (32, 224, 224, 3)), np.arange(32) % 10
        name = f"trained, filters {' '.join(map(str, filters))}"
        rates[name] = 32 / seconds(lambda m=model, x=pixels, y=labels: m.train_on_batch(x, y))
    print("\nNotebook 02, photographs a second:", {name: round(rate) for name, rate in rates.items()})


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=int, default=1000, help="synthetic photographs (%(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="times each training is repeated (%(default)s)")
    parser.add_argument("--views", type=int, default=aux.Settings.model_fields["views"].default, help="(%(default)s)")
    backbones = sorted({architecture.backbone for architecture in KINDS.values()})
    parser.add_argument("--backbones", nargs="+", default=backbones, choices=backbones, help="(all)")
    parser.add_argument("--skip", nargs="*", default=[], choices=["training", "memory", "resize"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        draw_photographs(raw, arguments.photographs)
        settings = aux.Settings(root=Path(folder) / "work", raw=raw, weights="random", views=arguments.views)
        overview = aux.scan_photographs(settings)
        aux.resize_photographs(settings, overview)
        splits = aux.load_splits(settings)
        sizes = len(aux.balance(splits.train, "mean", 5)), len(splits.val), len(splits.test)
        print(f"{arguments.photographs} synthetic photographs ({sizes[0]} / {sizes[1]} / {sizes[2]}), random weights")
        print(f"{aux.use_device()}; {platform.platform()}; TensorFlow {tf.__version__}, Keras {keras.__version__}")
        if "resize" not in arguments.skip:
            rates = resizing(settings, overview)
            print("\nResizing, photographs a second:", {name: round(rate) for name, rate in rates.items()})
            ours = rates["notebook 01"]
            print(f"ours / plain loop {ours / rates['plain loop']:.2f}, ", end="")
            print(f"ours / bare calls on all cores {ours / rates['bare calls, all cores']:.2f}")
            pipeline(settings, splits.train)
        if "memory" not in arguments.skip:
            for n in (2_000, 18_320):
                plain, ours = (pipeline_memory(settings, n, way) for way in (True, False))
                print(
                    f"\nMemory of the input pipeline, {n:,} photographs: decoded and shuffled {plain:,.0f} MB, ", end=""
                )
                print(f"ours {ours:,.0f} MB, ratio {plain / ours:.1f}")
        if "training" not in arguments.skip:
            training(Bench(settings, arguments.repeat), sizes, arguments.backbones)


def training(bench: Bench, sizes: tuple[int, int, int], backbones: list[str]) -> None:
    """Measures and prints those of the trainings (a) to (d) for which the backbones suffice."""
    views, (n_train, n_val, n_test) = bench.settings.views, sizes
    stores, plain, ours, limits, rates = {}, {}, {}, {}, {}
    kinds = {kind: architecture for kind, architecture in KINDS.items() if architecture.backbone in backbones}
    for kind, architecture in kinds.items():
        backbone = architecture.backbone
        if backbone not in stores:
            stores[backbone] = bench.store(architecture, views=1), bench.store(architecture, views=views)
        ours[kind] = bench.slope(architecture, 3 if architecture.unfreeze_last else 31)
        plain[kind] = bench.slope(architecture, 3, store="off")
        rates[kind] = bare_rates(architecture)
        limits[kind] = n_train / rates[kind][1] + n_val / rates[kind][2]
        print(f"\n{kind}: an epoch plain {plain[kind][1]:.2f} s, ours {ours[kind][1]:.2f} s, ", end="")
        print(f"bare steps {limits[kind]:.2f} s; rest of the run: {plain[kind][0]:.2f} and {ours[kind][0]:.2f} s")
        print(f"  stores: 1 view {stores[backbone][0]:.1f} s, {views} views {stores[backbone][1]:.1f} s", flush=True)

    def passes(kind: str, views: int) -> float:
        return (views * n_train + n_val + n_test) / rates[kind][0]

    def store(backbone: str, views: int, scale: float) -> float:
        one, most = stores[backbone]
        if scale == 1:
            return one if views == 1 else most
        # What grows with the photographs is what more views cost; the rest is tracing and freezing the graph, once.
        a_view = (most - one) / (bench.settings.views - 1) * scale / n_train
        fixed = one - a_view / scale * sum(sizes)
        return fixed + a_view * (views * n_train + n_val + n_test)

    def line(title: str, runs: dict[str, list[int]], views: int, stored: bool = False, scale: float = 1) -> None:
        if not set(runs) <= set(kinds):
            return
        backbones = {KINDS[kind].backbone: kind for kind in runs if runs[kind]}
        total_plain = sum(plain[kind][0] + scale * n * plain[kind][1] for kind in runs for n in runs[kind])
        total = sum(ours[kind][0] + scale * n * ours[kind][1] for kind in runs for n in runs[kind])
        limit = sum(scale * n * limits[kind] for kind in runs for n in runs[kind])
        if not stored:
            total += sum(store(backbone, views, scale) for backbone in backbones)
            limit += sum(scale * passes(kind, views) for kind in backbones.values())
        print(
            f"{title:62} {total_plain:9.1f} {total:9.1f} {total_plain / total:7.1f} {limit:9.1f} {total / limit:7.2f}"
        )

    epochs = published_epochs()
    print(f"\n{'seconds':62} {'plain':>9} {'ours':>9} {'ratio':>7} {'limit':>9} {'above':>7}")
    for n in sorted({1, views}):
        line(f"(a) MobileNetV2 head, 15 epochs, V = {n}", {"MobileNetV2 head": [15]}, n)
        line(f"(b) MobileNetV2 last 20 layers, 10 epochs, V = {n}", {"MobileNetV2 last 20": [10]}, n)
        line(f"(c) EfficientNetV2S head, 12 epochs, V = {n}", {"EfficientNetV2S head": [12]}, n)
        line(f"(c) EfficientNetV2S last 30, 35 epochs, V = {n}", {"EfficientNetV2S last 30": [35]}, n)
        line(f"(d) all {sum(map(len, epochs.values()))} transfer runs, V = {n}", epochs, n)
    line("a further head, 15 epochs, on a stored backbone", {"MobileNetV2 head": [15]}, views, stored=True)
    line("a further EfficientNetV2S head, 12 epochs, stored", {"EfficientNetV2S head": [12]}, views, stored=True)
    if views == 1:
        return
    scale = ANIMALS10_TRAIN / n_train
    print(f"\nExtrapolated to the {ANIMALS10_TRAIN:,} training photographs of Animals-10:")
    line("a further head, 15 epochs, on a stored backbone", {"MobileNetV2 head": [15]}, views, stored=True, scale=scale)
    line("(a) MobileNetV2 head, 15 epochs, V = 1", {"MobileNetV2 head": [15]}, 1, scale=scale)
    line(f"(b) MobileNetV2 last 20 layers, 10 epochs, V = {views}", {"MobileNetV2 last 20": [10]}, views, scale=scale)
    tuned = {"EfficientNetV2S last 30": [35]}
    line(f"(c) EfficientNetV2S last 30, 35 epochs, V = {views}", tuned, views, scale=scale)
    line(f"(d) all {sum(map(len, epochs.values()))} transfer runs, V = {views}", epochs, views, scale=scale)


if __name__ == "__main__":
    main()
