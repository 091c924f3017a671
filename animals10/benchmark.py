"""Benchmark: transfer learning with and without the feature cache, on synthetic images of this machine.

Without the cache, each epoch pushes every image through the whole network (ANIMALS10_FEATURE_CACHE=off). With it, the
features of the frozen layers are computed once per view. Backbones have random weights, from files, which does not
change the time. Trainings with the cache may compute in bfloat16; those without stay in float32 on a CPU.

Epochs are timed by a training of one epoch and a longer one: 3 epochs without the cache; with it 31 of a head, and 11
of a fine-tuning. The difference gives the time of an epoch, and longer runs are extrapolated from it. Early stopping is
off. The lower limit is timed by direct calls, the fastest of which counts: one forward pass per view through the frozen
layers, and the training steps of the other layers on arrays in memory.
"""

import platform
import shutil
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from animals10.benchmark_cluster import measure_cluster
from animals10.benchmark_frameworks import measure_frameworks
from animals10.benchmark_pipeline import (
    draw_images,
    measure_cnns,
    measure_hashes,
    measure_memory,
    measure_notebook_01,
    measure_tables,
)
from animals10.benchmark_precision import frozen_pass, measure_gpu, measure_onednn, measure_precision
from animals10.dataset import PUBLISHED_RESULTS
from animals10.environment import configure_device, has_gpu
from animals10.experiments import Experiment, Training
from animals10.files import read_table
from animals10.models import Transfer
from animals10.precision import frozen_precision, in_precision, resolve_precision
from animals10.preprocessing import resize_images, scan_images
from animals10.search import FIRST_EPOCHS, search, transfer_space
from animals10.settings import Settings
from animals10.splits import load_splits, resample
from animals10.training import train

NO_EARLY_STOPPING = 10**6  # epochs of patience
ANIMALS10_TRAIN = 18_320  # training images of the original study, resampled to the mean class size
CALLS = 12  # of each step, for the lower limit
# The published transfer experiments by what one of their epochs costs.
KINDS = {
    "MobileNetV2 head": Transfer("MobileNetV2", (128,)),
    "MobileNetV2 last 20": Transfer("MobileNetV2", (128,), unfreeze_last=20),
    "ResNet50V2 head": Transfer("ResNet50V2", (128,)),
    "ResNet50V2 last 20": Transfer("ResNet50V2", (128,), unfreeze_last=20),
    "EfficientNetV2S head": Transfer("EfficientNetV2S", (256,)),
    "EfficientNetV2S last 30": Transfer("EfficientNetV2S", (256,), unfreeze_last=30, freeze_batch_norm=False),
}
BACKBONES = tuple(dict.fromkeys(architecture.backbone for architecture in KINDS.values()))
PARTS = "notebook01 hashes tables cnns frameworks precision gpu onednn memory cluster search training".split()


def run_benchmark(
    n_images: int = 1000,
    repeat: int = 1,
    views: int = 4,
    backbones: Sequence[str] = BACKBONES,
    skip: Sequence[str] = (),
    precision: str = "default",
) -> None:
    """Measures and prints.

    Args:
        n_images: Synthetic images, ten classes.
        repeat: Times that each training is repeated; the median counts.
        views: Views in the feature cache.
        backbones: Backbones to train, of `BACKBONES`.
        skip: Parts of the benchmark to leave out, of `PARTS`.
        precision: As `Settings.precision`: that of trainings with the cache, and of their lower limit. Those without
            the cache stay at the default.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        draw_images(raw, n_images)
        weights = Path(folder) / "weights"
        weights.mkdir()
        for name in backbones if "training" not in skip else ():
            network = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(224, 224, 3))
            network.save_weights(weights / f"{name}.weights.h5")
        # Features of random networks would group images of one class as near-duplicates.
        options = {"weights": "random", "views": views, "split": "published"}
        settings = Settings(root=Path(folder) / "work", raw=raw, **options)
        overview = scan_images(settings)
        resize_images(settings, overview)
        splits = load_splits(settings)
        sizes = Sizes(len(resample(splits.train, "mean", settings.seed)), len(splits.val), len(splits.test))
        print(f"{n_images} synthetic images ({sizes.train} / {sizes.val} / {sizes.test}), random weights")
        versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
        print(f"{configure_device()}; {platform.platform()}; {versions}")
        if "notebook01" not in skip:
            measure_notebook_01(settings, overview)
        if "hashes" not in skip:
            measure_hashes()
        if "tables" not in skip:
            measure_tables()
        if "cnns" not in skip:
            measure_cnns(settings, splits.train)
        if "frameworks" not in skip:
            measure_frameworks(settings, splits.train)
        if "precision" not in skip:
            measure_precision(backbones)
        if "gpu" not in skip:
            measure_gpu(backbones)
        if "onednn" not in skip:
            measure_onednn(backbones)
        if "memory" not in skip:
            measure_memory(settings)
        if "cluster" not in skip:
            measure_cluster(settings)
        if "search" not in skip:
            measure_search(settings)
        if "training" not in skip:
            changes = {"weights": str(weights), "precision": precision}
            measure_training(settings.model_copy(update=changes), repeat, sizes, backbones)


@dataclass(frozen=True)
class Sizes:
    """Numbers of images: the training set (resampled), the validation set and the test set."""

    train: int
    val: int
    test: int

    def passes(self, views: int, float32: float = 0) -> float:
        """Returns how many images pass through the frozen layers for the feature cache.

        Args:
            views: Views of each training image.
            float32: Where features for training are in 16-bit precision: what a float32 pass takes, in such passes.
                Test predictions, and those of the validation set, come from the float32 network. Else 0.
        """
        if float32:
            return views * self.train + self.val + float32 * (self.val + self.test)
        return views * self.train + self.val + self.test


@dataclass(frozen=True)
class Cost:
    """Seconds of a run: `fixed` outside its epochs, and `epoch` for each of them."""

    fixed: float
    epoch: float

    def of(self, epochs: int, scale: float = 1) -> float:
        """Returns the seconds of a run with so many epochs, on `scale` times as many images."""
        return self.fixed + scale * epochs * self.epoch


@dataclass(frozen=True)
class Timings:
    """Timings of one kind of experiment.

    Attributes:
        uncached: A run without the feature cache.
        cached: A run with the feature cache, once the cache is there.
        limit: Lower limit of an epoch, in seconds.
        forward_rate: Images per second of a forward pass through the frozen layers.
        float32: As for `Sizes.passes`.
    """

    uncached: Cost
    cached: Cost
    limit: float
    forward_rate: float
    float32: float


class Trainer:
    """Trains experiments for their timings, in one workspace."""

    def __init__(self, settings: Settings, repeat: int):
        """Takes a prepared workspace, and how often each training is repeated; the median counts."""
        self.settings, self.repeat, self.n_runs = settings, repeat, 0

    def run(self, architecture: Transfer, epochs: int, **changes: Any) -> tuple[float, dict[str, float]]:
        """Returns the seconds of a whole run, from the call to the stored model, and those of its steps."""
        self.n_runs += 1
        training = Training(learning_rate=1e-4, epochs=epochs, patience=NO_EARLY_STOPPING)
        experiment = Experiment(f"benchmark{self.n_runs}", architecture, training)
        start = time.perf_counter()
        run = train(self.settings.model_copy(update=changes), experiment)
        return time.perf_counter() - start, run.record["seconds"]

    def cost(self, architecture: Transfer, epochs: int, **changes: Any) -> Cost:
        """Returns what a run costs, from runs of one and of `epochs` epochs. A cache that is needed must be there."""
        costs = []
        for _ in range(self.repeat):
            one, many = self.run(architecture, 1, **changes)[0], self.run(architecture, epochs, **changes)[0]
            epoch = (many - one) / (epochs - 1)
            costs.append(Cost(one - epoch, epoch))
        return Cost(*(statistics.median(getattr(cost, name) for cost in costs) for name in ("fixed", "epoch")))

    def cache_seconds(self, architecture: Transfer, views: int) -> float:
        """Returns the seconds in which the feature cache of a backbone is computed from nothing."""
        shutil.rmtree(self.settings.data / "features", ignore_errors=True)
        return self.run(architecture, 1, views=views)[1]["features"]


def measure_limits(architecture: Transfer, precision: str) -> tuple[float, ...]:
    """Times direct calls: the forward pass of the frozen layers, and the other layers' training and evaluation.

    Args:
        architecture: The network.
        precision: As `Settings.precision`.

    Returns:
        Images per second of each; then `float32` of `Sizes.passes`.
    """
    keras.backend.clear_session()
    policy = resolve_precision(precision, architecture, has_gpu())
    frozen_policy, model = frozen_precision(policy, architecture, has_gpu()), architecture.build(10)
    pixels = tf.random.uniform((32, 224, 224, 3), maxval=255.0).numpy()
    forward, features, _ = frozen_pass(architecture, in_precision(model, frozen_policy), pixels)
    end = frozen_pass(architecture, in_precision(model, policy), pixels)[2]
    end.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    batch = tf.constant(features), tf.range(32) % 10
    calls = (forward, lambda: end.train_on_batch(*batch), lambda: end.test_on_batch(*batch))
    rates = [32 / _fastest_seconds(call) for call in calls]
    if frozen_policy == "float32":
        return *rates, 0
    in_float32 = frozen_pass(architecture, model, pixels)[0]
    return *rates, rates[0] * _fastest_seconds(in_float32) / 32


def _fastest_seconds(function: Callable[[], object]) -> float:
    return min(timeit.repeat(function, number=1, repeat=CALLS))


def measure_training(settings: Settings, repeat: int, sizes: Sizes, backbones: Sequence[str]) -> None:
    """Measures the kinds of experiment on some backbones, and prints their timings and those of whole runs."""
    trainer, views = Trainer(settings, repeat), settings.views
    cache_seconds: dict[str, tuple[float, float]] = {}
    timings: dict[str, Timings] = {}
    for kind, architecture in KINDS.items():
        backbone = architecture.backbone
        if backbone not in backbones:
            continue
        if backbone not in cache_seconds:
            cache_seconds[backbone] = (
                trainer.cache_seconds(architecture, 1),
                trainer.cache_seconds(architecture, views),
            )
        cached = trainer.cost(architecture, 11 if architecture.unfreeze_last else 31)
        uncached = trainer.cost(architecture, 3, feature_cache="off", precision="default")
        forward, training, evaluation, float32 = measure_limits(architecture, settings.precision)
        limit = sizes.train / training + sizes.val / evaluation
        timings[kind] = Timings(uncached, cached, limit, forward, float32)
        print(f"\n{kind}: an epoch without cache {uncached.epoch:.2f} s, with cache {cached.epoch:.2f} s, ", end="")
        print(f"lower limit {limit:.2f} s; the rest of the run {uncached.fixed:.2f} and {cached.fixed:.2f} s")
        one, all_views = cache_seconds[backbone]
        print(f"  computing the cache: 1 view {one:.1f} s, {views} views {all_views:.1f} s", flush=True)
    _print_comparison(Extrapolation(timings, cache_seconds, sizes, views))


def measure_search(settings: Settings, trials: int = 12) -> None:
    """Prints what a trial of a search takes once features are cached, and without a feature cache."""
    space = transfer_space("MobileNetV2")
    search(settings, space, 1, "benchmark")  # computes the cache
    start = time.perf_counter()
    table = search(settings, space, trials + 1, "benchmark").table.query("trial > 0")
    seconds = (time.perf_counter() - start) / trials
    cost = Trainer(settings, 1).cost(Transfer("MobileNetV2", (128,)), 3, feature_cache="off")
    epochs = table.epochs.fillna(FIRST_EPOCHS + 1).mean()  # the fewest of a pruned trial
    print(
        f"\nsearch: {trials} trials of {epochs:.0f} epochs on average, {(table.state == 'pruned').sum()} pruned; ",
        end="",
    )
    plain = cost.of(round(epochs))
    print(f"{seconds:.1f} s per trial; without feature cache {plain:.1f} s, {plain / seconds:.1f} times as long")


def published_epochs() -> dict[str, list[int]]:
    """Returns the epochs of the 15 published transfer runs, by kind."""
    epochs: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for row in read_table(PUBLISHED_RESULTS).query("image_size == 224 and notebook == '03'").itertuples():
        is_head = row.unfreeze_last == 0 or row.model_id == "mobnet2_dense256_finetune"  # published: the head alone
        epochs[f"{row.backbone} head" if is_head else f"{row.backbone} last {row.unfreeze_last:.0f}"].append(row.epochs)
    return epochs


@dataclass(frozen=True)
class Extrapolation:
    """What whole runs take, extrapolated from timings.

    Attributes:
        timings: By kind.
        cache_seconds: By backbone: the seconds in which the cache of one view, and of all views, is computed.
        sizes: The numbers of images that were measured.
        views: All views.
    """

    timings: Mapping[str, Timings]
    cache_seconds: Mapping[str, tuple[float, float]]
    sizes: Sizes
    views: int

    def cache(self, kind: str, views: int, scale: float) -> float:
        """Returns the seconds in which the cache of a kind is computed, on `scale` times as many images."""
        one, most = self.cache_seconds[KINDS[kind].backbone]
        if scale == 1:
            return one if views == 1 else most
        # What more views cost grows with the images; the rest, tracing and freezing the graph, happens once.
        per_image = (most - one) / (self.views - 1) / self.sizes.train
        float32 = self.timings[kind].float32
        fixed = one - per_image * self.sizes.passes(1, float32)
        return fixed + per_image * scale * self.sizes.passes(views, float32)

    def line(self, title: str, runs: Mapping[str, Sequence[int]], views: int, cached: bool, scale: float) -> str:
        """Returns a line of the comparison.

        Args:
            title: Begins the line.
            runs: The epochs of each run, by kind.
            views: Views in the feature cache.
            cached: Whether the feature cache is there already.
            scale: Times the number of images that was measured.
        """
        runs = {kind: epochs for kind, epochs in runs.items() if epochs}
        pairs = [(self.timings[kind], epochs) for kind in runs for epochs in runs[kind]]
        uncached = sum(timing.uncached.of(epochs, scale) for timing, epochs in pairs)
        total = sum(timing.cached.of(epochs, scale) for timing, epochs in pairs)
        limit = sum(scale * epochs * timing.limit for timing, epochs in pairs)
        if not cached:
            kinds = {KINDS[kind].backbone: kind for kind in runs}  # one per backbone, which has one cache
            total += sum(self.cache(kind, views, scale) for kind in kinds.values())
            for timing in (self.timings[kind] for kind in kinds.values()):
                limit += scale * self.sizes.passes(views, timing.float32) / timing.forward_rate
        return f"{title:62} {uncached:9.1f} {total:9.1f} {uncached / total:7.1f} {limit:9.1f} {total / limit:7.2f}"


def _print_comparison(extrapolation: Extrapolation) -> None:
    """Prints whole runs with and without the cache, those for which all kinds were measured."""
    views, published = extrapolation.views, published_epochs()

    def show(title: str, runs: Mapping[str, Sequence[int]], views: int, cached: bool = False, scale: float = 1) -> None:
        if set(runs) <= set(extrapolation.timings):
            print(extrapolation.line(title, runs, views, cached, scale))

    mobilenet, tuned = {"MobileNetV2 head": [15]}, {"MobileNetV2 last 20": [10]}
    efficientnet, efficientnet_tuned = {"EfficientNetV2S head": [12]}, {"EfficientNetV2S last 30": [35]}
    everything = f"(d) all {sum(map(len, published.values()))} transfer runs"
    print(f"\n{'seconds':62} {'no cache':>9} {'cache':>9} {'ratio':>7} {'limit':>9} {'above':>7}")
    for n in sorted({1, views}):
        show(f"(a) MobileNetV2 head, 15 epochs, V = {n}", mobilenet, n)
        show(f"(b) MobileNetV2 last 20 layers, 10 epochs, V = {n}", tuned, n)
        show(f"(c) EfficientNetV2S head, 12 epochs, V = {n}", efficientnet, n)
        show(f"(c) EfficientNetV2S last 30, 35 epochs, V = {n}", efficientnet_tuned, n)
        show(f"{everything}, V = {n}", published, n)
    show("another head, 15 epochs, the cache is there", mobilenet, views, cached=True)
    show("another EfficientNetV2S head, 12 epochs, the cache is there", efficientnet, views, cached=True)
    if views == 1:
        return
    scale = ANIMALS10_TRAIN / extrapolation.sizes.train
    print(f"\nExtrapolated to the {ANIMALS10_TRAIN:,} training images of Animals-10:")
    show("another head, 15 epochs, the cache is there", mobilenet, views, cached=True, scale=scale)
    show("(a) MobileNetV2 head, 15 epochs, V = 1", mobilenet, 1, scale=scale)
    show(f"(b) MobileNetV2 last 20 layers, 10 epochs, V = {views}", tuned, views, scale=scale)
    show(f"(c) EfficientNetV2S last 30, 35 epochs, V = {views}", efficientnet_tuned, views, scale=scale)
    show(f"{everything}, V = {views}", published, views, scale=scale)
