"""Experiments as values: their digests must not change by accident, and the catalogue is what was published."""

import dataclasses

import keras
import pandas as pd
import pytest

import auxiliary as aux
from animals10 import images
from animals10.dataset import PUBLISHED_RESULTS
from animals10.experiments import digest, identity, specification
from animals10.workspace import Workspace

CONTEXT = {"data_sha256": "0" * 64, "image_size": 224, "seed": 5, "weights": "imagenet", "precision": "float32"}
GOLDEN = {"cnn": "223ac6680ec6", "head": "6b32c232f653", "child": "a36988f530f2", "configured": "7977f4b840ef"}
PUBLISHED = aux.read_table(PUBLISHED_RESULTS)


def name_of(experiment, **changes):
    return digest(experiment, lambda one: CONTEXT | changes, 10)


def test_digests_are_those_of_finished_runs():
    """If this fails, finished runs of all users are trained again: see CONTRIBUTING.md before changing a digest."""
    assert name_of(aux.find_experiment("conv4dense2")) == GOLDEN["cnn"]
    assert name_of(aux.find_experiment("mobnet2_small")) == GOLDEN["head"]
    assert name_of(aux.find_experiment("mobnet2_small_tune20", learning_rate=1e-5)) == GOLDEN["child"]
    assert name_of(aux.find_experiment("mobnet2_best")) == GOLDEN["configured"]


def test_defaults_are_those_of_finished_runs():
    """A default is not part of a digest: whoever changes one must raise TRAINING_VERSION or AUGMENTATION_VERSION."""
    assert specification(aux.Training(1.0, 1)) == {
        "type": "Training",
        "learning_rate": 1,
        "epochs": 1,
        "patience": 5,
        "batch_size": 32,
        "class_balance": "mean",
        "augmentation": {
            "type": "Augmentation",
            "brightness": 0.1,
            "contrast": [0.8, 1.2],
            "saturation": [0.8, 1.2],
            "hue": 0.02,
            "crop": [0.85, 1],
            "horizontal_flip": True,
            "vertical_flip": True,
            "rand_augment": 0,
            "erasing": 0,
        },
        "optimizer": "adam",
        "schedule": "constant",
        "class_weights": False,
        "label_smoothing": 0,
        "weight_decay": None,
        "clip_norm": 0,
        "ema": 0,
        "stochastic_depth": 0,
        "mixup": 0,
        "cutmix": 0,
        "layer_decay": 1,
    }
    assert specification(aux.Transfer("MobileNetV2")) == {
        "type": "Transfer",
        "backbone": "MobileNetV2",
        "dense_units": [128],
        "dropout": [0],
        "unfreeze_last": 0,
        "freeze_batch_norm": True,
        "unfreeze_last_blocks": 0,
        "feature_dropout": 0,
    }
    assert specification(aux.CNN((1,), (1,)))["dense_units"] == [128] and aux.CNN((1,), (1,)).dropout == (0.3,)


def test_whatever_can_change_a_result_changes_the_digest():
    one = aux.Experiment("a", aux.CNN((8,), (2,)), aux.Training(1e-3, 5))
    other = [
        dataclasses.replace(one, id="b"),
        dataclasses.replace(one, repetition=2),
        dataclasses.replace(one, model=aux.CNN((9,), (2,))),
        dataclasses.replace(one, training=aux.Training(1e-3, 6)),
        dataclasses.replace(one, training=aux.Training(1e-3, 5, augmentation=aux.Augmentation(hue=0.03))),
        dataclasses.replace(one, training=aux.Training(1e-3, 5, augmentation=None)),
        dataclasses.replace(one, init_from=dataclasses.replace(one, id="parent")),
    ]
    names = [name_of(experiment) for experiment in (one, *other)] + [name_of(one, seed=6)]
    assert len(set(names)) == len(names)
    assert name_of(dataclasses.replace(one, training=aux.Training(0.001, 5, patience=5))) == names[0]
    assert name_of(dataclasses.replace(one, model=aux.CNN((8.0,), (2,), (128,), (0.3,)))) == names[0]  # equal values


def test_a_new_field_with_a_default_leaves_finished_runs_finished():
    @dataclasses.dataclass(frozen=True)
    class CNN:
        filters: tuple
        new: float = 0.5

    assert identity(CNN((8,))) == {"type": "CNN", "filters": [8]} == identity(CNN((8,), 0.5))
    assert identity(CNN((8,), 1.0)) == {"type": "CNN", "filters": [8], "new": 1}


def test_changed_augmentation_or_jpeg_quality_is_a_new_run(prepared, monkeypatch):
    experiment = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), aux.Training(1e-3, 1))
    run = aux.train(prepared, experiment)
    assert aux.train(prepared, experiment) == run
    stronger = dataclasses.replace(experiment.training, augmentation=aux.Augmentation(brightness=0.3))
    with pytest.raises(aux.UserError, match="Two different experiments are called small"):
        aux.train_all(prepared, [experiment, dataclasses.replace(experiment, training=stronger)])
    assert aux.train(prepared, dataclasses.replace(experiment, training=stronger)) != run
    monkeypatch.setattr(images, "JPEG_QUALITY", 80)
    assert Workspace(prepared).digest(experiment) != run.record["digest"]


def test_a_repetition_starts_from_the_same_repetition_of_its_parent():
    head = aux.Experiment("head", aux.Transfer("MobileNetV2"), aux.Training(1e-3, 1))
    tuned = aux.Experiment("tuned", aux.Transfer("MobileNetV2", unfreeze_last=5), aux.Training(1e-3, 1), head)
    third = dataclasses.replace(tuned, repetition=3)
    assert tuned.parent == head and third.parent == dataclasses.replace(head, repetition=3)
    again = dataclasses.replace(third, init_from=tuned)
    assert again.parent.parent.repetition == 3  # through the whole chain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": "a/b"}, "'a/b' holds '/'"),
        ({"id": "  "}, "1 to 200 bytes"),
        ({"id": ".hidden"}, "begins with a dot"),
        ({"id": "a\nb"}, r"holds '\\n'"),
        ({"id": "a\udcff"}, r"holds '\\udcff'"),  # of a file name that is no UTF-8
        ({"id": "v1."}, "ends with a dot"),
        ({"id": "a "}, "begins or ends with a blank"),
        ({"id": "-x"}, "begins with a dash"),
        ({"id": "Con.v2"}, "the name of a device of Windows"),
        ({"id": "LPT1"}, "the name of a device of Windows"),
        ({"id": "网" * 67}, "1 to 200 bytes; .* has 201"),
        ({"id": "x" * 201}, "has 201"),
        ({"repetition": 0}, "repetition must be 1 or more"),
        ({"initial_epoch": 9}, "initial_epoch"),
        ({"model": aux.CNN([8], [2])}, "frozen dataclass of tuples and numbers, but has an unhashable type: 'list'"),
        ({"model": "MobileNetV2"}, "a frozen dataclass with a method `build`"),
    ],
)
def test_an_impossible_experiment_is_one_clear_line(values, message):
    good = {"id": "a", "model": aux.CNN((8,), (2,)), "training": aux.Training(1e-3, 5)}
    with pytest.raises(aux.UserError, match=message) as error:
        aux.Experiment(**good | values)
    assert "\n" not in str(error.value)
    for wrong in ({"epochs": 2.5}, {"learning_rate": "1e-3"}, {"batch_size": True}):
        with pytest.raises(aux.UserError, match="allowed is a"):
            aux.Training(**{"learning_rate": 1e-3, "epochs": 5} | wrong)
    with pytest.raises(aux.UserError, match=r"crop is \(1.0, 1.5\); allowed is"):
        aux.Augmentation(crop=(1.0, 1.5))
    with pytest.raises(aux.UserError, match="init_from is a int"):
        aux.Experiment(**good, init_from=5)
    wrong = [{"class_balance": "all"}, {"schedule": "linear"}, {"label_smoothing": 1}, {"optimizer": "adamm"}]
    wrong += [{"optimizer": "LossScaleOptimizer"}, {"optimizer": 5}, {"weight_decay": -1e-4}, {"weight_decay": "no"}]
    wrong += [{"clip_norm": -1}, {"clip_norm": float("inf")}, {"ema": 1}, {"ema": None}, {"stochastic_depth": 1}]
    wrong += [{"mixup": 1.5}, {"mixup": True}, {"cutmix": float("nan")}, {"augmentation": "standard"}]
    wrong += [{"layer_decay": 0}, {"layer_decay": 1.1}]
    for values in wrong:
        name = next(iter(values))
        with pytest.raises(aux.UserError, match=rf"Training: {name} is .*; allowed is") as error:
            aux.Training(1e-3, 5, **values)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rand_augment": 1.1}, r"rand_augment is 1.1; allowed is"),
        ({"rand_augment": "strong"}, r"rand_augment is 'strong'; allowed is a number"),
        ({"erasing": -0.1}, r"erasing is -0.1; allowed is"),
        ({"contrast": 0.2}, r"contrast is 0.2; allowed are two numbers"),
        ({"saturation": (0.8, "1.2")}, r"saturation is '1.2'; allowed is a number"),
        ({"vertical_flip": "no"}, r"vertical_flip is 'no'; allowed is True or False"),
    ],
)
def test_an_impossible_augmentation_is_one_clear_line(values, message):
    with pytest.raises(aux.UserError, match=f"Augmentation: {message}") as error:
        aux.Augmentation(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [1, -0.1, "0.5"])
def test_an_impossible_dropout_rate_is_one_clear_line(rate):
    for build in (
        lambda: aux.CNN((8,), (2,), (8,), (rate,)),
        lambda: aux.Transfer("MobileNetV2", (8,), (rate,)),
        lambda: aux.Transfer("MobileNetV2", feature_dropout=rate),
    ):
        with pytest.raises(aux.UserError, match=r"dropout (is|has the rate) .*; allowed is a number"):
            build()


@pytest.mark.parametrize("id", ["a", "é.2", "a, b", "it's", "[x]", "conv", "com", "con-v2", "v1.con", "网" * 66, "🐶"])
def test_what_can_be_a_file_name_can_be_an_id(id):
    assert aux.Experiment(id, aux.CNN((8,), (2,)), aux.Training(1e-3, 5)).id == id


# ── Catalogue ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def numbers(text):
    return tuple(float(part) for part in str(text).replace("-", "0").split()) if pd.notna(text) else ()


def test_the_catalogue_holds_every_published_experiment():
    published = PUBLISHED.query("image_size == 224")
    assert len(published) == 42 and len(aux.CATALOGUE) == 50
    by_key = {experiment.key: experiment for experiment in aux.CATALOGUE}
    assert len(by_key) == 50
    for row in published.itertuples():
        experiment = by_key[row.model_id, row.learning_rate, row.epochs, row.repetition]
        model, training = experiment.model, experiment.training
        assert (training.patience, training.batch_size, training.class_balance) == (row.patience, 32, row.class_balance)
        assert model.dense_units == numbers(row.dense_units) and model.dropout == (
            numbers(row.dropout) or (0.0,) * len(model.dense_units)
        )
        if row.notebook == 2 or row.notebook == "02":
            assert model.filters == numbers(row.filters) and model.pool_sizes == numbers(row.pool_sizes)
        else:
            assert model.backbone == row.backbone
        assert (experiment.init_from.id if experiment.init_from else None) == (
            row.continues if pd.notna(row.continues) else None
        )


def test_published_experiments_at_200_pixels_with_known_architectures_are_there():
    known = set(PUBLISHED.query("image_size == 224").model_id)
    expected = [row for row in PUBLISHED.query("image_size == 200").itertuples() if row.model_id in known]
    keys = {experiment.key for experiment in (*aux.CATALOGUE, *aux.AT_200)}
    assert len(expected) == 18
    assert {(row.model_id, row.learning_rate, row.epochs, row.repetition) for row in expected} <= keys


# Eight builds say the same as 42: every kind of layer, head and freezing is among them.
BUILT = ["base_meansamp_augment+", "conv4dense2", "conv3_dense1", "conv5invto128_dense256", "mobnet2_3dense"]
BUILT += ["mobnet2_dense256_finetune", "resnet2_small", "effnet2S_small_finetune"]


@pytest.mark.parametrize("id", BUILT)
def test_networks_have_the_published_numbers_of_parameters(id):
    row = PUBLISHED[(PUBLISHED.model_id == id) & (PUBLISHED.image_size == 224)].iloc[0]
    model = aux.find_experiment(id).model.build(10, 224)
    trained = sum(weight.numpy().size for weight in model.trainable_weights)
    assert (model.count_params(), trained) == (row.params, row.trainable_params)
    keras.backend.clear_session()


def test_an_experiment_is_found_by_its_key_or_the_nearest_are_named():
    assert aux.find_experiment("mobnet2_dense256", repetition=2).repetition == 2
    with pytest.raises(aux.UserError, match=r"has 2 experiments .*learning rate 1e-05.*; .*learning rate 0.0001"):
        aux.find_experiment("mobnet2_small_tune20")
    with pytest.raises(aux.UserError, match="nearest are mobnet2_small"):
        aux.find_experiment("mobnet2_smal")


def test_the_table_shows_every_hyper_parameter_that_differs():
    table = aux.experiment_table(aux.SECTIONS["Better training configuration"][:2])
    assert table.id.tolist() == ["mobnet2_best_head", "mobnet2_best"]
    assert table["initialised from"].tolist() == ["–", "mobnet2_best_head"]
    assert table["unfrozen layers"].tolist() == ["0", "20"] and set(table.schedule) == {"cosine"}
    assert set(table.augmentation) == {"vertical flip: no"} and set(table.parameters) == {"2,588,490"}
    assert "optimizer" not in table
