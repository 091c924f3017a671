import dataclasses

import pandas as pd
import pytest

import auxiliary as aux
from scripts import readme_table, verify

PUBLISHED = aux.read_table(aux.PUBLISHED)


def test_the_published_runs_are_all_there():
    assert PUBLISHED.image_size.value_counts().to_dict() == {224: 42, 200: 22}
    runs = PUBLISHED.query("image_size == 224")
    assert runs.notebook.value_counts().to_dict() == {"02": 27, "03": 15}
    assert runs.loc[runs.accuracy.idxmax(), ["model_id", "accuracy"]].tolist() == ["effnet2S_small_finetune", 0.976699]
    planned = aux.storage.planned_runs(aux.NOTEBOOKS)
    assert planned[0][0] == runs.model_id.iloc[0] and len(set(planned)) == len(planned)
    others = set(planned) - set(runs[list(aux.storage.RUN_KEY)].itertuples(index=False, name=None))
    assert len(planned) - len(others) == 42
    ours = {f"{backbone}_best{part}" for backbone in ("mobnet2", "resnet2", "effnet2S") for part in ("", "_head")}
    assert {model_id for model_id, *_ in others} == {"mobnet2_dense256_finetune25", *ours}


def cells(values: str, number) -> tuple:
    return tuple(0.0 if value == "-" else number(value) for value in values.split())


@pytest.mark.parametrize("row", PUBLISHED.query("image_size == 224").itertuples(), ids=lambda row: str(row.Index))
def test_parameters_of_each_published_run(row):
    dense, rates = cells(row.dense_units, int), cells(row.dropout, float) if pd.notna(row.dropout) else ()
    if row.notebook == "02":
        architecture = aux.CNN(cells(row.filters, int), cells(row.pool_sizes, int), dense, rates)
    else:
        architecture = aux.Transfer(row.backbone, dense, rates or (0.0,) * len(dense))
    model = architecture.build(10)
    assert model.count_params() == row.params
    frozen_head = row.notebook == "02" or row.unfreeze_last == 0 or row.model_id == "mobnet2_dense256_finetune"
    if frozen_head:
        assert aux.count(model.trainable_weights) == row.trainable_params
    elif row.model_id == "effnet2S_small_finetune":
        dataclasses.replace(architecture, unfreeze_last=30, freeze_batch_norm=False).set_trainable(model)
        assert aux.count(model.trainable_weights) == row.trainable_params
    else:
        assert pd.isna(row.trainable_params)


def add(settings, dataset="animals10", weights="none", **values):
    row = dict.fromkeys(aux.RESULT_COLUMNS, 1) | {"dataset": dataset, "weights": weights, "image_size": 224} | values
    aux.append_row(settings.results, row, aux.RESULT_COLUMNS)


def test_published_and_measured_are_joined_run_by_run(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    assert set(aux.published_table(settings).verdict) == {"not measured"}  # before the first run
    cnn = {"model_id": "conv4invto128_dense1", "learning_rate": 5e-4, "epochs": 80, "accuracy_high": 0.75}
    add(settings, **cnn, run_id="a", time="2026-01-01", accuracy=0.5, accuracy_low=0.4)
    add(settings, **cnn, run_id="b", time="2026-01-02", accuracy=0.72, accuracy_low=0.70)
    add(settings, **cnn | {"epochs": 35}, run_id="c", time="2026-01-01", accuracy=0.72, accuracy_low=0.70)
    mini = {"model_id": "mobnet2_dense256", "learning_rate": 5e-4, "epochs": 13, "accuracy": 0.9, "time": "2026-01-01"}
    add(settings, **mini, run_id="d", repetition=2, dataset="mini")
    add(settings, **mini, run_id="e", weights="random")
    table = aux.published_table(settings)
    assert len(table) == 42
    found = table[table.run_id.notna()].set_index("run_id")
    verdicts = ["outside the interval", "inside the interval", "not judged: random weights"]
    assert found.verdict.to_dict() == dict(zip("cbed", [*verdicts, "not judged: measured on mini"], strict=True))
    assert found.difference["b"] == pytest.approx(0.72 - 0.710847) and found.accuracy["c"] == 0.678762
    assert set(table.verdict[table.run_id.isna()]) == {"not measured"}
    assert len(aux.published_table(settings.model_copy(update={"image_size": 200}))) == 22


def test_readme_shows_what_the_tables_hold():
    text = readme_table.README.read_text(encoding="utf-8")
    assert readme_table.insert(text) == text, "run `make readme`"
    # Drawn elsewhere, a line may lie a hair's breadth off: the picture names the figures that it was drawn from.
    picture = readme_table.PICTURE.read_text(encoding="utf-8")
    assert readme_table.drawn_from(picture) == readme_table.figures_of(readme_table.joined()), "run `make readme`"
    assert str(readme_table.PICTURE.relative_to(aux.REPOSITORY)) in text


def test_layers_as_latex():
    model = aux.CNN((8,), (2,), (16,)).build(3, 32)
    latex = aux.layer_table(model).assign(layer="50_%&").to_latex(index=False, escape=True)
    assert r"\toprule" in latex and r"50\_\%\& & Conv2D & 30 × 30 × 8 & 224 \\" in latex


def test_reports_stand_side_by_side(prepared):
    runs = [aux.train(prepared, name, aux.CNN((4,), (4,), (8,)), learning_rate=1e-3, epochs=1) for name in "ab"]
    table = aux.reports(*runs, aux.Run("absent", why="not yet."))
    assert table.columns.get_level_values(0).unique().tolist() == ["a, 1 epochs", "b, 1 epochs", "pictures"]
    assert table.pictures[["blue", "green", "red"]].sum() == 5 and aux.reports().empty
    assert table["a, 1 epochs"].recall["weighted avg"] == pytest.approx(runs[0].record["row"]["recall"])


def stored_run(settings, name, right):
    """Writes a run on 20 test pictures; `right` are the positions of those that it gets right."""
    folder = settings.root / "models" / f"{name}-{name}"
    table = pd.DataFrame({"relpath": [f"{index}.jpg" for index in range(20)], "category": "a", "predicted": "b"})
    table.loc[list(right), "predicted"] = "a"
    aux.write_table(table, folder / "predictions.csv")
    add(settings, model_id=name, run_id=name, accuracy=len(right) / 20, data_sha256="same", time=name)
    return aux.Run(name, folder)


def test_paired_comparison_and_the_standing_of_runs(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    best = stored_run(settings, "best", range(18))
    near = stored_run(settings, "near", range(3, 20))
    far = stored_run(settings, "far", range(8))
    # 3 against 2: by the binomial distribution both tails hold everything; 10 against 0: 2 / 2**10
    assert aux.compare_runs(best, near) == {"only_first": 3, "only_second": 2, "p_value": 1.0}
    assert aux.compare_runs(far, best) == {"only_first": 0, "only_second": 10, "p_value": pytest.approx(2 / 2**10)}
    assert aux.compare_runs(best, best)["p_value"] == 1
    add(settings, model_id="gone", run_id="gone", accuracy=1.0, data_sha256="same", time="gone")
    table = aux.results_table(settings).set_index("model_id")
    assert table.standing.to_dict() == {"gone": "", "best": "best", "near": "not worse", "far": ""}
    aux.write_table(best.predictions.head(10), best.file("predictions.csv"))
    with pytest.raises(aux.StudyError, match="different pictures"):
        aux.compare_runs(best, near)


def test_a_stored_run_is_verified(prepared):
    run = aux.train(prepared, "small", aux.CNN((4,), (4,), (8,)), learning_rate=1e-3, epochs=1)
    assert verify.problems(prepared, run, aux.results_table(prepared)) == []
    table = aux.results_table(prepared)
    assert "accuracy is 2" in verify.problems(prepared, run, table.assign(accuracy=2))[0]
    assert "0 times" in verify.problems(prepared, run, table.head(0))[0]
    other = aux.train(prepared, "other", aux.CNN((4,), (4,), (8,)), learning_rate=1e-3, epochs=1, repetition=2)
    other.file("model.keras").replace(run.file("model.keras"))
    assert verify.problems(prepared, run, table) == ["model.keras is not the file that was stored"]
