"""The map of test images in the report page: its points, and its chart."""

from typing import Any

import altair as alt
import pandas as pd

from animals10.embeddings import MAP, EmbeddingMap
from animals10.files import UserError, display_path, read_json
from animals10.report_charts import INK, ROWS
from animals10.settings import Settings

_TOOLTIP = {"relpath": "image", "category": "label", "predicted": "predicted"}


def map_section(settings: Settings) -> dict[str, Any] | None:
    """Returns what the page needs to draw the map that `plot_embeddings` has stored; None if there is none.

    Returns:
        `run` (its id), `backbone`, `sample` (which points were left out, in words), `n` and `errors`
        (numbers of points), `columns` (the points, column by column: classes are positions in `classes`) and `chart`.

    Raises:
        UserError: The file is damaged.
    """
    path, advice = settings.data / MAP, "delete it, or run `plot_embeddings` again"
    if not path.exists():
        return None
    try:
        stored = read_json(path, advice)
        points = pd.DataFrame(stored["points"])
        found = EmbeddingMap(**stored | {"points": points})
        classes = sorted({*points.category, *points.predicted})
        columns = {name: points[name].tolist() for name in ("relpath", "x", "y")}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"{display_path(path)} is damaged ({type(error).__name__}): {advice}.") from None
    columns |= {name: points[name].map(classes.index).tolist() for name in ("category", "predicted")}
    return {
        "run": found.run.rsplit("-", 2)[0],  # its id
        "backbone": found.backbone,
        "sample": found.sample,
        "n": len(points),
        "errors": int((points.category != points.predicted).sum()),
        "columns": columns | {"classes": classes},
        "chart": _chart(found.axes, classes).to_dict(),
    }


def _chart(axes: list[str], classes: list[str]) -> alt.LayerChart:
    """Returns a scatter plot of images, coloured by class, with a ring around each misclassified one."""
    scheme: Any = "tableau10" if len(classes) <= 10 else "tableau20"
    legend = alt.Legend(orient="top", title=None, columns=5, symbolOpacity=1)
    scale, bare = alt.Scale(zero=False), alt.Axis(labels=False, ticks=False, grid=False)
    x, y = alt.X("x:Q", title=axes[0], scale=scale, axis=bare), alt.Y("y:Q", title=axes[1], scale=scale, axis=bare)
    colour = alt.Color("category:N", scale=alt.Scale(domain=classes, scheme=scheme), legend=legend)
    hints = [alt.Tooltip(f"{name}:N", title=title) for name, title in _TOOLTIP.items()]
    chart = alt.Chart(ROWS).encode(x=x, y=y, tooltip=hints)
    points = chart.mark_circle(size=22, opacity=0.6).encode(color=colour)
    wrong = chart.transform_filter("datum.category !== datum.predicted")
    rings = wrong.mark_point(size=70, color=INK, strokeWidth=1.4, filled=False)
    description = "test images on the first two principal components of their features; rings mark misclassified ones"
    return (points + rings).properties(width="container", height=460, description=description)
