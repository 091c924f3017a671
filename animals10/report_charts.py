"""Charts of the report page, as Vega-Lite specifications whose data the page puts in."""

from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

import altair as alt

# Okabe and Ito's colours, which can be told apart with any colour vision; shapes say the same once more.
BLUE, ORANGE = "#0072B2", "#D55E00"
FROM_SCRATCH = "from scratch"
LOOKS = {FROM_SCRATCH: (BLUE, "circle"), "MobileNetV2": (ORANGE, "square"), "ResNet50V2": ("#009E73", "triangle-up")}
LOOKS |= {"EfficientNetV2S": ("#CC79A7", "diamond")}
OTHER_COLOURS = ("#E69F00", "#56B4E9", "#888888", "#009E73", "#CC79A7", BLUE, ORANGE)
OTHER_SHAPES = ("cross", "triangle-down", "triangle-right", "stroke", "arrow")
COSTS = {"params": "parameters", "train_seconds": "training time in seconds"}
COSTS |= {"multiply_adds": "multiply-adds per image, in millions", "predict_ms": "latency at batch size 1, in ms"}
INK: Any = "currentColor"  # of the page: light or dark, without drawing anew
ROWS = alt.NamedData("rows")
VEGA_LITE = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]  # as vl-convert names it
CURVES = ("accuracy", "loss")
LEGEND = alt.Legend(orient="top", title=None, columns=2)


def learning_curve(name: str) -> alt.LayerChart:
    """Returns a chart of accuracy or loss by epoch, for training and validation, with the best epoch marked."""
    domain: list[Any] = ["training", "validation"]
    looks: dict[str, list[Any]] = {
        "color": [BLUE, ORANGE],
        "strokeDash": [[1, 0], [5, 3]],
        "shape": ["circle", "square"],
    }
    scales = {channel: alt.Scale(domain=domain, range=values) for channel, values in looks.items()}
    chart = alt.Chart(ROWS).transform_calculate(training=f"datum.{name}", validation=f"datum.val_{name}")
    chart = chart.transform_fold(domain, as_=["part", "value"])
    epoch = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    lines = chart.mark_line(point={"filled": True, "size": 28}).encode(
        x=epoch.scale(zero=False, nice=False, padding=8),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("part:N", legend=LEGEND, scale=scales["color"]),
        strokeDash=alt.StrokeDash("part:N", legend=LEGEND, scale=scales["strokeDash"]),
        shape=alt.Shape("part:N", legend=LEGEND, scale=scales["shape"]),
        tooltip=["part:N", "epoch:Q", alt.Tooltip("value:Q", title=name, format=".3f")],
    )
    best = alt.Chart(ROWS).transform_filter("datum.is_best").mark_rule(color=INK, strokeDash=[2, 3]).encode(x=epoch)
    description = f"training and validation {name} by epoch; a dotted line marks the best epoch"
    return (best + lines).properties(width="container", height=230, description=description)


def curves_of_two(name: str) -> alt.LayerChart:
    """Returns a chart of accuracy or loss by epoch of two runs, one colour each; training is dashed.

    Its rows are those of `learning_curve`, with `run`, a name.
    """
    chart = alt.Chart(ROWS).transform_calculate(training=f"datum.{name}", validation=f"datum.val_{name}")
    chart = chart.transform_fold(["training", "validation"], as_=["part", "value"])
    epoch = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    line: Any = {"orient": "top", "title": None, "symbolType": "stroke", "symbolSize": 300}
    legend, parts = alt.Legend(**line), alt.Legend(symbolStrokeColor=INK, symbolFillColor="transparent", **line)
    run: Any = {"sort": None, "scale": alt.Scale(range=[BLUE, ORANGE]), "legend": legend}
    dash = alt.Scale(domain=["training", "validation"], range=[[5, 3], [1, 0]])
    lines = chart.mark_line(point={"filled": True, "size": 22}).encode(
        x=epoch.scale(zero=False, nice=False, padding=8),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("run:N", **run),
        strokeDash=alt.StrokeDash("part:N", legend=parts, scale=dash),
        tooltip=["run:N", "part:N", "epoch:Q", alt.Tooltip("value:Q", title=name, format=".3f")],
    )
    best = alt.Chart(ROWS).transform_filter("datum.is_best").mark_rule(strokeDash=[2, 3])
    description = f"training and validation {name} by epoch of both runs; dotted lines mark their best epochs"
    layers = best.encode(x=epoch, color=alt.Color("run:N", **run)) + lines
    return layers.properties(width="container", height=230, description=description)


def confusion_chart() -> alt.LayerChart:
    """Returns a chart of a confusion matrix: numbers of test images; opacity is the share of the true class."""
    grid: dict[str, Any] = {"grid": True, "tickBand": "extent"}
    chart = alt.Chart(ROWS).encode(
        x=alt.X("predicted:N", title="predicted", axis=alt.Axis(labelAngle=-90, labelLimit=110, **grid)),
        y=alt.Y("truth:N", title="true", axis=alt.Axis(labelLimit=90, **grid)),
        tooltip=["truth:N", "predicted:N", "count:Q", alt.Tooltip("share:Q", title="of the true class", format=".1%")],
    )
    # Opacity instead of a colour scale: it fits a light and a dark page.
    share = alt.FillOpacity("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0, 1]))
    cells = chart.mark_rect(fill=BLUE).encode(fillOpacity=share)
    counts = chart.mark_text(fontSize=11).transform_filter("datum.count > 0")
    counts = counts.encode(
        text="count:Q", color=alt.condition("datum.share > 0.85", alt.value("white"), alt.value(INK))
    )
    description = "confusion matrix: true classes in rows, predicted classes in columns, numbers of test images"
    return (cells + counts).properties(description=description)


def _kinds() -> dict[str, Any]:
    """Returns colour, line and shape of the kinds of probabilities; the first is as trained."""
    legend = alt.Legend(orient="top", title=None, symbolType="stroke", symbolSize=300, labelLimit=300)
    return {
        "color": alt.Color("kind:N", sort=None, legend=legend, scale=alt.Scale(range=[ORANGE, BLUE])),
        "strokeDash": alt.StrokeDash("kind:N", sort=None, legend=None, scale=alt.Scale(range=[[5, 3], [1, 0]])),
        "shape": alt.Shape("kind:N", sort=None, legend=None, scale=alt.Scale(range=["square", "circle"])),
    }


def reliability_chart() -> alt.LayerChart:
    """Returns a reliability diagram: accuracy, with its 95 % interval, and number of images by bins of confidence."""
    share = alt.Scale(domain=[0, 1])
    chart = alt.Chart(ROWS).encode(x=alt.X("confidence:Q", title="confidence", scale=share))
    hints = [alt.Tooltip("kind:N", title="probabilities"), alt.Tooltip("n:Q", title="images", format=",")]
    hints += [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("confidence", "accuracy", "low", "high")]
    y = alt.Y("accuracy:Q", title="accuracy", scale=share)
    points = chart.mark_line(point={"filled": True, "size": 40}).encode(y=y, tooltip=hints, **_kinds())
    spans = chart.mark_rule(color=INK, opacity=0.3, aria=False)
    spans = spans.encode(y=alt.Y("low:Q", title="accuracy", scale=share), y2="high:Q")
    ends: Any = {"x": alt.datum(0), "y": alt.datum(0), "x2": alt.datum(1), "y2": alt.datum(1)}
    once = alt.Chart(ROWS).transform_window(row="row_number()").transform_filter("datum.row == 1")
    diagonal = once.mark_rule(color=INK, strokeDash=[2, 3], aria=False).encode(**ends)
    counts = chart.transform_filter("datum.kind == 'as trained'").mark_text(fontSize=10, dy=-4, baseline="bottom")
    counts = counts.encode(y=alt.datum(0), text=alt.Text("n:Q", format=","), color=alt.value(INK))
    description = "reliability diagram: accuracy by confidence; the diagonal is right, numbers are those of test images"
    return (diagonal + spans + points + counts).properties(width="container", height=230, description=description)


def coverage_chart() -> alt.Chart:
    """Returns a chart of the accuracy of accepted images against their share, over all thresholds."""
    hints = [alt.Tooltip("kind:N", title="probabilities")]
    hints += [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("threshold", "coverage", "accuracy")]
    chart = alt.Chart(ROWS).mark_line(point={"filled": True, "size": 22})
    chart = chart.encode(
        x=alt.X("coverage:Q", title="coverage", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(zero=False)),
        tooltip=hints,
        **_kinds(),
    )
    description = "accuracy of the test images whose confidence reaches a threshold, against their share (coverage)"
    return chart.properties(width="container", height=230, description=description)


def at_least_a_decade(values: Sequence[float]) -> list[float]:
    """Returns the limits of a logarithmic scale, a factor of ten apart or more: equal costs must not look different."""
    low, high = min(values), max(values)
    middle = (low * high) ** 0.5
    return [min(low, middle / 10**0.5), max(high, middle * 10**0.5)]


def looks_of(backbones: Sequence[str]) -> list[tuple[str, str]]:
    """Returns a colour and a shape for each backbone; no two are equal, for up to 35 backbones that have none here."""
    others = cycle((colour, shape) for shape, colour in product(OTHER_SHAPES, OTHER_COLOURS))
    return [LOOKS.get(backbone) or next(others) for backbone in backbones]


def position(backbone: str) -> tuple[int, str]:
    """Returns a key that sorts backbones for a legend: those of the original study first."""
    return ([*LOOKS].index(backbone) if backbone in LOOKS else len(LOOKS), backbone)


def cost_chart(name: str, backbones: Sequence[str], limits: list[float] | None = None) -> alt.LayerChart:
    """Returns a chart of test accuracy, with its 95 % interval, against a cost.

    A line and rings mark the Pareto front of each setting, within which runs can be compared: training times only on
    the same device.

    Args:
        name: The cost, of `COSTS`.
        backbones: All that occur, in the order of the legend.
        limits: Values that the axis of the cost includes.
    """
    chart = alt.Chart(ROWS).transform_filter(f"isValid(datum.{name}) && datum.{name} > 0")
    domain = {"domain": {"unionWith": limits}} if limits else {}
    x = alt.X(f"{name}:Q", title=COSTS[name], scale=alt.Scale(type="log", nice=False, padding=14, **domain))
    x = x.axis(format="~s" if name == "params" else "~g", tickCount=5, labelOverlap=True)
    y = alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(zero=False), axis=alt.Axis(format=".2f"))
    looks = looks_of(backbones)
    colours = alt.Scale(domain=list(backbones), range=[colour for colour, _ in looks])
    shapes = alt.Scale(domain=list(backbones), range=[shape for _, shape in looks])
    hints = [alt.Tooltip(f"{field}:N", title=field) for field in ("run", "backbone", "setting", "device")]
    hints += [alt.Tooltip(f"{field}:Q", format=".3f") for field in ("accuracy", "low", "high")]
    hints += [alt.Tooltip(f"{name}:Q", title=COSTS[name], format=",")]
    spans = chart.mark_rule(opacity=0.3, color=INK, aria=False).encode(
        x=x, y=alt.Y("low:Q", title="test accuracy"), y2="high:Q"
    )
    points = chart.mark_point(filled=True, size=70, opacity=0.95, cursor="pointer").encode(
        x=x,
        y=y,
        color=alt.Color("backbone:N", scale=colours, legend=LEGEND),
        shape=alt.Shape("backbone:N", scale=shapes, legend=LEGEND),
        href="href:N",
        tooltip=hints,
    )
    # A run is on the front if it beats all that cost less or the same: if it raises the best accuracy so far.
    groups = ["setting"] + ["device"] * (name == "train_seconds")
    sort = [alt.SortField(name), alt.SortField("accuracy", order="descending")]
    order: dict[str, Any] = {"groupby": groups, "sort": sort, "ignorePeers": True, "frame": [None, 0]}
    front = chart.transform_window(best="max(accuracy)", **order)
    front = front.transform_window(before="lag(best)", **order)
    front = front.transform_filter("!isValid(datum.before) || datum.accuracy > datum.before")
    steps = front.mark_line(interpolate="step-after", strokeWidth=1.2, color=INK, opacity=0.7, aria=False)
    legend = alt.Legend(orient="bottom", title=None, columns=1, labelLimit=400, labelFontSize=11)
    fronts = alt.StrokeDash("setting:N", legend=legend)
    rings = front.mark_point(size=190, color=INK, strokeWidth=1.4, filled=False, aria=False).encode(x=x, y=y)
    description = f"test accuracy against {COSTS[name]}; the runs of the table above, with their Pareto front"
    layers = spans + steps.encode(x=x, y=y, strokeDash=fronts, detail=[f"{one}:N" for one in groups]) + rings + points
    return layers.properties(width="container", height=300, description=description)
