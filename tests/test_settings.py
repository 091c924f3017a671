import importlib.util
from pathlib import Path

import kagglehub
import pytest

from animals10.catalogue import CATALOGUE
from animals10.dataset import download
from animals10.files import REPOSITORY, UserError
from animals10.preprocessing import scan_images
from animals10.settings import SAMPLE, TOUR, Settings


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PROFILE", "tiny", "'full' or 'sample'"),
        ("IMAGE_SIZE", "big", "integer"),
        ("IMAGE_SIZE", "5", "32"),
        ("MAX_EPOCHS", "0", "1"),
        ("FORCE", "maybe", "boolean"),
        ("SPLIT", "random", "'grouped' or 'published'"),
        ("FEATURE_CACHE", "float64", "'float16', 'float32' or 'off'"),
        ("TABLE_COLUMNS", "file", "two or three names"),
        ("TABLE_COLUMNS", "a,,c", "two or three names"),
        ("WEIGHTS", "/no/such/folder", "imagenet, random or an existing folder"),
        ("EPOCHS", "3", "not permitted"),
        ("STORE", "off", "not permitted"),
    ],
)
def test_an_invalid_value_is_one_line_with_name_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(UserError) as error:
        Settings.from_environment({"ANIMALS10_PROFILE": "full", f"ANIMALS10_{name}": value})
    message = str(error.value)
    assert f"ANIMALS10_{name}" in message and value in message and allowed in message and "\n" not in message


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """A machine where Keras has downloaded nothing yet; the tests have no network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


def test_without_images_the_sample_is_used_with_a_message(capsys, tmp_path, no_weights):
    settings = Settings.from_environment({"ANIMALS10_ROOT": str(tmp_path)})
    assert (settings.profile, settings.weights, settings.raw, settings.root) == ("sample", "random", SAMPLE, tmp_path)
    printed = capsys.readouterr().out
    assert "sample profile" in printed and printed.count("\n") == 3
    assert "There are no ImageNet weights (Connection refused)" in printed and "mean nothing" in printed


def test_the_sample_trains_the_tour_or_everything_for_one_epoch(capsys, tmp_path, no_weights):
    sample = {"ANIMALS10_PROFILE": "sample"}
    tour = Settings.from_environment(sample | {"ANIMALS10_WEIGHTS": "random"})
    assert tour.only == TOUR and tour.is_tour and tour.max_epochs > 20
    assert sorted(one.id for one in CATALOGUE if one.id in TOUR) == sorted(TOUR)  # each once
    assert {one.init_from.id for one in CATALOGUE if one.id in TOUR and one.init_from} <= set(TOUR)
    everything = Settings.from_environment(sample | {"ANIMALS10_ALL": "1"})
    assert (everything.only, everything.is_tour, everything.max_epochs, everything.weights) == ((), False, 1, "random")
    two = Settings.from_environment(sample | {"ANIMALS10_ONLY": "a b", "ANIMALS10_WEIGHTS": "random"})
    assert two.only == ("a", "b") and not two.is_tour and two.left_out_by == "ANIMALS10_ONLY"
    assert not capsys.readouterr().out  # no network was tried


def test_what_a_notebook_sets_holds_where_the_environment_is_silent(tmp_path, draw, monkeypatch):
    draw(tmp_path / "images" / "cat" / "a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    cell = {"root": "build/mine", "raw": "~/images", "image_size": 96, "only": "a, b", "weights": None}
    settings = Settings.from_environment({}, **cell)
    assert settings.root == REPOSITORY / "build" / "mine"  # wherever the notebook lies
    assert (settings.raw, settings.profile, settings.only) == (tmp_path / "images", "full", ("a", "b"))
    assert (settings.image_size, settings.weights) == (96, "imagenet")
    environment = {"ANIMALS10_IMAGE_SIZE": "64", "ANIMALS10_ONLY": "c", "ANIMALS10_ROOT": str(tmp_path)}
    settings = Settings.from_environment(environment, **cell)
    assert (settings.image_size, settings.only, settings.root) == (64, ("c",), tmp_path)
    with pytest.raises(UserError, match="ANIMALS10_IMAGE_SIZE is 'big'"):
        Settings.from_environment({}, raw=tmp_path, image_size="big")


def test_a_workspace_that_notebook_01_has_prepared_is_not_replaced_by_the_sample(prepared, capsys):
    settings = Settings.from_environment({"ANIMALS10_ROOT": str(prepared.root)})
    assert settings.profile == "full" and not capsys.readouterr().out


def test_a_raw_folder_that_was_named_never_falls_back_to_the_sample(tmp_path):
    settings = Settings.from_environment({"ANIMALS10_RAW": str(tmp_path / "none"), "ANIMALS10_ONLY": ""})
    assert settings.profile == "full" and settings.weights == "imagenet" and settings.only == ()
    with pytest.raises(UserError, match="There is no folder"):
        scan_images(settings)


def test_images_in_the_workspace_are_found(draw, tmp_path):
    draw(tmp_path / "data" / "raw-img" / "cane" / "a.jpg")
    assert Settings.from_environment({"ANIMALS10_ROOT": str(tmp_path)}).profile == "full"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with images in `~/work` and a folder of weights."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "work" / "data" / "raw-img" / "cat").mkdir(parents=True)
    (tmp_path / "work" / "data" / "raw-img" / "cat" / "a.jpg").touch()
    (tmp_path / "weights").mkdir()
    return tmp_path


def test_a_tilde_is_the_home_folder_wherever_a_path_comes_from(home, capsys):
    environment = {"ANIMALS10_ROOT": "~/work", "ANIMALS10_WEIGHTS": "~/weights"}
    settings = Settings.from_environment(environment)
    assert settings.profile == "full" and not capsys.readouterr().out  # not the sample in place of the person's images
    assert (settings.root, settings.raw) == (home / "work", home / "work" / "data" / "raw-img")
    assert settings.weights == str(home / "weights")
    assert Settings.from_environment({"ANIMALS10_RAW": "~/images"}).raw == home / "images"
    changed = settings.model_copy(update={"raw": "~/other", "root": Path("~"), "only": "a, b"})
    assert (changed.raw, changed.root, changed.only, changed.split) == (home / "other", home, ("a", "b"), "grouped")


def test_a_tilde_that_is_no_home_folder_is_one_clear_line(home, monkeypatch):
    for name in ("ROOT", "RAW", "WEIGHTS"):
        with pytest.raises(UserError, match=rf"^ANIMALS10_{name} is '~nobody-7/x': there is no home folder ~nobody-7"):
            Settings.from_environment({f"ANIMALS10_{name}": "~nobody-7/x"})
    monkeypatch.chdir(home)
    assert Settings(root="./~nobody-7").root == home / "~nobody-7"


def test_settings_made_in_python_are_checked_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^ANIMALS10_IMAGE_SIZE is 5: .*32"):
        Settings(root=tmp_path, image_size=5)
    with pytest.raises(UserError, match=r"^ANIMALS10_SEED is -1: "):
        Settings(root=tmp_path).model_copy(update={"seed": -1})
    with pytest.raises(UserError, match=r"^ANIMALS10_GPUS_PER_RUN is 1.5: allowed is a whole number, or a part of"):
        Settings(root=tmp_path, gpus_per_run=1.5)
    with pytest.raises(UserError, match=r"^ANIMALS10_CLUSTER is 'ray': .*'local' or 'auto'"):
        Settings(root=tmp_path, cluster="ray")
    with pytest.raises(UserError, match=r"^ANIMALS10_ROOT is missing"):
        Settings(raw=tmp_path)


def test_every_setting_is_an_environment_variable(tmp_path):
    values = {"ROOT": tmp_path, "RAW": tmp_path, "IMAGE_SIZE": 96, "WEIGHTS": tmp_path, "MAX_EPOCHS": 2, "FORCE": 1}
    values |= {"SPLIT": "published", "SEED": 7, "FEATURE_CACHE": "off", "VIEWS": 2, "DETERMINISTIC": "yes"}
    values |= {"PROFILE": "full", "TABLE_COLUMNS": "file,label,", "ONLY": "a", "TENSORBOARD": "no", "PUBLISH": "1"}
    values |= {"ALL": "0", "PRECISION": "auto", "CLUSTER": "", "CPUS_PER_RUN": 3, "GPUS_PER_RUN": 0.5}
    values |= {"RESIZE": "crop"}
    assert {name.lower() for name in values} == set(Settings.model_fields)
    settings = Settings.from_environment({f"ANIMALS10_{name}": str(value) for name, value in values.items()})
    assert (settings.image_size, settings.max_epochs, settings.seed, settings.views) == (96, 2, 7, 2)
    assert (settings.force, settings.deterministic, settings.tensorboard, settings.publish) == (True, True, False, True)
    assert settings.table_columns == ("file", "label")
    assert (settings.cluster, settings.cpus_per_run, settings.gpus_per_run) == ("", 3, 0.5)
    assert (settings.feature_cache, settings.split, settings.weights) == ("off", "published", str(tmp_path))
    assert settings.precision == "auto"
    assert settings.data == tmp_path / "data" and settings.models == tmp_path / "models"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("resnet2_small, mobnet2_small", ("resnet2_small", "mobnet2_small")),
        (",a b,,c+ ,", ("a", "b", "c+")),
        ("a,", ("a",)),
        (",", ()),
        ('"my head, 2" b,"c"', ("my head, 2", "b", "c")),
        ('5" disc', ('5"', "disc")),
    ],
)
def test_ids_are_separated_by_commas_and_blanks(text, ids):
    assert Settings.from_environment({"ANIMALS10_PROFILE": "full", "ANIMALS10_ONLY": text}).only == ids


def test_tensorboard_is_optional_and_its_absence_is_reported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not Settings.from_environment({"ANIMALS10_PROFILE": "full"}).tensorboard
    with pytest.raises(UserError, match=r"ANIMALS10_TENSORBOARD is '1': .* `make extras`"):
        Settings.from_environment({"ANIMALS10_PROFILE": "full", "ANIMALS10_TENSORBOARD": "1"})


def test_without_network_the_download_tells_how_to_place_the_data(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError(f"{long} no route to host\nand much more")

    long = "HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded with url: " + "x" * 200

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    raw = tmp_path / "data" / "raw-img"
    message = rf"no route to host\)\. By hand: fetch https://www.kaggle.com.*{raw}\. .* RAW=folder\.$"
    with pytest.raises(UserError, match=message) as error:
        download(Settings(root=tmp_path, raw=raw))
    assert "\n" not in str(error.value)


def test_a_download_never_writes_into_a_folder_that_is_in_use(tmp_path, draw, capsys):
    draw(tmp_path / "data" / "raw-img" / "stray.jpg")
    with pytest.raises(UserError, match="a download needs an empty data/raw-img"):
        download(Settings(root=tmp_path, raw=tmp_path / "data" / "raw-img"))
    with pytest.raises(UserError, match="has no images in class folders"):
        download(Settings(root=tmp_path, raw=tmp_path / "elsewhere"))
    (tmp_path / "labels.csv").touch()
    for raw in (SAMPLE, tmp_path / "labels.csv"):
        download(Settings(root=tmp_path, raw=raw))
    assert "Nothing to download" in capsys.readouterr().out


def test_a_download_that_succeeds_is_moved_into_place(tmp_path, monkeypatch, draw):
    def fetch(name, output_dir):
        assert name == "alessiocorrado99/animals10"
        draw(tmp_path / "data" / ".download" / "nested" / "raw-img" / "cane" / "a.jpg")

    monkeypatch.setattr(kagglehub, "dataset_download", fetch)
    download(Settings(root=tmp_path, raw=tmp_path / "data" / "raw-img"))
    assert [path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.jpg")] == [
        "raw-img/cane/a.jpg"
    ]
    assert not (tmp_path / "data" / ".download").exists()
