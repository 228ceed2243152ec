"""Metrics as plotly figures, and the component that draws them and keeps zoom and hidden curves while points arrive."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.runs import Metrics

# Paul Tol's "bright" and "muted" schemes, ordered so that neighbours differ for colour-blind eyes too, on white and on black.
PALETTE = ("#4477AA", "#D9641E", "#228833", "#AA3377", "#2593B8", "#96851B", "#CC3311", "#6A4C93")
_DARK = ("#77AADD", "#EE8866", "#66BB77", "#DD77AA", "#66CCEE", "#DDCC66", "#FF7766", "#B39DDB")
_EVALUATION = ("#1B3F6B", "#A8480F", "#0F5A1D", "#70194B", "#1F8FB8", "#8A7B12", "#8A1F08", "#3F2766")
_EVALUATION_DARK = ("#A9C6E8", "#FFC29B", "#93D49B", "#E39AC4", "#BFEBFA", "#EDE29B", "#FFA08C", "#D5C8EE")

_MOST_POINTS = 1500
_MOST_WRITTEN = 12
"""Rows of a matrix up to which its cells have room for their numbers."""
_LONGEST_TICK = 24

Figure = dict[str, Any]


def colour(run_id: str) -> str:
    """The run's colour, the same on every page and every day."""
    return PALETTE[_place(run_id)]


def _place(run_id: str) -> int:
    return zlib.crc32(run_id.encode()) % len(PALETTE)


def smooth(values: Sequence[float | None], span: float | None = None) -> list[float | None]:
    """An exponential mean without the pull of its start (as in Adam): gaps stay gaps and do not count.

    Args:
        span: the number of steps that it looks back on; by default a twentieth of them.
    """
    span = span or max(3.0, len(values) / 20)
    keep = 1 - 2 / (span + 1)
    total, weight = 0.0, 0.0
    smoothed: list[float | None] = []
    for value in values:
        if value is None:
            smoothed.append(None)
            continue
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight)
    return smoothed


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[float | None]:
    """The numbers of one name; what is no finite number is a gap."""
    values = (row.get(name) for row in rows)
    return [
        value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
        for value in values
    ]


def _thin(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """At most so many rows as a chart has pixels, the last always among them."""
    stride = math.ceil(len(rows) / _MOST_POINTS)
    return rows if stride <= 1 else [*rows[:-1:stride], rows[-1]]


def loss_figure(metrics: Metrics, run_id: str, names: dict[str, str]) -> Figure:
    """Training loss, raw and smoothed, and evaluation loss in one figure.

    Args:
        names: what its curves and axes are called: raw, smoothed, evaluation, step, loss.
    """
    place = _place(run_id)
    steps = _thin(metrics.steps)
    x = _column(steps, "step")
    raw = _column(steps, "loss")
    even = {
        row["step"]: value for row, value in zip(metrics.steps, smooth(_column(metrics.steps, "loss")), strict=True)
    }
    evals = _thin(metrics.evals)
    show_points = "lines+markers" if len(steps) < 3 else "lines"
    traces = [
        {"x": x, "y": raw, "atelier_dark": _DARK[place], "name": names["raw"], "mode": show_points, "line": {"color": PALETTE[place], "width": 1}, "opacity": 0.5, "hoverinfo": "skip"},
        {"x": x, "y": [even[row["step"]] for row in steps], "name": names["smoothed"], "mode": "lines", "line": {"color": PALETTE[place], "width": 3}, "atelier_dark": _DARK[place]},
        {
            "x": _column(evals, "step"), "y": _column(evals, "eval_loss"), "name": names["evaluation"], "mode": "lines+markers",
            "line": {"color": _EVALUATION[place], "width": 1.5, "dash": "dot"}, "marker": {"color": _EVALUATION[place], "size": 9, "symbol": "diamond"},
            "atelier_dark": _EVALUATION_DARK[place],
        },
    ]  # fmt: skip
    for trace in traces:
        # The mark of step 0 stands on the axis and is drawn whole.
        trace |= {"type": "scatter", "hovertemplate": "%{y:.4g}", "connectgaps": False, "cliponaxis": False}
    return {
        "data": traces,
        "title": "",
        "x": names["step"],
        "y": names["loss"],
        "key": f"{run_id}-loss",
        "tall": True,
        "legend": True,
    }


def small_figure(metrics: Metrics, run_id: str, column: str, title: str, step: str) -> Figure:
    """One column over the steps, small."""
    rows = _thin(metrics.steps)
    trace = {
        "type": "scatter", "x": _column(rows, "step"), "y": _column(rows, column), "mode": "lines" if len(rows) > 2 else "lines+markers",
        "line": {"color": colour(run_id), "width": 1.5}, "name": title, "hovertemplate": "%{y:.4g}", "atelier_dark": _DARK[_place(run_id)],
    }  # fmt: skip
    return {
        "data": [trace],
        "title": title,
        "x": step,
        "y": "",
        "key": f"{run_id}-{column}",
        "tall": False,
        "legend": False,
    }


def score_figure(metrics: Metrics, run_id: str, names: dict[str, str], step: str) -> Figure:
    """What evaluations score beside the loss, small: one curve for each column of `names`, from 0 to 100.

    Its title names the curves with their marks: so small a figure has no room for a legend.
    """
    rows = [row for row in _thin(metrics.evals) if any(row.get(column) is not None for column in names)]
    place = _place(run_id)
    looks = [
        (PALETTE[place], _DARK[place], "solid", "circle"),
        (_EVALUATION[place], _EVALUATION_DARK[place], "dot", "diamond"),
    ]
    traces = []
    for number, (column, name) in enumerate(names.items()):
        light, dark, dash, symbol = looks[number % len(looks)]
        values = [value if value is None else value * score_scale(column) for value in _column(rows, column)]
        traces.append(
            {
                "type": "scatter", "x": _column(rows, "step"), "y": values, "mode": "lines+markers", "name": name, "atelier_dark": dark,
                "line": {"color": light, "width": 1.5, "dash": dash}, "marker": {"color": light, "size": 6, "symbol": symbol},
                "hovertemplate": "%{y:.1f}", "cliponaxis": False,
            }
        )  # fmt: skip
    return {
        "data": traces,
        "title": "",
        "x": step,
        "y": "",
        "key": f"{run_id}-scores",
        "tall": False,
        "legend": False,
        "named": True,
    }


def score_scale(column: str) -> float:
    """What makes a score one of 0 to 100: BLEU is published so, all others are shares."""
    return 1.0 if column == "eval_bleu" else 100.0


def matrix_figure(
    rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], key: str, names: dict[str, str]
) -> Figure:
    """Counts by what is true (rows) and what was said (columns); a cell's depth is its share of its row.

    Args:
        names: what it and its axes are called: title, true, said.
    """
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    trace = {
        "type": "heatmap", "x": list(range(len(columns))), "y": list(range(len(rows))), "z": shares, "zmin": 0, "zmax": 1, "showscale": False,
        "text": [[str(count) for count in row] for row in counts], "xgap": 1, "ygap": 1,
        "texttemplate": "%{text}" if len(rows) <= _MOST_WRITTEN else "",
        "customdata": [[f"{escape(row)} → {escape(column)}" for column in columns] for row in rows],
        "hovertemplate": "%{customdata}: %{text}<extra></extra>",
    }  # fmt: skip
    return {
        "data": [trace], "title": names["title"], "x": names["said"], "y": names["true"], "key": key, "tall": True, "legend": False,
        "rows": [_tick(row) for row in rows], "columns": [_tick(column) for column in columns],
    }  # fmt: skip


def length_figure(histogram: dict[str, list[int]], limit: int, names: dict[str, str]) -> Figure:
    """How many rows have which length in tokens, with the longest row that is read drawn in.

    Args:
        histogram: `edges`, one more than `counts`.
        limit: the longest row; what is beyond it is cut.
        names: what its axes and the mark are called: rows, length, limit.
    """
    edges, counts = histogram["edges"], histogram["counts"]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    spans = [f"{low:,}–{max(low, high - 1):,}" for low, high in itertools.pairwise(edges)]
    bars = {
        "type": "bar", "x": middles, "y": counts, "width": edges[1] - edges[0], "name": names["rows"], "customdata": spans,
        "marker": {"color": [PALETTE[0] if low < limit else PALETTE[1] for low in edges[:-1]], "line": {"width": 0}},
        "hovertemplate": "%{customdata}: %{y:,}<extra></extra>",
    }  # fmt: skip
    mark = {
        "type": "scatter", "x": [limit, limit], "y": [0, max(counts)], "mode": "lines", "name": names["limit"],
        "line": {"color": PALETTE[6], "width": 2, "dash": "dash"}, "atelier_dark": _DARK[6], "hovertemplate": "%{x:,}",
    }  # fmt: skip
    # A mark far beyond all rows would press them together.
    traces = [bars, mark] if limit <= 1.5 * edges[-1] else [bars]
    return {
        "data": traces, "title": "", "x": names["length"], "y": names["rows"], "key": f"lengths-{limit}", "tall": True,
        "legend": len(traces) > 1,
    }  # fmt: skip


def _tick(label: str) -> str:
    return escape(label if len(label) <= _LONGEST_TICK else label[: _LONGEST_TICK - 1] + "…")


def overlay_figure(runs: Sequence[tuple[str, str, Metrics]], step: str, loss: str) -> Figure:
    """The smoothed losses of several runs (id, name, metrics), each in its own colour."""
    traces = []
    for run_id, name, metrics in runs:
        rows = _thin(metrics.steps)
        values = smooth(_column(rows, "loss"))
        traces.append(
            {
                "type": "scatter",
                "x": _column(rows, "step"),
                "y": values,
                "name": escape(name),
                "mode": "lines",
                "line": {"color": colour(run_id), "width": 2.5},
                "hovertemplate": "%{y:.4g}",
                "atelier_dark": _DARK[_place(run_id)],
            }
        )
    return {
        "data": traces,
        "title": "",
        "x": step,
        "y": loss,
        "key": "overlay-" + "-".join(run_id for run_id, _, _ in runs),
        "tall": True,
        "legend": True,
    }


def escape(text: str) -> str:
    """Plotly reads a few HTML tags in names; a name shall stand there as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# Only the numbers come from Python; colours of text and lines are read from the page, so that one figure suits light and dark.
_DRAW = """
const host = element.querySelector('.charts');
const plain = matchMedia('(prefers-reduced-motion: reduce)');
const theme = () => {
  const style = getComputedStyle(document.body);
  const read = (name) => style.getPropertyValue(name).trim();
  return {text: read('--body-text-color-subdued'), grid: read('--border-color-primary'), paper: read('--background-fill-primary'),
    fill: read('--quiet-fill'), accent: read(document.body.classList.contains('dark') ? '--primary-500' : '--accent')};
};
const named = (figure) => figure.data.map((one) => `<span style="color:${colour(one)}">${one.marker.symbol === 'diamond' ? '◆' : '●'}</span> ${one.name}`).join('   ');
const colour = (one) => document.body.classList.contains('dark') && one.atelier_dark || one.line.color;
const layout = (figure, colours) => ({
  uirevision: figure.key, autosize: true, height: figure.tall ? 340 : 170,
  margin: figure.tall ? {l: 52, r: 12, t: 12, b: 44} : {l: 52, r: 8, t: 30, b: 28},
  paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
  font: {family: 'system-ui, sans-serif', size: 12, color: colours.text},
  title: figure.tall ? undefined : {text: figure.named ? named(figure) : figure.title, font: {size: 13}, x: 0, xanchor: 'left', y: 0.97},
  xaxis: {title: figure.tall ? {text: figure.x} : undefined, gridcolor: colours.grid, zeroline: false, rangemode: 'tozero', nticks: figure.tall ? 10 : 5},
  yaxis: {title: figure.y ? {text: figure.y} : undefined, gridcolor: colours.grid, zeroline: false, exponentformat: figure.tall ? 'none' : 'SI', nticks: figure.tall ? 8 : 4, ticklabelstandoff: 6},
  showlegend: figure.legend, legend: {orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom'},
  hovermode: 'x unified', hoverlabel: {bgcolor: colours.paper, font: {color: colours.text}}, dragmode: 'zoom',
});
// A matrix has names on both axes, a row as high as it has room for, and the colours of the page.
const matrix = (figure, colours) => {
  const most = Math.max(...figure.rows.map((name) => name.length)), step = Math.ceil(figure.rows.length / 40);
  const ticks = (names) => ({tickvals: names.map((_, at) => at).filter((at) => at % step === 0), ticktext: names.filter((_, at) => at % step === 0),
    showgrid: false, zeroline: false, automargin: true, fixedrange: true, ticks: '', ticklabelstandoff: 6});
  return {...layout(figure, colours),
    height: Math.min(720, Math.max(240, 130 + figure.rows.length * 34 + most * 3)), margin: {l: 60, r: 12, t: 40, b: 60},
    title: {text: figure.title, font: {size: 13}, x: 0, xanchor: 'left', y: 1, yanchor: 'top', pad: {t: 10}},
    xaxis: {...ticks(figure.columns), title: {text: figure.x, standoff: 10}, tickangle: figure.columns.length > 4 ? -45 : 0},
    yaxis: {...ticks(figure.rows), title: {text: figure.y, standoff: 10}, autorange: 'reversed'},
    hovermode: 'closest', dragmode: false};
};
const trace = (one, dark, colours) => one.type === 'heatmap' ? {...one, colorscale: [[0, colours.fill], [1, colours.accent]]} : dark && one.atelier_dark
  ? {...one, line: {...one.line, color: one.atelier_dark}, marker: {...one.marker, color: one.atelier_dark}} : one;
const draw = () => {
  const figures = (props.value && props.value.figures) || [];
  if (!window.Plotly) { setTimeout(draw, 150); return; }
  while (host.children.length > figures.length) { Plotly.purge(host.lastChild); host.lastChild.remove(); }
  while (host.children.length < figures.length) host.appendChild(document.createElement('div'));
  const colours = theme(), dark = document.body.classList.contains('dark');
  figures.forEach((figure, place) => {
    const node = host.children[place];
    // Not className: Plotly knows its own nodes by a class, and begins anew where it is gone.
    node.classList.add('chart'); node.classList.toggle('tall', figure.tall);
    node.style.maxWidth = figure.rows ? `${220 + 130 * figure.columns.length}px` : '';
    Plotly.react(node, figure.data.map((one) => trace(one, dark, colours)), (figure.rows ? matrix : layout)(figure, colours), {displaylogo: false, responsive: true, displayModeBar: figure.tall && !figure.rows ? 'hover' : false, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']});
  });
};
watch('value', draw);
new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']});
new ResizeObserver(() => { for (const node of host.children) if (node.data && node.offsetWidth) Plotly.Plots.resize(node); }).observe(host);
draw();
"""


def component(label: str, *, kind: str = "") -> gr.HTML:
    """Where figures are drawn; its value is ``{"figures": [...]}``. `kind` is small, or matrix, which takes no room while empty."""
    return gr.HTML(
        {"figures": []},
        html_template=f'<div class="charts {kind}" role="img" aria-label="{label}"></div>',
        js_on_load=_DRAW,
        label=label,
        elem_classes=["chart-box"],
    )
