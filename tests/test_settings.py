import importlib.util

import kagglehub
import pytest

import auxiliary as aux
from scripts.download import download


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PROFILE", "tiny", "'full' or 'sample'"),
        ("IMAGE_SIZE", "big", "integer"),
        ("IMAGE_SIZE", "5", "32"),
        ("MAX_EPOCHS", "0", "1"),
        ("FORCE", "maybe", "boolean"),
        ("SPLIT", "random", "'grouped' or 'published'"),
        ("WEIGHTS", "/no/such/folder", "imagenet, random or an existing folder"),
        ("ONLY", "mobnet2_smal", "mobnet2_small"),
        ("EPOCHS", "3", "not permitted"),
    ],
)
def test_a_senseless_value_is_one_line_with_name_value_and_what_is_allowed(name, value, allowed):
    with pytest.raises(aux.StudyError) as error:
        aux.Settings.from_environment({"ANIMALS10_PROFILE": "full", f"ANIMALS10_{name}": value})
    message = str(error.value)
    assert f"ANIMALS10_{name}" in message and value in message and allowed in message and "\n" not in message


def test_without_photographs_the_sample_is_used_and_said(capsys, tmp_path):
    settings = aux.Settings.from_environment({"ANIMALS10_ROOT": str(tmp_path)})
    assert (settings.profile, settings.weights, settings.raw, settings.root) == (
        "sample",
        "random",
        aux.SAMPLE,
        tmp_path,
    )
    assert "sample profile" in capsys.readouterr().out


def test_a_raw_folder_that_was_named_never_falls_back_to_the_sample(tmp_path):
    settings = aux.Settings.from_environment({"ANIMALS10_RAW": str(tmp_path / "none"), "ANIMALS10_ONLY": ""})
    assert settings.profile == "full" and settings.weights == "imagenet" and settings.only == ()
    with pytest.raises(aux.StudyError, match="There is no folder"):
        aux.scan_photographs(settings)


def test_photographs_in_the_workspace_are_found(draw, tmp_path):
    draw(tmp_path / "data" / "raw-img" / "cane" / "a.jpg")
    assert aux.Settings.from_environment({"ANIMALS10_ROOT": str(tmp_path)}).profile == "full"


def test_ids_are_read_from_the_notebooks():
    settings = aux.Settings.from_environment(
        {"ANIMALS10_PROFILE": "sample", "ANIMALS10_ONLY": "resnet2_small, mobnet2_small"}
    )
    assert settings.only == ("resnet2_small", "mobnet2_small")
    assert {"base_meansamp_augment+", "effnet2S_small"} <= set(aux.model_ids())


def test_tensorboard_is_optional_and_its_absence_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not aux.Settings.from_environment({"ANIMALS10_PROFILE": "full"}).tensorboard
    with pytest.raises(aux.StudyError, match=r"ANIMALS10_TENSORBOARD is '1': .* `make extras`"):
        aux.Settings.from_environment({"ANIMALS10_PROFILE": "full", "ANIMALS10_TENSORBOARD": "1"})


def test_without_network_the_download_says_how_to_place_the_data(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    raw = tmp_path / "data" / "raw-img"
    with pytest.raises(
        aux.StudyError, match=rf"no route to host.*By hand: fetch https://www.kaggle.com.*{raw}"
    ) as error:
        download(aux.Settings(root=tmp_path, raw=raw))
    assert "\n" not in str(error.value)
