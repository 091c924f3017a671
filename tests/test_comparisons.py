"""The comparison of precisions over seeds."""

import pandas as pd
import pytest

import auxiliary as aux
from animals10 import comparisons, precision
from animals10.comparisons import compare_precisions, precision_table


def test_differences_are_paired_by_seed():
    rows = [
        {
            "experiment": "a",
            "precision": name,
            "seed": seed,
            "test accuracy": 0.8 + 0.01 * seed - 0.02 * (name == "bfloat16"),
        }
        for seed in (1, 2, 3)
        for name in ("bfloat16", "float32")
    ]
    row = precision_table(pd.DataFrame(rows)).loc[("a", "test accuracy")]
    assert row.to_list() == ["0.82 ± 0.01", "0.8 ± 0.01", "-0.0200 (-0.0200 to -0.0200)"]


@pytest.mark.slow
def test_both_precisions_are_trained_with_each_seed_on_the_same_split(prepared, monkeypatch, capsys):
    for module in (comparisons, precision):
        monkeypatch.setattr(module, "multiplies_in_bfloat16", lambda: True)
    training = aux.Training(1e-3, 2)
    cnn = aux.Experiment("cnn", aux.CNN((4,), (2,), (8,)), training)
    head = aux.Experiment("head", aux.Transfer("MobileNetV2", (8,)), training)
    table = compare_precisions(prepared, [cnn, head], [5, 6])
    runs = aux.stored_runs(prepared.root)
    assert len(runs) == 8 and len({tuple(run.predictions.relpath) for run in runs}) == 1
    losses = [run.history.val_loss.min() for run in runs if run.model_id == "cnn" and "bfloat16" in run.row["device"]]
    mean = float(table.loc[("cnn (learning rate 0.001, 2 epochs)", "validation loss"), "bfloat16"].split()[0])
    assert mean == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert "MobileNetV2: pooled features of" in capsys.readouterr().out
    with pytest.raises(aux.UserError, match="1 seeds: give two"):
        compare_precisions(prepared, [cnn], [5])
