"""The reference for Animals-10: the same groups and parts for everyone, also where files are missing."""

import pandas as pd
import pytest
from PIL import Image

import auxiliary as aux
from animals10 import reference
from animals10.dataset import ANIMALS10_SIZE, ITALIAN
from animals10.files import file_sha256


def test_the_reference_lists_every_file_once_and_groups_stay_in_one_part():
    files = reference.reference_files()
    assert len(files) == ANIMALS10_SIZE and files.index.is_unique and set(files["class"]) == set(ITALIAN)
    assert set(files.part) == {"train", "val", "test"} and files.groupby("group").part.nunique().max() == 1
    shares = files.part.value_counts(normalize=True)
    assert shares.train == pytest.approx(0.7, abs=0.01) and shares.test == pytest.approx(0.1, abs=0.005)
    by_class = pd.crosstab(files["class"], files.part, normalize="index")
    assert by_class.test.between(0.08, 0.115).all()


@pytest.fixture
def as_animals10(prepared, tmp_path, monkeypatch):
    """Lets the images of a workspace count as Animals-10; two of them are a group."""
    overview = aux.read_table(prepared.data / "processed-overview.csv")
    files = overview[["category", "name", "sha256"]].set_axis(["class", "file", "sha256"], axis=1)
    files = files.sample(frac=1, random_state=1).assign(group="", part="train")
    files.loc[files.groupby("class").head(3).index, "part"] = "val"
    files.loc[files.groupby("class").head(1).index, "part"] = "test"
    files.loc[files.index[files.part == "train"][:2], "group"] = "1"
    path = tmp_path / "files.csv.gz"
    files.to_csv(path, index=False)
    monkeypatch.setattr(reference, "REFERENCE_FILES", path)
    reference.reference_files.cache_clear()
    yield files
    reference.reference_files.cache_clear()


def parts_of(splits):
    return {row.sha256: part for part in ("train", "val", "test") for row in getattr(splits, part).itertuples()}


def test_every_machine_gets_the_same_part_for_a_file(prepared, as_animals10, tmp_path, draw):
    expected = dict(zip(as_animals10.sha256, as_animals10.part, strict=True))
    assert parts_of(aux.load_splits(prepared)) == expected
    # Another machine with another seed, where files are missing.
    raw = tmp_path / "other raw"
    for number, path in enumerate(sorted(prepared.raw.glob("*/*"))):
        if number % 2 or expected[file_sha256(path)] != "train":
            (raw / path.parent.name).mkdir(parents=True, exist_ok=True)
            (raw / path.parent.name / path.name).write_bytes(path.read_bytes())
    other = prepared.model_copy(update={"root": tmp_path / "other", "raw": raw, "seed": 6})
    aux.resize_images(other, aux.scan_images(other))
    found = parts_of(aux.load_splits(other))
    assert len(found) < len(expected) and all(expected[sha256] == part for sha256, part in found.items())


def test_an_unknown_copy_follows_the_known_file(prepared, as_animals10, monkeypatch):
    """The copy comes first by name, so that it names the group."""
    known = as_animals10[as_animals10.part == "test"].iloc[0]
    source = next(path for path in sorted(prepared.raw.glob("*/*")) if file_sha256(path) == known.sha256)
    copy = source.with_name(f"0 {source.stem}.png")
    Image.open(source).save(copy)
    monkeypatch.setattr(reference, "MIN_KNOWN", 0.9)
    aux.resize_images(prepared, aux.scan_images(prepared))
    splits = aux.load_splits(prepared)
    assert {file_sha256(copy), known.sha256} <= set(splits.test.sha256)


def test_known_groups_count_and_unknown_files_are_named(prepared, as_animals10, capsys):
    checks = aux.check_images(prepared)
    pair = checks[checks.sha256.isin(as_animals10.sha256[as_animals10.group == "1"])]
    assert len(pair) == 2 and pair.group.nunique() == 1 and checks.group.nunique() == len(checks) - 1
    assert "are those of data/" in capsys.readouterr().out
    overview = aux.read_table(prepared.data / "overview.csv")
    overview.loc[0, "sha256"] = "unknown"
    assert aux.compare_with_reference(overview).empty  # one of 50 is more than 1 %
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "MIN_KNOWN", 0.9)
        table = aux.compare_with_reference(overview)
    assert table.loc["unknown", "present"] == 1 and table.missing.sum() == 1


def test_a_split_of_another_kind_is_not_used_silently(prepared):
    aux.load_splits(prepared)
    with pytest.raises(aux.UserError, match=r"The split .* is 'grouped', but ANIMALS10_SPLIT is 'published'"):
        aux.load_splits(prepared.model_copy(update={"split": "published"}))
