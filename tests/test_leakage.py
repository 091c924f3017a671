"""What leakage is worth: test images whose near-duplicates in training give their labels away, or tell nothing."""

from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import auxiliary as aux
from animals10 import execution, leakage
from animals10.files import REPOSITORY
from animals10.leakage_results import leakage_results, retrained_sentences, summary
from animals10.splits import resample
from animals10.workspace import Workspace

N_LEAKED, N_OTHERS = 24, 50  # test images


@dataclass(frozen=True)
class Linear:
    """Learns noise by heart: images have more pixels than there are images."""

    def build(self, n_classes, image_size, weights=None):
        inputs = keras.Input((image_size, image_size, 3))
        pixels = keras.layers.Flatten(name="pixels")(keras.layers.Rescaling(1 / 128, -1)(inputs))
        return keras.Model(inputs, keras.layers.Dense(n_classes, activation="softmax")(pixels))

    def split_layer(self, model):
        return "pixels"


TRAINING = aux.Training(learning_rate=2e-3, epochs=1, batch_size=4, class_balance="none", augmentation=None)
EXPERIMENT = aux.Experiment("linear", Linear(), TRAINING)


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A workspace of noise, whose classes nobody can tell; 24 of 74 test images have a near-duplicate in training."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(3)

    def draw(part, pixels, index):
        path = folder / "raw" / "ab"[index % 2] / f"{part} {index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype("uint8")).save(path)

    for part, n in (("train other", 100), ("val", 20), ("test leaked", N_LEAKED), ("test other", N_OTHERS)):
        for index in range(n):
            pixels = rng.uniform(0, 255, (32, 32, 3))
            draw(part, pixels, index)
            if part == "test leaked":
                draw("train partner", pixels + rng.normal(0, 4, pixels.shape), index)
    settings = aux.Settings(root=folder / "work", raw=folder / "raw", image_size=32, weights="random")
    overview = aux.resize_images(settings, aux.scan_images(settings))
    for part in ("train", "val", "test"):
        aux.write_table(overview[overview.relpath.str.contains(f"/{part} ")], settings.data / f"{part}.csv")
    return settings


def groups_of(settings):
    return aux.check_images(settings).set_index("relpath").group


def worth(workspace, groups):
    """Returns what partners are worth on leaked test images, and the other rows of the result."""
    rows = pd.DataFrame(leakage.retrain(workspace, EXPERIMENT, groups, 2)).set_index(["condition", "test_images"])
    return rows.loc[("difference", "leaked")], rows


@pytest.mark.slow
def test_partners_that_give_the_label_away_are_worth_much_and_others_nothing(noise):
    workspace, groups = Workspace(noise), groups_of(noise)
    found, rows = worth(workspace, groups)
    assert rows.n.groupby("test_images").first().to_dict() == {"all": 74, "leaked": N_LEAKED, "others": N_OTHERS}
    assert rows.accuracy["as it is", "leaked"] > 0.9 > 0.75 > rows.accuracy["without partners", "leaked"]
    assert found.accuracy > 0.25 and found.low > 0.1
    assert found.low < found.accuracy < found.high and found.removed == N_LEAKED
    assert abs(rows.accuracy["difference", "others"]) < 0.15

    # As if unrelated training images were the near-duplicates of the other test images.
    unrelated = pd.Series(groups.index, groups.index)
    for relpath in filter(lambda name: "test other" in name, groups.index):
        unrelated[relpath.replace("test other", "train other")] = relpath
    found, _ = worth(workspace, unrelated)
    assert found.removed == found.n == N_OTHERS
    assert abs(found.accuracy) < 0.15 and found.low < 0 < found.high


def test_as_many_other_images_of_each_class_are_left_out_and_they_are_repeated_as_often(noise):
    train = aux.load_splits(noise).train
    dropped = train.index[train.relpath.str.startswith("a/train other")][:15]
    table = resample(train.drop(dropped), "max", seed=5)  # 15 images of class a occur twice
    partners = set(train.relpath[train.relpath.str.contains("partner")])
    others = leakage.draw_others(table, partners, seed=1)
    assert table[table.relpath.isin(partners)].relpath.duplicated().sum() >= 2
    assert len(others) == len(partners) and not others & partners and others != leakage.draw_others(table, partners, 2)
    kept = [table[~table.relpath.isin(removed)] for removed in (partners, others)]
    for count in ("size", "nunique"):
        counts = [part.groupby("label").relpath.agg(count).to_dict() for part in kept]
        assert counts[0] == counts[1]
    with pytest.raises(aux.UserError, match="too few to compare"):
        leakage.draw_others(table, set(table.relpath[table.label == 0]), seed=1)


def test_near_duplicates_in_the_test_set_count_as_one_photograph():
    groups = pd.Series(["a", "b", "b", "c", "c", "c"])
    weights = leakage.photograph_weights(groups)
    assert weights.sum() == pytest.approx(3) and weights[0] == 1
    assert pd.Series(weights).groupby(groups).sum().tolist() == pytest.approx([1, 1, 1])


def test_the_interval_covers_both_sources_of_chance():
    one, groups = np.zeros((40, 4)), np.arange(40)
    one[:, 0] = 1  # seeds differ, images do not
    assert leakage.crossed_interval(one, groups) == (0, 0.75)
    one = np.repeat(np.arange(40)[:, None] % 2, 4, axis=1).astype(float)  # images differ, seeds do not
    low, high = leakage.crossed_interval(one, groups)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.5 / 40**0.5, 0.5 + 1.96 * 0.5 / 40**0.5), abs=0.03)
    wider = leakage.crossed_interval(one, groups // 10 * 2 + groups % 2)  # eight groups of five equal images
    assert wider[1] - wider[0] > 1.5 * (high - low)


def test_the_command_prints_and_stores_both_parts_and_trains_nothing_twice(noise, capsys, monkeypatch):
    monkeypatch.setattr(execution, "check_custom", lambda *_: None)  # it takes seconds, and has tests of its own
    run = aux.train(noise, EXPERIMENT)
    runs, results = sorted(noise.models.iterdir()), noise.results.read_bytes()
    table = leakage.measure_leakage(noise, [EXPERIMENT], repetitions=2)
    assert (sorted(noise.models.iterdir()), noise.results.read_bytes()) == (runs, results)
    observed = table[table.part == "observed"].set_index("test_images")
    assert observed.n.to_dict() == {"all": 74, "leaked": N_LEAKED, "others": N_OTHERS, "distinct": 74}
    assert observed.accuracy["all"] == pytest.approx(run.row["accuracy"], abs=1e-6)
    assert observed.accuracy["leaked"] > 0.9 > 0.75 > observed.accuracy["others"]
    assert len(list((noise.data / "features").glob("Linear-train-*"))) == 1  # no features were computed twice
    text = capsys.readouterr().out
    assert f"with a near-duplicate in training (n = {N_LEAKED})" in text and "each photograph once (n = 74)" in text
    assert (
        "linear, 2 seeds: 24 near-duplicates in training change the accuracy on the 24 test images that have one by +"
        in text
    )

    path = noise.root / "leakage.csv"
    stored = aux.read_table(path)
    other = stored.assign(split="grouped", commit="earlier")
    aux.write_table(pd.concat([other, stored.assign(accuracy=0.0)]), path)
    monkeypatch.setattr(leakage, "fit", None)
    again = leakage.predict_without(Workspace(noise), EXPERIMENT, set())
    assert np.array_equal(again, run.predictions.category == run.predictions.predicted)  # trained as the run was
    leakage.measure_leakage(noise, [EXPERIMENT], repetitions=2)
    pd.testing.assert_frame_equal(
        aux.read_table(path).sort_values(["split", "part"], kind="stable", ignore_index=True),
        pd.concat([other, stored]).sort_values(["split", "part"], kind="stable", ignore_index=True),
    )
    with pytest.raises(aux.UserError, match="allowed is 2, 3"):
        leakage.measure_leakage(noise, [EXPERIMENT], repetitions=1)


def test_what_was_measured_on_animals10_is_in_the_data_card():
    results = leakage_results()
    assert set(results.data_share) == {"25,949 of 26,179"} and results.commit.notna().all()
    retrained = results[results.part == "retrained"]
    assert {"mobnet2_linear_probe", "mobnet2_small"} <= set(retrained.model_id) and retrained.seeds.min() >= 2
    page = (REPOSITORY / "data" / "animals10.md").read_text(encoding="utf-8")
    for sentence in retrained_sentences(results, "published"):
        assert sentence in page
    for text in ("on the 283 test images with a near-duplicate in training", "No test image has a near-duplicate"):
        assert text in "\n".join(summary(results))
