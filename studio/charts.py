"""Metrics as plotly figures, and the component that draws them and keeps zoom and hidden curves while points arrive."""

from __future__ import annotations

import html
import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
import orjson

from core.runs import Metrics, column

# Paul Tol's "bright" and "muted" schemes, ordered so that neighbours differ for colour-blind eyes too, on white and on black.
PALETTE = ("#4477AA", "#D9641E", "#228833", "#AA3377", "#2593B8", "#96851B", "#CC3311", "#6A4C93")
_DARK = ("#77AADD", "#EE8866", "#66BB77", "#DD77AA", "#66CCEE", "#DDCC66", "#FF7766", "#B39DDB")
_EVALUATION = ("#1B3F6B", "#A8480F", "#0F5A1D", "#70194B", "#1F8FB8", "#8A7B12", "#8A1F08", "#3F2766")
_EVALUATION_DARK = ("#A9C6E8", "#FFC29B", "#93D49B", "#E39AC4", "#BFEBFA", "#EDE29B", "#FFA08C", "#D5C8EE")

_BUCKETS = 400
_SMALL_BUCKETS = 90
"""Parts into which a curve falls; two or three points of each are drawn, about as many as it has pixels."""
_SPARK_WIDTH, _SPARK_HEIGHT = 96, 26
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
    return _listed(_smooth(np.array(values, dtype=float), span))


def _smooth(values: np.ndarray, span: float | None = None) -> np.ndarray:
    """`smooth` on float64 with NaN for gaps, a block of steps at a time."""
    there = np.flatnonzero(np.isfinite(values))
    smoothed = np.full(len(values), np.nan)
    if not len(there):
        return smoothed
    keep = 1 - 2 / (max(1.0, span or max(3.0, len(values) / 20)) + 1)
    if keep <= 0:
        smoothed[there] = values[there]
        return smoothed
    # Inside a block the mean is a sum of powers, all blocks at once; powers of more than a million would lose digits.
    size = max(1, min(len(there), int(math.log(1e6) / -math.log(keep))))
    blocks = -(-len(there) // size)
    some = np.zeros(blocks * size)
    some[: len(there)] = values[there]
    powers = keep ** np.arange(size)
    totals = np.cumsum((1 - keep) * some.reshape(blocks, size) / powers, axis=1) * powers
    carried, carry = np.zeros(blocks), 0.0
    for block, last in enumerate(totals[:, -1].tolist()):
        carried[block] = carry
        carry = carry * keep**size + last
    totals += carried[:, None] * powers * keep
    smoothed[there] = totals.ravel()[: len(there)] / (1 - keep ** np.arange(1, len(there) + 1))
    return smoothed


def extremes(values: np.ndarray, buckets: int) -> np.ndarray:
    """Places (int, rising) that keep the look of a curve: of each bucket the least and the greatest value and the first gap.

    A spike of one step among 200,000 is still there; the first and the last place always are.
    """
    size = -(-len(values) // buckets)
    if size <= 2:
        return np.arange(len(values))
    whole = -(-len(values) // size)
    padded = np.full(whole * size, np.nan)
    padded[: len(values)] = values
    grid = padded.reshape(whole, size)
    gaps = np.isnan(grid)
    begins = np.arange(whole) * size
    least = np.where(gaps, np.inf, grid).argmin(axis=1) + begins
    greatest = np.where(gaps, -np.inf, grid).argmax(axis=1) + begins
    gap = gaps.argmax(axis=1) + begins
    gap = gap[gaps.any(axis=1) & (gap < len(values))]
    return np.unique(np.concatenate([[0], least, greatest, gap, [len(values) - 1]]))


def _listed(values: np.ndarray, digits: int = 0) -> list[float | None]:
    """An array as JSON takes it: whole numbers whole, gaps None; at most so many digits that mean something."""
    listed = values.tolist()
    if digits:
        listed = [value if value != value else float(f"{value:.{digits}g}") for value in listed]
    return [None if value != value else int(value) if value == int(value) else value for value in listed]


def spark(values: Sequence[float | None] | np.ndarray, points: int = 40) -> list[float]:
    """A curve in so few points that it is drawn a finger wide: the mean of each of its parts, gaps left out."""
    some = np.array(values, dtype=float)
    some = some[np.isfinite(some)]
    if len(some) > points:
        edges = np.linspace(0, len(some), points + 1).astype(int)
        some = np.add.reduceat(some, edges[:-1]) / np.diff(edges)
    return [float(f"{value:.4g}") for value in some.tolist()]


def sparkline(values: Sequence[float], run_id: str, label: str) -> str:
    """A small curve as inline SVG, in the run's colour; empty for fewer than two points."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (_SPARK_WIDTH - 4) / (len(values) - 1)
    points = " ".join(
        f"{2 + at * step:.1f},{2 + (_SPARK_HEIGHT - 4) * (high - value) / span:.1f}" for at, value in enumerate(values)
    )
    return (
        f"<svg class='spark' viewBox='0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}' width='{_SPARK_WIDTH}' height='{_SPARK_HEIGHT}'"
        f" role='img' aria-label='{html.escape(label, quote=True)}'><polyline points='{points}' fill='none' stroke='{colour(run_id)}'"
        " stroke-width='1.6' stroke-linejoin='round'/></svg>"
    )


def _thin(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of very many evaluations those that keep the look of their loss."""
    return [rows[place] for place in extremes(column(rows, "eval_loss"), _BUCKETS)]


def loss_figure(metrics: Metrics, run_id: str, names: dict[str, str]) -> Figure:
    """Training loss, raw and smoothed, and evaluation loss in one figure.

    Args:
        names: what its curves and axes are called: raw, smoothed, evaluation, step, loss.
    """
    place = _place(run_id)
    losses = column(metrics.steps, "loss")
    shown = extremes(losses, _BUCKETS)
    x = _listed(column(metrics.steps, "step")[shown])
    raw = _listed(losses[shown])
    even = _listed(_smooth(losses)[shown], 5)
    evals = _thin(metrics.evals)
    show_points = "lines+markers" if len(shown) < 3 else "lines"
    traces = [
        {"x": x, "y": raw, "atelier_dark": _DARK[place], "name": names["raw"], "mode": show_points, "line": {"color": PALETTE[place], "width": 1}, "opacity": 0.5, "hoverinfo": "skip"},
        {"x": x, "y": even, "name": names["smoothed"], "mode": "lines", "line": {"color": PALETTE[place], "width": 3}, "atelier_dark": _DARK[place]},
        {
            "x": _listed(column(evals, "step")), "y": _listed(column(evals, "eval_loss")), "name": names["evaluation"], "mode": "lines+markers",
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


def small_figure(metrics: Metrics, run_id: str, name: str, title: str, step: str) -> Figure:
    """One column over the steps, small."""
    values = column(metrics.steps, name)
    shown = extremes(values, _SMALL_BUCKETS)
    trace = {
        "type": "scatter", "x": _listed(column(metrics.steps, "step")[shown]), "y": _listed(values[shown]),
        "mode": "lines" if len(shown) > 2 else "lines+markers",
        "line": {"color": colour(run_id), "width": 1.5}, "name": title, "hovertemplate": "%{y:.4g}", "atelier_dark": _DARK[_place(run_id)],
    }  # fmt: skip
    return {
        "data": [trace],
        "title": title,
        "x": step,
        "y": "",
        "key": f"{run_id}-{name}",
        "tall": False,
        "legend": False,
    }


def score_figure(metrics: Metrics, run_id: str, names: dict[str, str], step: str) -> Figure:
    """What evaluations score beside the loss, small: one curve for each column of `names`, from 0 to 100.

    Its title names the curves with their marks: so small a figure has no room for a legend.
    """
    rows = [row for row in _thin(metrics.evals) if any(row.get(key) is not None for key in names)]
    place = _place(run_id)
    looks = [
        (PALETTE[place], _DARK[place], "solid", "circle"),
        (_EVALUATION[place], _EVALUATION_DARK[place], "dot", "diamond"),
    ]
    traces = []
    for number, (key, name) in enumerate(names.items()):
        light, dark, dash, symbol = looks[number % len(looks)]
        values = _listed(column(rows, key) * score_scale(key), 6)
        traces.append(
            {
                "type": "scatter", "x": _listed(column(rows, "step")), "y": values, "mode": "lines+markers", "name": name, "atelier_dark": dark,
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
        "data": traces, "title": "", "x": names["length"], "y": names["rows"], "key": f"lengths-{limit}", "tall": True, "counts": max(counts) >= 1000,
        "legend": len(traces) > 1,
    }  # fmt: skip


def _tick(label: str) -> str:
    return escape(label if len(label) <= _LONGEST_TICK else label[: _LONGEST_TICK - 1] + "…")


def overlay_figure(
    runs: Sequence[tuple[str, str, Metrics]],
    names: dict[str, str],
    *,
    over: str = "step",
    span: float | None = None,
    logarithmic: bool = False,
) -> Figure:
    """The losses of several runs (id, name, metrics), each in its own colour.

    Args:
        names: what its axes are called: step, tokens, minutes, loss.
        over: step, tokens or minutes.
        span: steps that the smoothing looks back on, in hundredths of the run; 0 for none, None for the usual.
        logarithmic: whether the losses stand on a logarithmic scale.
    """
    traces = []
    for (_, name, metrics), place in zip(runs, places([run_id for run_id, _, _ in runs]), strict=True):
        losses = column(metrics.steps, "loss")
        even = losses if span == 0 else _smooth(losses, None if span is None else max(2.0, len(losses) * span / 100))
        shown = extremes(even, _BUCKETS)
        traces.append(
            {
                "type": "scatter", "x": _listed(_along(metrics, over)[shown], 7), "y": _listed(even[shown], 5), "name": escape(name),
                "mode": "lines" if len(shown) > 2 else "lines+markers", "line": {"color": PALETTE[place], "width": 2.5},
                "hovertemplate": "%{y:.4g}", "atelier_dark": _DARK[place], "connectgaps": False,
            }
        )  # fmt: skip
    return {
        "data": traces, "title": "", "x": names[over], "y": names["loss"], "tall": True, "legend": True, "log": logarithmic,
        "key": "-".join(["overlay", over, str(logarithmic), *(run_id for run_id, _, _ in runs)]),
    }  # fmt: skip


def places(run_ids: Sequence[str]) -> list[int]:
    """Where in the palette each of several runs stands: its own place, or the next that no other of them has taken."""
    taken: list[int] = []
    for run_id in run_ids:
        own = _place(run_id)
        free = ((own + way) % len(PALETTE) for way in range(len(PALETTE)))
        taken.append(next((place for place in free if place not in taken), own))
    return taken


def _along(metrics: Metrics, over: str) -> np.ndarray:
    """Where each step stands: its number, the tokens read so far, or the minutes worked, pauses before a resume left out."""
    if over != "minutes":
        return column(metrics.steps, "tokens" if over == "tokens" else "step")
    times = column(metrics.steps, "time")
    if not len(times):
        return times
    pauses = np.zeros(len(times))
    for event in metrics.events:
        if event.get("event") == "resumed" and isinstance(event.get("time"), int | float):
            at = int(np.searchsorted(times, event["time"]))
            if 0 < at < len(times):
                pauses[at] = max(0.0, event["time"] - times[at - 1])
    return (times - times[0] - np.cumsum(pauses)) / 60


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
// Plotly measures every label, again and again, unless it is told how labels lie and that none is hidden.
const axis = {zeroline: false, ticklabeloverflow: 'allow', tickangle: 0};
const layout = (figure, colours) => ({
  uirevision: figure.key, autosize: true, height: figure.tall ? 340 : 170,
  margin: figure.tall ? {l: 52, r: 12, t: 12, b: 44} : {l: 52, r: 18, t: 30, b: 28},
  paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
  font: {family: 'system-ui, sans-serif', size: 12, color: colours.text},
  title: figure.tall ? undefined : {text: figure.named ? named(figure) : figure.title, font: {size: 13}, x: 0, xanchor: 'left', y: 0.97},
  xaxis: {title: figure.tall ? {text: figure.x} : undefined, gridcolor: colours.grid, ...axis, rangemode: 'tozero', nticks: figure.tall ? Math.max(3, Math.min(10, Math.floor(host.clientWidth / 90))) : 5},
  yaxis: {type: figure.log ? 'log' : undefined, title: figure.y ? {text: figure.y} : undefined, gridcolor: colours.grid, ...axis, exponentformat: figure.tall ? 'none' : 'SI', tickformat: figure.counts ? '~s' : undefined, nticks: figure.tall ? 8 : 4, ticklabelstandoff: 6},
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
// What changes out of sight is drawn when it comes into sight.
const seen = new WeakSet(), late = new Map();
const sight = new IntersectionObserver((changes) => {
  for (const {target, isIntersecting} of changes) {
    seen[isIntersecting ? 'add' : 'delete'](target);
    if (isIntersecting) late.get(target)?.();
  }
}, {rootMargin: '100px'});
const add = () => { const node = document.createElement('div'); host.appendChild(node); sight.observe(node); };
const drop = (node) => { sight.unobserve(node); late.delete(node); Plotly.purge(node); node.remove(); };
addEventListener('beforeprint', () => { for (const show of [...late.values()]) show(); });
let turn = 0, colours;
const draw = () => {
  const figures = JSON.parse(props.value || '{}').figures || [];
  if (!figures.length && !host.children.length) return;
  if (!window.Plotly) { window.atelierPlotly?.(); setTimeout(draw, 150); return; }
  while (host.children.length > figures.length) drop(host.lastChild);
  while (host.children.length < figures.length) add();
  colours ??= theme();
  const dark = document.body.classList.contains('dark');
  const mine = ++turn;
  const next = (place) => {
    for (; mine === turn && place < figures.length; place++) {
      const figure = figures[place], node = host.children[place], is_new = !node.data;
      const show = () => {
        late.delete(node);
        // Not className: Plotly knows its own nodes by a class, and begins anew where it is gone.
        node.classList.add('chart'); node.classList.toggle('tall', figure.tall);
        node.style.maxWidth = figure.rows ? `${220 + 130 * figure.columns.length}px` : '';
        Plotly.react(node, figure.data.map((one) => trace(one, dark, colours)), (figure.rows ? matrix : layout)(figure, colours), {displaylogo: false, responsive: true, displayModeBar: figure.tall && !figure.rows ? 'hover' : false, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']});
      };
      if (!is_new && !seen.has(node)) { late.set(node, show); continue; }
      show();
      // What is drawn for the first time takes long: the page hears a press between two.
      if (is_new) { setTimeout(next, 0, place + 1); return; }
    }
  };
  // Small ones wait until the others are seen.
  if (host.matches('.small')) requestAnimationFrame(() => setTimeout(next, 4, 0)); else next(0);
};
watch('value', draw);
new MutationObserver(() => { colours = undefined; draw(); }).observe(document.body, {attributes: true, attributeFilter: ['class']});
new ResizeObserver(() => { for (const node of host.children) if (node.data && node.offsetWidth) Plotly.Plots.resize(node); }).observe(host);
draw();
"""


def _write(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def component(label: str, *, kind: str = "") -> gr.HTML:
    """Where figures are drawn; its value is ``{"figures": [...]}``. `kind` is small, or matrix, which takes no room while empty."""
    box = gr.HTML(
        _write({"figures": []}),
        html_template=f'<div class="charts {kind}" role="img" aria-label="{label}"></div>',
        js_on_load=_DRAW,
        label=label,
        elem_classes=["chart-box"],
    )
    # Sent as one text: through every number of anything else Gradio looks three times, for files.
    box.postprocess = _write  # type: ignore[method-assign]
    return box
