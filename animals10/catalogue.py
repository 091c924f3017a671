"""The catalogue: the 42 published experiments and those that this study adds, by section of the notebooks.

To add an experiment, add a line to its section.
"""

import difflib
from dataclasses import replace
from typing import Any

from animals10.augmentation import Augmentation
from animals10.experiments import Experiment, Training
from animals10.files import UserError
from animals10.models import CNN, Transfer
from animals10.runs import Run, RunKey

# One line per experiment, in the order of the notebooks: id, then
#   CNN(filters, pool sizes, dense units, dropout rates) or Transfer(backbone, dense units, dropout rates),
#   Training(learning rate, maximum epochs).
# fmt: off
_CONV4_128 = CNN((16, 32, 64, 128), (2, 2, 2, 2), (128,), (0.3,))
_CONV5_128 = CNN((8, 16, 32, 64, 128), (2, 2, 2, 2, 2), (128,), (0.3,))
_CONV5 = Experiment("conv5invto128_dense1", _CONV5_128, Training(5e-4, 35, patience=9))
_CONV5_EXTRA = Experiment("conv5invto128_dense1_35extraepochs", _CONV5_128, Training(5e-4, 70, patience=10), init_from=_CONV5, initial_epoch=35)

_MOBILENET = Experiment("mobnet2_small",    Transfer("MobileNetV2", (128,)),     Training(7e-4, 15))
_MOBILENET_256 = Experiment("mobnet2_dense256", Transfer("MobileNetV2", (256,)), Training(5e-4, 13))
_RESNET = Experiment("resnet2_small",       Transfer("ResNet50V2", (128,)),      Training(7e-4, 15))
_EFFICIENTNET = Experiment("effnet2S_small", Transfer("EfficientNetV2S", (256,)), Training(5e-4, 12))

_BETTER_HEAD = Training(5e-4, 15, class_balance="none", class_weights=True, schedule="cosine", augmentation=Augmentation(vertical_flip=False))
_BETTER_TUNING = replace(_BETTER_HEAD, learning_rate=1e-4)
_MOBILENET_BEST = Experiment("mobnet2_best_head", Transfer("MobileNetV2", (256,)), _BETTER_HEAD)
_RESNET_BEST = Experiment("resnet2_best_head", Transfer("ResNet50V2", (256,)), _BETTER_HEAD)
_EFFICIENTNET_BEST = Experiment("effnet2S_best_head", Transfer("EfficientNetV2S", (256,)), _BETTER_HEAD)

SECTIONS: dict[str, tuple[Experiment, ...]] = {
    # Notebook 02: CNNs trained from scratch
    "Class balance": (
        Experiment("base_downsamp_augment+",  CNN((128, 32), (3, 2), (128,), (0.3,)), Training(7e-4, 15, class_balance="min")),
        Experiment("base_upsamp_augment+",    CNN((128, 32), (3, 2), (128,), (0.3,)), Training(7e-4, 15, class_balance="max")),
        Experiment("base_meansamp_augment+",  CNN((128, 32), (3, 2), (128,), (0.3,)), Training(7e-4, 15, class_balance="mean")),
    ),
    "Depth and width": (
        Experiment("conv4dense2",             CNN((128, 64, 64, 32),     (3, 3, 2, 2),    (128, 32), (0.3, 0.2)), Training(7e-4, 25)),
        Experiment("conv4small_dense1",       CNN((64, 64, 32, 32),      (3, 2, 2, 2),    (128,),    (0.3,)),     Training(7e-4, 30)),
        Experiment("conv5_dense1",            CNN((128, 64, 32, 32, 16), (3, 2, 2, 2, 2), (128,),    (0.3,)),     Training(7e-4, 30)),
        Experiment("conv5small_dense1",       CNN((32, 64, 32, 32, 16),  (2, 2, 2, 2, 2), (128,),    (0.3,)),     Training(7e-4, 30)),
        Experiment("conv4small_dense2_lowlr", CNN((64, 64, 32, 32),      (3, 2, 2, 2),    (128, 32), (0.3, 0.3)), Training(5e-4, 30)),
    ),
    "Fewer pooling layers": (
        Experiment("conv4lesspoll_dense1",    CNN((64, 64, 32, 32), (2, 2, 2, 2), (128,),    (0.3,)),     Training(5e-4, 35)),
        Experiment("conv3_dense2",            CNN((128, 32, 32),    (3, 2, 2),    (128, 16), (0.3, 0.3)), Training(5e-4, 35)),
        Experiment("conv3_dense1",            CNN((128, 64, 32),    (3, 2, 2),    (128,),    (0.3,)),     Training(5e-4, 35)),
    ),
    "Increasing filters": (
        Experiment("conv3invert_dense1",      CNN((32, 64, 128),    (3, 2, 2),    (128,), (0.3,)), Training(5e-4, 35)),
        Experiment("conv4lesspollinv_dense1", CNN((16, 32, 64, 64), (2, 2, 2, 2), (128,), (0.3,)), Training(5e-4, 35)),
        Experiment("conv4invto128_dense1",    _CONV4_128,                                          Training(5e-4, 35)),
        _CONV5,
    ),
    "Longer training": (
        _CONV5_EXTRA,
        Experiment("conv5invto128_dense1_80total", _CONV5_128, Training(5e-4, 10, patience=10), init_from=_CONV5_EXTRA),
        Experiment("conv4invto128_dense1",    _CONV4_128,                                          Training(5e-4, 80, patience=10)),
        Experiment("conv4lesspoll_dense1",    CNN((64, 64, 32, 32), (2, 2, 2, 2), (128,), (0.3,)), Training(5e-4, 80)),
    ),
    "Dense units and oversampling": (
        Experiment("conv4inv128_pool_dense256",          CNN((16, 32, 64, 128),    (3, 2, 2, 2),    (256,), (0.3,)),  Training(1e-4, 80, patience=12)),
        Experiment("conv4inv8to128_pool_dense196",       CNN((8, 32, 64, 128),     (3, 2, 2, 2),    (196,), (0.3,)),  Training(1e-4, 80, patience=12)),
        Experiment("conv4inv8to128_dense96",             CNN((8, 32, 64, 128),     (2, 2, 2, 2),    (96,),  (0.3,)),  Training(1e-4, 80, patience=12)),
        Experiment("conv4invto128_dense256",             CNN((16, 32, 64, 128),    (2, 2, 2, 2),    (256,), (0.3,)),  Training(5e-4, 80, patience=10)),
        # Missing in the published notebook; inferred from its name, and the number of parameters agrees.
        Experiment("conv4invto128_pool_dense256_upsamp", CNN((16, 32, 64, 128),    (3, 2, 2, 2),    (256,), (0.3,)),  Training(5e-4, 80, patience=10, class_balance="max")),
        Experiment("conv4invto128_dense256_upsamp",      CNN((16, 32, 64, 128),    (2, 2, 2, 2),    (256,), (0.35,)), Training(5e-4, 80, patience=10, class_balance="max")),
        Experiment("conv5invto128_dense256",             CNN((8, 16, 32, 64, 128), (2, 2, 2, 2, 2), (256,), (0.3,)),  Training(2e-4, 80, patience=13)),
        Experiment("conv5invto128_dense256_upsamp",      CNN((8, 16, 32, 64, 128), (2, 2, 2, 2, 2), (256,), (0.3,)),  Training(2e-4, 80, patience=13, class_balance="max")),
    ),
    # Notebook 03: transfer learning
    "Frozen backbones": (
        Experiment("mobnet2_small_notraining", Transfer("MobileNetV2", (128,)),                         Training(7e-4, 0)),
        _MOBILENET,
        Experiment("mobnet2_3dense",           Transfer("MobileNetV2", (32, 64, 128), (0.2, 0.3, 0.2)), Training(5e-4, 15)),
        Experiment("mobnet2_2dense",           Transfer("MobileNetV2", (128, 32), (0.0, 0.2)),          Training(5e-4, 15)),
        _MOBILENET_256,
        replace(_MOBILENET_256, repetition=2),
        _RESNET,
        _EFFICIENTNET,
        # Logistic regression on the pooled features, without augmentation: one pass over the images, then seconds.
        Experiment("mobnet2_linear_probe",     Transfer("MobileNetV2", (), ()),                         Training(3e-4, 30, class_balance="none", augmentation=None)),
    ),
    "Fine-tuning": (
        Experiment("mobnet2_small_tune20",          Transfer("MobileNetV2", (128,), unfreeze_last=20), Training(1e-5, 5),               _MOBILENET),
        Experiment("mobnet2_small_tune20",          Transfer("MobileNetV2", (128,), unfreeze_last=20), Training(1e-4, 5),               _MOBILENET),
        Experiment("mobnet2_small_tune20_15epochs", Transfer("MobileNetV2", (128,), unfreeze_last=20), Training(1e-4, 10),              _MOBILENET),
        Experiment("resnet2_small_finetune",        Transfer("ResNet50V2", (128,), unfreeze_last=20),  Training(1e-4, 30, patience=10), _RESNET),
        Experiment("resnet2_small_finetune",        Transfer("ResNet50V2", (128,), unfreeze_last=20),  Training(1e-5, 30, patience=10), _RESNET),
        # The published number of trainable parameters includes the scale and shift of batch normalisation.
        Experiment("effnet2S_small_finetune",       Transfer("EfficientNetV2S", (256,), unfreeze_last=30, freeze_batch_norm=False), Training(1e-5, 35, patience=10), _EFFICIENTNET),
        # The published number of trainable parameters is that of the head alone; the next one unfreezes what was meant.
        Experiment("mobnet2_dense256_finetune",     Transfer("MobileNetV2", (256,)),                   Training(1e-5, 30, patience=10), _MOBILENET_256),
        Experiment("mobnet2_dense256_finetune25",   Transfer("MobileNetV2", (256,), unfreeze_last=25), Training(1e-5, 30, patience=10), _MOBILENET_256),
    ),
    "Better training configuration": (
        _MOBILENET_BEST,
        Experiment("mobnet2_best",  Transfer("MobileNetV2", (256,), unfreeze_last=20),     _BETTER_TUNING, _MOBILENET_BEST),
        _RESNET_BEST,
        Experiment("resnet2_best",  Transfer("ResNet50V2", (256,), unfreeze_last=24),      _BETTER_TUNING, _RESNET_BEST),
        _EFFICIENTNET_BEST,
        Experiment("effnet2S_best", Transfer("EfficientNetV2S", (256,), unfreeze_last=33), _BETTER_TUNING, _EFFICIENTNET_BEST),
    ),
}
# Published at 200 × 200 pixels alone (IMAGE_SIZE=200). Their architectures were not published: these are those of the
# same ids at 224. The other published runs at 200 pixels differ from the experiments above in the image size alone.
AT_200 = (
    Experiment("conv4dense2",       CNN((128, 64, 64, 32), (3, 3, 2, 2), (128, 32), (0.3, 0.2)),       Training(7e-3, 25)),
    Experiment("conv5small_dense1", CNN((32, 64, 32, 32, 16), (2, 2, 2, 2, 2), (128,), (0.3,)),        Training(7e-4, 30), repetition=2),
    Experiment("conv5invto128_dense1_35extraepochs", _CONV5_128, Training(5e-4, 35, patience=10), init_from=_CONV5),
)
# fmt: on
CATALOGUE = tuple(experiment for section in SECTIONS.values() for experiment in section)


def find_experiment(id: str, **values: float) -> Experiment:
    """Finds an experiment of the catalogue by its id and, where several share it, by other values of its key.

    Args:
        id: The id.
        **values: `learning_rate`, `epochs` or `repetition`.

    Raises:
        UserError: There is none, or there are several.
    """
    found = [one for one in CATALOGUE if one.id == id]
    if not found:
        ids = list(dict.fromkeys(one.id for one in CATALOGUE))
        nearest = difflib.get_close_matches(id, ids, n=3, cutoff=0.3) or ids
        raise UserError(f"The catalogue has no experiment {id!r}; the nearest are {', '.join(nearest)}.")
    chosen = [one for one in found if values.items() <= one.key._asdict().items()]
    if len(chosen) != 1:
        labels = "; ".join(one.label for one in found)
        count = f"{len(chosen)} of them have {values}" if values else "name its learning rate, epochs or repetition"
        raise UserError(f"The catalogue has {len(found)} experiments {id!r}; {count}. They are {labels}.")
    return chosen[0]


def is_another_experiment(run: Run) -> bool:
    """Tells whether a stored run bears the key of an experiment of the catalogue, but was configured in another way.

    What an older version did not record counts as equal.

    Raises:
        UserError: The run's `run.json` is missing or damaged.
    """
    row, spec = run.row, run.record.get("spec", {})
    known = {one.key: one for one in (*AT_200, *CATALOGUE)}.get(RunKey(*(row[name] for name in RunKey._fields)))
    return known is not None and not _agree(spec, known.specification())


def _agree(first: Any, second: Any) -> bool:
    """Compares two specifications: mappings by the keys that both have."""
    if isinstance(first, dict) and isinstance(second, dict):
        return all(_agree(first[name], second[name]) for name in first.keys() & second.keys())
    return first == second
