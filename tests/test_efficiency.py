import dataclasses
import json
import math

import keras
import pytest

import auxiliary as aux
from animals10.efficiency import measure_all, multiply_adds
from animals10.runs import EFFICIENCY


def test_multiply_adds_as_counted_by_hand():
    # The baseline: 222² positions of 128 filters of 3 × 3 × 3, pooled by 3 to 74²; 72² positions of 32 filters of
    # 3 × 3 × 128, pooled by 2 to 36²; 36 · 36 · 32 values to 128 units; 128 to 10 classes.
    convolutions = 222**2 * 128 * 27 + 72**2 * 32 * 9 * 128
    expected = convolutions + 36 * 36 * 32 * 128 + 128 * 10
    baseline = aux.CNN((128, 32), (3, 2)).build(10)
    assert multiply_adds(baseline) == expected == 366_738_176
    # As published: 300 million (M. Sandler et al., table 4), including the head of ImageNet's 1,000 classes.
    head = 1280 * 128 + 128 * 10
    mobile = multiply_adds(aux.Transfer("MobileNetV2").build(10)) - head + 1280 * 1000
    assert mobile == pytest.approx(300e6, rel=0.01)


def test_multiply_adds_of_other_networks():
    inputs, inner = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    separable = keras.Model(inner, keras.layers.SeparableConv2D(5, 3)(inner))  # 6² positions, 3 × 3 × 3 and 3 × 5
    x = keras.layers.Dense(2)(keras.layers.Flatten()(separable(inputs)))
    assert multiply_adds(keras.Model(inputs, x)) == 6**2 * (27 + 15) + 6**2 * 5 * 2
    attention = keras.layers.MultiHeadAttention(1, 2)(x[:, None], x[:, None])
    assert math.isnan(multiply_adds(keras.Model(inputs, attention)))  # unknown, rather than too small


def test_all_stored_runs_are_measured(prepared, capsys):
    with pytest.raises(aux.UserError, match="There are no runs in"):
        measure_all(prepared)
    run = aux.train(prepared, aux.Experiment("tiny", aux.CNN((4,), (2,), (8,)), aux.Training(1e-2, epochs=0)))
    capsys.readouterr()
    measure_all(prepared, rounds=2)
    found = json.loads(run.file("efficiency.json").read_text())
    assert tuple(found)[:4] == EFFICIENCY and found["device"] and min(run.efficiency.values()) > 0
    assert found["model_mb"] == pytest.approx(run.file("model.keras").stat().st_size / 1e6, abs=1e-3)
    # 30² positions of 4 filters of 27; 15 · 15 · 4 values to 8 units; 8 to 3 classes
    assert found["multiply_adds"] == pytest.approx((30**2 * 4 * 27 + 900 * 8 + 24) / 1e6, abs=1e-3)
    assert not list(run.path.glob(".*")) and capsys.readouterr().out.splitlines()[1].startswith("tiny ")


def test_a_run_that_cannot_be_measured_does_not_keep_the_others(prepared, capsys):
    tiny = aux.Experiment("tiny", aux.CNN((4,), (2,), (8,)), aux.Training(1e-2, epochs=0))
    runs = aux.train_all(prepared, [tiny, dataclasses.replace(tiny, repetition=2)])
    runs[0].file("model.keras").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(aux.UserError, match=r"1 of 2 runs could not be measured\. .*pointer of Git LFS"):
        measure_all(prepared, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert not runs[0].efficiency and runs[1].efficiency
    assert [line.split("  ")[0] for line in lines[-3:-1]][1] == "tiny, repetition 2"
