"""Cross-validation: folds, one pass of each image through the backbone, results, and the corrected interval."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import auxiliary as aux
from animals10 import features
from animals10.cross_validation import corrected_interval, draw_folds
from animals10.input_pipeline import view_batches

SMALL = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), aux.Training(learning_rate=1e-2, epochs=1))


@pytest.fixture
def duplicated(settings):
    """A workspace in which each green image has an exact duplicate."""
    for path in sorted((settings.raw / "green").iterdir()):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    aux.resize_images(settings, aux.scan_images(settings))
    return settings


def test_folds_are_disjoint_stratified_and_keep_near_duplicates_together(duplicated):
    checks = aux.check_images(duplicated)
    assert len(checks) == 70 and checks.group.nunique() == 50
    folds = draw_folds(checks, 5, seed=6)
    assert set(folds) == set(range(1, 6)) and not np.array_equal(folds, draw_folds(checks, 5, seed=7))
    assert (checks.assign(fold=folds).groupby("group").fold.nunique() == 1).all()
    sizes = pd.crosstab(checks.category, folds)
    assert sizes.to_numpy().min() >= 1 and (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 4
    assert np.array_equal(folds, draw_folds(checks, 5, seed=6))
    with pytest.raises(aux.UserError, match=r"red has 14 .* near-duplicates counted once: too few for 15 folds"):
        draw_folds(checks, 15, seed=6)


def test_each_image_but_those_of_the_test_set_is_held_out_once_and_no_group_is_torn(duplicated):
    splits, checks = aux.load_splits(duplicated), aux.check_images(duplicated)
    group = dict(zip(checks.relpath, checks.group, strict=True))
    found = aux.cross_validate(duplicated, SMALL, folds=3)
    assert sorted(found.predictions.relpath) == sorted([*splits.train.relpath, *splits.val.relpath])
    assert len(found.table) == len(found.runs) == 3
    for run, row in zip(found.runs, found.table.itertuples(), strict=True):
        part = aux.load_splits(duplicated.model_copy(update={"root": run.path.parent.parent}))
        parts = [{group[path] for path in table.relpath} for table in (part.train, part.val, part.test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert (row.n_train, row.n_val, row.n) == (len(part.train), len(part.val), len(part.test))
        held_out = found.predictions.query("fold == @row.fold")
        assert list(held_out.relpath) == list(part.test.relpath)
        assert row.accuracy == run.row["accuracy"] == (held_out.category == held_out.predicted).mean()
    assert not duplicated.results.exists() and not aux.stored_runs(duplicated.root)


def test_results_are_printed_repeated_compared_and_not_computed_again(prepared, capsys):
    first = aux.cross_validate(prepared, SMALL, folds=3, repeats=2)
    assert list(zip(first.table.repetition, first.table.fold)) == [(r, f) for r in (1, 2) for f in (1, 2, 3)]
    assert first.predictions.groupby("repetition").relpath.nunique().to_list() == [45, 45]
    capsys.readouterr()
    again = aux.cross_validate(prepared, SMALL, folds=3, repeats=2)
    assert again.runs[0] == first.runs[0] and "fold" not in capsys.readouterr().err  # no line of progress
    pd.testing.assert_frame_equal(again.table, first.table)

    accuracy, mean = first.table.accuracy, first.summary.loc["accuracy"]
    assert (mean["mean"], mean["std"]) == (accuracy.mean(), accuracy.std())
    assert (mean["low"] + mean["high"]) / 2 == pytest.approx(accuracy.mean())
    text = str(first)
    assert text.startswith("small (learning rate 0.01, 1 epochs): 45 images, 3 folds, 2 repetitions")
    assert f"{accuracy.mean():.3f}" in text

    slow = dataclasses.replace(SMALL, id="slow", training=dataclasses.replace(SMALL.training, learning_rate=1e-5))
    once, second = aux.cross_validate(prepared, SMALL, folds=3), aux.cross_validate(prepared, slow, folds=3)
    found = aux.compare_cross_validated(once, second, "loss")
    differences = once.table.loss - second.table.loss
    expected = corrected_interval(differences, once.table.n.sum() / once.table.n_train.sum())
    assert (found["difference"], found["low"], found["high"]) == expected and found["low"] < found["high"]
    assert aux.compare_cross_validated(second, once, "loss")["difference"] == -found["difference"]
    with pytest.raises(aux.UserError, match="on different folds: give both the same images, folds and repeats"):
        aux.compare_cross_validated(first, second)
    with pytest.raises(aux.UserError, match="no metric 'kappa': allowed are accuracy"):
        aux.compare_cross_validated(once, second, "kappa")


@pytest.mark.slow
def test_the_mirror_image_is_predicted_as_well_where_asked_for(prepared):
    plain = aux.cross_validate(prepared, SMALL, folds=3)
    mirrored = aux.cross_validate(prepared, SMALL, folds=3, mirrored=True)
    assert "mean over the mirror image" in str(mirrored) and list(mirrored.runs) == list(plain.runs)
    model, names = aux.load_model(plain.runs[0].file("model.keras"))
    fold = prepared.model_copy(update={"root": plain.runs[0].path.parent.parent})
    test = aux.load_splits(fold).test
    expected = aux.predict_table(model, aux.batches(fold, test), test, names, mirrored=True)
    found = mirrored.predictions.query("fold == 1")
    assert np.allclose(found.p_red, expected.p_red, atol=1e-6)
    assert not np.allclose(found.p_red, plain.predictions.query("fold == 1").p_red, atol=1e-6)


@pytest.mark.slow
def test_no_image_passes_the_backbone_twice_over_all_folds(prepared, monkeypatch):
    """Whatever the number of folds. The mirror images are images of their own."""
    computed, cached_features = [], features.cached_features

    def counting(*arguments):
        *most, compute = arguments
        return cached_features(*most, lambda *rows: (computed.append(len(part[0])) or part for part in compute(*rows)))

    monkeypatch.setattr("animals10.data_preparation.cached_features", counting)
    settings, training = prepared.model_copy(update={"views": 2}), aux.Training(1e-3, 1)
    head = aux.Experiment("head", aux.Transfer("MobileNetV2", (8,)), training)
    found = aux.cross_validate(settings, head, folds=3)
    n = len(found.predictions)
    assert n == 45 and sum(computed) == 3 * n  # two views to train on, and the image itself
    plain = dataclasses.replace(head, id="plain", training=dataclasses.replace(training, augmentation=None))
    aux.cross_validate(settings, plain, folds=4)
    assert sum(computed) == 3 * n
    aux.cross_validate(settings, head, folds=3, mirrored=True)
    assert sum(computed) == 4 * n
    # Predictions from cached features are those of the stored model.
    fold = settings.model_copy(update={"root": found.runs[0].path.parent.parent})
    model, names = aux.load_model(found.runs[0].file("model.keras"))
    test = aux.load_splits(fold).test
    again = aux.predict_table(model, aux.batches(fold, test), test, names)
    assert np.allclose(again.p_red, found.predictions.query("fold == 1").p_red, atol=1e-5)


def test_views_belong_to_images_whatever_their_row(prepared):
    table = aux.load_splits(prepared).train.head(3)
    options = {"views": 2, "augmentation": aux.Augmentation(), "by_image": True, "batch_size": 3}
    views = [batch.numpy() for batch, _ in view_batches(prepared, table, **options)]
    reverse = [batch.numpy() for batch, _ in view_batches(prepared, table[::-1].reset_index(drop=True), **options)]
    assert all(np.array_equal(first, second[::-1]) for first, second in zip(views, reverse, strict=True))
    assert not np.array_equal(*views)


def test_what_cannot_be_cross_validated_is_one_clear_line(prepared):
    run = aux.train(prepared, SMALL)
    leaking = dataclasses.replace(SMALL, id="leaking", init_from=run)
    child = dataclasses.replace(SMALL, id="child", init_from=leaking)
    for experiment in (leaking, child):
        with pytest.raises(aux.UserError, match="leaking is initialised from a stored run, which may have been"):
            aux.cross_validate(prepared, experiment)
    for options, said in (({"folds": 2}, "2 folds"), ({"repeats": 0}, "0 repetitions")):
        with pytest.raises(aux.UserError, match=said):
            aux.cross_validate(prepared, SMALL, **options)
    folder = prepared.root / "weights"
    folder.mkdir()
    head = aux.Experiment("head", aux.Transfer("MobileNetV2", (8,)), SMALL.training)
    with pytest.raises(aux.UserError, match="cannot be cross-validated: there is no MobileNetV2"):
        aux.cross_validate(prepared.model_copy(update={"weights": str(folder)}), head)


def test_the_interval_is_the_one_computed_by_hand():
    # Mean 0.02; variance (0.01² + 0.01² + 0.01² + 0.01²) / 3 = 1.3333e-4; times 1/4 + 1/3 = 0.58333: 7.7778e-5;
    # root 8.8192e-3; times Student's t for 97.5 % and 3 degrees of freedom, 3.182446: 0.028067.
    mean, low, high = corrected_interval(pd.Series([0.01, 0.03, 0.01, 0.03]), 1 / 3)
    assert mean == pytest.approx(0.02) and low == pytest.approx(-0.008067, abs=1e-6)
    assert high == pytest.approx(0.048067, abs=1e-6)
