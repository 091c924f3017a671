"""Label errors: how images are ranked, that swapped labels are found, and the inspected images of Animals-10."""

import re

import numpy as np
import pandas as pd
import pytest

import auxiliary as aux
from animals10.dataset import ENGLISH, ITALIAN
from animals10.files import REPOSITORY
from animals10.label_audit import (
    DECISIONS,
    correct_animals10,
    inspected_images,
    inspection_counts,
    print_inspection_counts,
    swap_recovery,
)
from animals10.label_errors import rank_labels
from animals10.reference import reference_files

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
FAST = aux.Experiment("fast", aux.CNN((8,), (8,), (16,)), aux.Training(learning_rate=1e-2, epochs=6, augmentation=None))


@pytest.fixture
def separable(tmp_path, draw):
    """A workspace of three colours, 60 images each."""
    for name, colour in COLOURS.items():
        for index in range(60):
            draw(tmp_path / "raw" / name / f"{index}.jpeg", colour)
    settings = aux.Settings(root=tmp_path / "work", raw=tmp_path / "raw", image_size=32, weights="random")
    aux.resize_images(settings, aux.scan_images(settings))
    return settings


def test_images_are_ranked_as_by_hand():
    # Thresholds: a (0.9 + 0.6 + 0.3) / 3 = 0.6, b (0.8 + 0.1) / 2 = 0.45. No image has the label c: it has none.
    rows = [("1", "a", 0.9, 0.1, 0.0), ("2", "a", 0.6, 0.4, 0.0), ("3", "a", 0.3, 0.5, 0.2)]
    rows += [("4", "b", 0.2, 0.8, 0.0), ("5", "b", 0.5, 0.1, 0.4)]
    names = ["relpath", "category", "p_a", "p_b", "p_c"]
    found = rank_labels(pd.DataFrame(rows, columns=names))
    assert list(found.relpath) == ["5", "3"] and list(found.suggested) == ["a", "b"]
    assert list(found.confident) == [False, True] and np.allclose(found.score, [0.9, 0.7])
    # A class that reaches its threshold goes before a more probable one that does not, here b before a.
    more = pd.DataFrame([("6", "c", 0.54, 0.46, 0.0)], columns=names)
    assert rank_labels(pd.DataFrame(rows, columns=names), more).set_index("relpath").suggested["6"] == "b"


def test_swapped_labels_are_found_and_the_test_set_is_left_alone(separable):
    found = swap_recovery(separable, FAST, 0.05, seed=1)
    assert (found["images"], found["swapped"]) == (162, 8) and found["share found"] >= 0.8
    swapped = separable.model_copy(update={"root": separable.root / "label-swaps" / "0.05-1"})
    issues = aux.read_table(swapped.data / "label-issues.csv")
    assert set(issues.part) <= {"train", "val"} and issues.score.is_monotonic_decreasing
    relabelled = aux.read_table(swapped.data / "relabel.csv").set_index("relpath").category
    hits = issues[issues.relpath.isin(relabelled.index)]
    assert list(hits.category) == list(relabelled[hits.relpath])  # the label that it has now
    assert list(hits.suggested) == [relpath.partition("/")[0] for relpath in hits.relpath]
    figure = aux.plot_gallery(issues, separable.data / "processed", n=2)
    assert f"{issues.category[0]} → {issues.suggested[0]}" in figure.get_label()
    assert not (separable.data / "relabel.csv").exists() and not aux.load_splits(separable).corrections


@pytest.mark.slow
def test_test_images_are_ranked_where_asked_for(separable):
    test = aux.load_splits(separable).test.relpath[0]
    wrong = "red" if not test.startswith("red") else "blue"
    aux.write_table(pd.DataFrame({"relpath": [test], "category": [wrong]}), separable.data / "relabel.csv")
    issues = aux.label_issues(separable, FAST, folds=3, test=True)
    row = issues.set_index("relpath").loc[test]
    assert (row.part, row.category, row.suggested) == ("test", wrong, test.partition("/")[0])
    assert test not in set(aux.label_issues(separable, FAST, folds=3).relpath)


def test_the_inspected_images_of_animals10_are_those_of_its_reference():
    images, files = inspected_images(), reference_files().reset_index()
    known = images.merge(files, on=["class", "file"], suffixes=("", "_reference"))
    assert len(known) == len(images) >= 100 and list(known.part) == list(known.part_reference)
    english = dict(zip(ITALIAN, ENGLISH, strict=True))
    assert list(images.category) == list(images["class"].map(english)) and set(images.decision) <= set(DECISIONS)
    wrong = images.decision == "wrong label"
    assert images.decided[wrong].isin(ENGLISH).all() and images.decided[~wrong].isna().all()
    assert (images.decided[wrong] != images.category[wrong]).all() and images["rank"].is_monotonic_increasing


def test_the_data_card_holds_what_the_command_prints(capsys):
    print_inspection_counts()
    printed = capsys.readouterr().out
    card = (REPOSITORY / "data" / "animals10.md").read_text(encoding="utf-8")
    assert printed.strip() in card
    first = inspection_counts(inspected_images()).loc["first 100"]
    assert re.search(rf"Of the first 100 images, {first['wrong label']:.0f} have a wrong label", card)
    notebook = (REPOSITORY / "03-transfer-learning.ipynb").read_text(encoding="utf-8")
    words = f"{first['wrong label']:.0f} have a wrong label, and {first['no such animal']:.0f} show none"
    assert f"Of the first 100 of Animals-10, {words} of the ten animals" in notebook


def test_decisions_become_corrections(prepared):
    files = reference_files().reset_index().drop(columns="part").merge(inspected_images(), on=["class", "file"])
    learned, tested = files[files.part != "test"], files[files.part == "test"]
    wrong, none = (learned[learned.decision == name].head(2) for name in DECISIONS[:2])
    chosen = pd.concat([wrong, none, tested[tested.decision == "wrong label"].head(1)])
    overview = aux.read_table(prepared.data / "processed-overview.csv")
    overview.loc[:4, "sha256"] = chosen.sha256.to_numpy()
    aux.write_table(overview, prepared.data / "processed-overview.csv")
    correct_animals10(prepared)
    relabelled, excluded = (aux.read_table(prepared.data / name) for name in ("relabel.csv", "exclude.csv"))
    assert list(relabelled.relpath) == list(overview.relpath[:2]) and list(relabelled.category) == list(wrong.decided)
    assert list(excluded.relpath) == list(overview.relpath[2:4])
    with pytest.raises(aux.UserError, match=r"exclude.csv is there already: move it away"):
        correct_animals10(prepared)
    for name in ("relabel.csv", "exclude.csv"):
        (prepared.data / name).unlink()
    correct_animals10(prepared, test=True)
    assert overview.relpath[4] in set(aux.read_table(prepared.data / "relabel.csv").relpath)
    aux.write_table(overview.assign(sha256="x"), prepared.data / "processed-overview.csv")
    with pytest.raises(aux.UserError, match="holds none of the inspected images of Animals-10"):
        correct_animals10(prepared)
