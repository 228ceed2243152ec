"""Measures how long the Runs page takes with 500 runs and with one of 200,000 steps, and what open pages cost a training.

    python tests/bench/charts.py
    python tests/bench/charts.py --browser 30 --rounds 3
    python tests/bench/charts.py --pages 30 --rounds 3

The first form writes real run folders into a temporary home and times the functions behind the page, each in a process of
its own and as often as --rounds says; printed are the medians. The second opens a real studio with the same runs in a real
browser: printed is what passes between a click and its picture, in so many rounds, and between the arrival of new steps of
the long run and their picture, so many times. The third opens a real studio, trains the playground in it and lets so many
sessions poll it as the page's script does, and none, in turn; printed is the speed of the training.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

_SETTLE = 25.0
_CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
).split()
# Of each drawing of a chart: when it began, and when the frame after it stood.
_WATCH = """
let plotly;
window.began = []; window.drawn = [];
Object.defineProperty(window, 'Plotly', {get: () => plotly, set: (value) => {
  plotly = value;
  const react = value.react;
  value.react = (...given) => {
    began.push(performance.now());
    const done = react(...given);
    done.then(() => requestAnimationFrame(() => {
      const behind = new MessageChannel();  // what it carries comes right behind the frame, before what waits its turn
      behind.port1.onmessage = () => drawn.push(performance.now());
      behind.port2.postMessage(0);
    }));
    return done;
  };
}});
window.stands = (run) => {
  const charts = [...document.querySelectorAll('#runs-detail .chart')];
  return began.length === drawn.length && charts.length === 5 && charts.every((one) => one.layout?.uirevision.startsWith(run));
};
"""
_CLICK = """async ([target, ready]) => {
  const began = performance.now(), is_ready = new Function(`return ${ready}`);
  document.querySelector(target).click();
  while (!is_ready()) await new Promise(requestAnimationFrame);
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
}"""
# The page clears its list of requests before each update, and what answered it is the last that ended before the drawing began.
_TOOK = """() => {
  const told = performance.getEntriesByType('resource').filter((one) => one.name.includes('/run/predict') && one.responseEnd <= began.at(-1)).at(-1);
  return [told.responseEnd - told.startTime, Math.min(...drawn) - told.responseEnd, Math.max(...drawn) - told.responseEnd];
}"""


def write_run(name: str, steps: int, seed: int = 0, *, ended: bool = True) -> str:
    """A run's folder as a worker leaves it, with so many steps; its id."""
    from core import runs
    from core.config import Config

    draw = random.Random(seed)
    run = runs.create(Config.read({"name": name, "train": {"max_steps": steps, "epochs": draw.randint(1, 9)}}))
    with (run.folder / "metrics.jsonl").open("w") as file:
        file.write(json.dumps({"event": "started", "step": 0, "steps": steps, "rows": 400, "time": 1.7e9}) + "\n")
        for step in range(1, steps + 1):
            file.write(json.dumps(line(step, steps, draw)) + "\n")
            if step % max(1, steps // 10) == 0:
                loss = round(1.5 + 3 / (1 + step / 50), 6)
                file.write(json.dumps({"step": step, "eval_loss": loss, "time": 1.7e9 + step}) + "\n")
    if ended:
        run.finish("completed", step=steps, steps=steps, seconds=float(steps))
    return run.id


def line(step: int, steps: int, draw: random.Random) -> dict[str, float]:
    """What a worker writes of a step."""
    return {
        "step": step, "steps": steps, "epoch": round(step / 100, 6), "loss": round(1.4 + 3 / (1 + step / 50) + draw.gauss(0, 0.1), 6),
        "learning_rate": 0.000198765, "grad_norm": round(draw.random(), 6), "tokens": step * 512, "tokens_per_second": 5123.45,
        "memory_gb": 0.734567, "eta_s": float(steps - step), "time": round(1.7e9 + step * 0.37, 2),
    }  # fmt: skip


def draw_alone(tab: object) -> object:
    """The class of a tab in a window of its own."""
    import gradio as gr

    from studio.clock import Clock
    from studio.language import Language
    from studio.launcher import Launcher
    from studio.tabs import Page

    with gr.Blocks() as blocks:
        states = {
            "run": gr.BrowserState(""),
            "form": gr.BrowserState(None),
            "data": gr.State(None),
            "config": gr.State(None),
        }
        page = Page(words=Language("en"), blocks=blocks, tabs=gr.Tabs(), clock=Clock(), launcher=Launcher(), **states)
        return tab(page)  # type: ignore[operator]


def measure_page(long_id: str) -> dict[str, tuple[float, float]]:
    """Milliseconds by the clock, and of a core, of each thing that a page asks for, in this process, which has looked at nothing yet."""
    from core.runs import find_id
    from studio import metrics
    from studio.overview import overview
    from studio.tabs.runs import _Runs

    tab, took = draw_alone(_Runs), {}

    def timed(name: str, act: object) -> object:
        began, worked = time.perf_counter(), time.process_time()
        answer = act()  # type: ignore[operator]
        json.dumps([value for value in answer.values() if isinstance(value, str | dict | list)], default=str)
        took[name] = (time.perf_counter() - began) * 1000, (time.process_time() - worked) * 1000
        return answer

    opened = timed("open the table", lambda: tab._open("", {}, {}, [], ""))
    timed("read the rest, in a thread", lambda: overview.read_all() or {})
    time.sleep(3)  # what was changed a moment ago is looked at more closely
    opened = tab._open("", {}, {}, [], "")
    seen = opened[tab.seen]
    time.sleep(1)
    timed("look again, nothing new", lambda: _dict(tab._refresh("", seen, {}, [], "")))
    timed("search", lambda: _dict(tab._refresh("", seen, {}, [], "run 7")))
    timed("sort by loss", lambda: _dict(tab._refresh("", seen, {"sort": "loss"}, [], "")))
    run = find_id(long_id)

    def panel() -> dict[object, object]:
        return tab.panel.refresh(long_id, "")

    assert timed("open the run of 200,000 steps", panel)[tab.panel.chart]["figures"], "it could not be drawn"
    timed("and its place in the table", lambda: tab._open(long_id, {}, {}, [], ""))
    for round in range(5):
        add_steps(run, 200_000 + round * 5)
        overview.look(now=True)
        timed(f"update it {round}", panel)
    took["update it"] = sorted(took.pop(f"update it {round}") for round in range(5))[2]
    metrics._readers.clear()
    timed("open it when nobody has read it", panel)
    ids = [one.id for one in overview.look()[:7]]
    timed("lay it over 7 others", lambda: tab._refresh("", seen, {}, [long_id, *ids], "", "minutes", 5, True))
    return took


def _dict(answer: dict) -> dict:
    return {} if answer.get("__type__") else answer


@contextlib.contextmanager
def many_runs() -> Iterator[str]:
    """A home with 499 runs that have ended and one of 200,000 steps that has not, whose id it is."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["ATELIER_HOME"] = home
        for number in range(499):
            write_run(f"run {number}", 200, number)
        time.sleep(1)  # of runs of one second the names say which is the newer
        yield write_run("long", 200_000, ended=False)


@contextlib.contextmanager
def open_studio() -> Iterator[tuple[str, int]]:
    """The address and the process of a real studio in that home, while it is open."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
    studio = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", studio.pid
    finally:
        studio.terminate()
        studio.wait()


def wait_until_open(url: str) -> None:
    """Return when a studio that was just started answers there."""
    import httpx

    while True:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"{url}/en/", timeout=30)
            return
        time.sleep(0.3)


def add_steps(run: Any, first: int, count: int = 5) -> None:
    """What its worker would write of so many more steps."""
    with (run.folder / "metrics.jsonl").open("a") as file:
        for step in range(first, first + count):
            file.write(json.dumps(line(step, 200_000, random.Random(step)) | {"time": time.time()}) + "\n")


def measure_table(rounds: int) -> None:
    """Print the medians over so many new processes, the first of which finds no summaries on disk."""
    with many_runs() as long_id:
        command = [sys.executable, __file__, "--page", long_id]
        told = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(rounds + 1)]  # fmt: skip
    print(
        "| what | first studio ever, ms | of a core | later studios, median ms | of a core |\n|---|---:|---:|---:|---:|"
    )
    for name, first in told[0].items():
        later = [statistics.median(one[name][way] for one in told[1:]) for way in (0, 1)]
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in (*first, *later)) + " |")


def measure_browser(updates: int, rounds: int) -> None:
    """Print what a browser takes to show what was clicked, as medians, and the new steps of a run at work."""
    from playwright.sync_api import sync_playwright

    from core import runs

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with many_runs() as long_id, runs.find_id(long_id).claim(), open_studio() as (url, _), sync_playwright() as driver:
        wait_until_open(url)
        browser = driver.chromium.launch(executable_path=program, args=_CHROMIUM)
        short_ids = [run.id for run in runs.all_runs()[1:3]]
        clicks: dict[str, list[float]] = {}
        for round in range(rounds):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            page.add_init_script(_WATCH)
            page.goto(f"{url}/en/")
            page.wait_for_function("window.Plotly && document.querySelector('#tab-runs-button')")
            page.wait_for_timeout(2000)

            def click(name: str, target: str, ready: str) -> None:
                page.wait_for_selector(target, state="attached")  # noqa: B023
                clicks.setdefault(name, []).append(page.evaluate(_CLICK, [target, ready]))  # noqa: B023

            click("the table", "#tab-runs-button", "document.querySelector('.runs-table tbody tr')?.offsetParent")
            page.wait_for_timeout(2000)
            order = [long_id, *short_ids] if round % 2 else [short_ids[0], long_id, short_ids[1]]
            for place, run_id in enumerate(order):
                name = f"{'the long run' if run_id == long_id else 'a run'}, {'the first of the page' if not place else 'a further one'}"
                click(name, f".runs-table button[data-run='{run_id}']", f"stands('{run_id}')")
                page.wait_for_timeout(2000)
            if round < rounds - 1:
                page.close()
        page.click(f".runs-table button[data-run='{long_id}']")
        page.wait_for_function(f"stands('{long_id}')")
        page.wait_for_timeout(3000)
        answers, firsts, draws, cores = [], [], [], []
        core = page.context.new_cdp_session(page)
        core.send("Performance.enable", {"timeDomain": "threadTicks"})

        def worked() -> float:
            told = core.send("Performance.getMetrics")["metrics"]
            return 1000 * next(one["value"] for one in told if one["name"] == "TaskDuration")

        for update in range(updates):
            page.evaluate("() => { performance.clearResourceTimings(); began.length = drawn.length = 0; }")
            before, last = worked(), 200_000 + 5 * (update + 1)
            add_steps(runs.find_id(long_id), last - 4)
            charts = "[...document.querySelectorAll('#runs-detail .js-plotly-plot')]"
            page.wait_for_function(
                f"began.length === drawn.length && {charts}.every((one) => one.data[0].x.at(-1) === {last})",
                polling=100,
            )
            took = page.evaluate(_TOOK)
            for told, one in zip((answers, firsts, draws, cores), (*took, worked() - before), strict=True):
                told.append(one)
        updated = {
            "the answer": answers, "from its arrival to the first chart": firsts, "from its arrival to all five": draws,
            "of a core, all in the page": cores,
        }  # fmt: skip
        for name, took in (clicks | {f"an update, {name}": took for name, took in updated.items()}).items():
            print(f"{name}: {statistics.median(took):.0f} ms, from {min(took):.0f} to {max(took):.0f}, of {len(took)}")
        browser.close()


async def poll(
    url: str, sessions: int, seconds: float, measure: Callable[[], tuple[float, float]]
) -> tuple[float, float, int, float]:
    """Ask as so many open pages do that show Train: by the clock's one event, as often as the studio wants it.

    Returns:
        What grew meanwhile of the two numbers of `measure`, each a second; how many looks there were, and the mean seconds of each.
    """
    import httpx

    async with httpx.AsyncClient(timeout=httpx.Timeout(60, pool=None)) as client:
        config = (await client.get(f"{url}/en/config")).json()
        (tick,) = [one for one in config["dependencies"] if one["targets"][0][1] == "tick_train"]
        ((clock, _),) = tick["targets"]
        values = {part["id"]: part["props"].get("value") for part in config["components"]}
        waits: list[float] = []
        until = time.monotonic() + _SETTLE + seconds
        name = secrets.token_hex(4)
        run_id = (await asyncio.to_thread(_runs))[0]

        async def page(number: int) -> None:
            every = 2.0
            await asyncio.sleep(2 * number / max(1, sessions))
            known = dict(values)
            for part in config["components"]:
                if part["type"] == "browserstate":
                    known[part["id"]] = run_id if part["props"].get("storage_key") in ("atelier.run", "atelier.watched") else known[part["id"]]  # fmt: skip
            while time.monotonic() < until:
                began = time.monotonic()
                body = {"data": [known.get(id) for id in tick["inputs"]], "fn_index": tick["id"], "session_hash": f"{name}{number}",
                        "trigger_id": clock, "event_data": {"tab": "train"}}  # fmt: skip
                answer = await client.post(f"{url}/en/gradio_api/run/predict", json=body)
                answer.raise_for_status()
                for id, value in zip(tick["outputs"], answer.json()["data"], strict=False):
                    if not (isinstance(value, dict) and value.get("__type__")):
                        known[id] = value
                every = known[clock]["every"]  # the studio may ask for another pace
                waits.append(time.monotonic() - began)
                await asyncio.sleep(max(0.0, min(every - (time.monotonic() - began), until - time.monotonic())))

        asked = asyncio.gather(*(page(number) for number in range(sessions)))
        await asyncio.sleep(_SETTLE)  # until the pages know their pace
        waits.clear()
        begin, began = measure(), time.monotonic()
        await asyncio.sleep(until - time.monotonic())
        end, took = measure(), time.monotonic() - began
        count, mean = len(waits), statistics.mean(waits) if waits else 0.0
        await asked
    return (end[0] - begin[0]) / took, (end[1] - begin[1]) / took, count, mean


def _runs() -> list[str]:
    from core import runs

    return [run.id for run in runs.all_runs()]


def _busy(pid: int) -> float:
    """Seconds of all cores that a process has taken."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def tokens_of(run: Any) -> float:
    """Tokens that it has trained on so far."""
    from studio.metrics import read_metrics

    return read_metrics(run).steps[-1]["tokens"]


def measure_pages(pages: int, rounds: int, seconds: float) -> None:
    """Print the tokens a second of a training with none and with so many pages open, in turn."""
    from core import queue, runs
    from core.config import Config
    from studio.metrics import read_metrics

    with tempfile.TemporaryDirectory() as home:
        os.environ["ATELIER_HOME"] = home
        settings = {"max_steps": 100_000, "epochs": 1000, "eval_every": 0, "save_every": 0}
        run = runs.create(Config.read({"name": "bench", "train": settings}))
        with open_studio() as (url, studio):
            try:
                while len(read_metrics(run).steps) < 40:
                    time.sleep(0.5)
                speeds: dict[int, list[float]] = {0: [], pages: []}
                shares: dict[int, list[float]] = {0: [], pages: []}
                for round in range(rounds):
                    for count in (0, pages) if round % 2 == 0 else (pages, 0):
                        asking = poll(url, count, seconds, lambda: (tokens_of(run), _busy(studio)))
                        speed, busy, asked, wait = asyncio.run(asking)
                        speeds[count].append(speed)
                        shares[count].append(busy / (os.cpu_count() or 1))
                        print(f"{count:>3} pages: {speeds[count][-1]:7.0f} tokens/s; {asked} looks of {wait * 1000:.0f} ms; the studio takes {shares[count][-1]:.1%} of the machine", flush=True)  # fmt: skip
                plain, watched = (statistics.median(speeds[count]) for count in (0, pages))
                print(
                    f"{pages} pages cost {1 - watched / plain:.1%} of the speed ({plain:.0f} and {watched:.0f} tokens/s)"
                )
                for count, some in shares.items():
                    print(f"with {count} pages the studio takes {statistics.median(some):.1%} of the machine")
            finally:
                run.ask("stop")
                while queue.is_starting(run) or run.worker() is not None:
                    time.sleep(0.5)


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser", type=int, metavar="UPDATES", help="measure what a browser takes to draw")
    parser.add_argument("--pages", type=int, help="measure what so many open pages cost")
    parser.add_argument("--seconds", type=float, default=30, help="of each round with pages")
    parser.add_argument("--page", metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page:
        print(json.dumps(measure_page(options.page)))
    elif options.browser:
        measure_browser(options.browser, options.rounds)
    elif options.pages:
        measure_pages(options.pages, options.rounds, options.seconds)
    else:
        measure_table(options.rounds)


if __name__ == "__main__":
    main()
