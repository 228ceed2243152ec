"""A person's first evening in a real browser: Data, Train, reload, Chat, Compare, Export; and a studio that is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from ground import ROOT, run_core

from core import runs
from core.config import Config
from core.playground import SAMPLES
from studio.language import Language

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
).split()
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
WAIT = 180_000

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    found = next(filter(None, map(shutil.which, NAMES)), MAC if Path(MAC).exists() else None)
    if found is None:
        message = "no Chromium or Chrome on this machine; on Debian: sudo apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=CHROMIUM)
        yield opened
        opened.close()


class Studio:
    """The real studio on a free port with a home of its own; it can be killed and opened again."""

    def __init__(self, home: Path):
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.open()

    def open(self) -> None:
        environment = os.environ | {
            "ATELIER_HOME": str(self.home),
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with (self.home.parent / "studio.log").open("ab") as log:
            command = [sys.executable, "app.py", "--port", str(self.port)]
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                httpx.get(self.url + "/en/", timeout=30)
                return
            except httpx.TransportError:
                assert self.process.poll() is None, self.said()
                time.sleep(0.5)
        raise AssertionError("the studio did not open")

    def said(self) -> str:
        """The end of what it wrote: the traceback of a handler that failed stands nowhere else."""
        return (self.home.parent / "studio.log").read_text(encoding="utf-8", errors="replace")[-6000:]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def runs(self) -> list[dict]:
        return json.loads(run_core(self.home, "runs", "--json").stdout)

    def end(self) -> None:
        """End the studio and every worker of its runs, by their recorded process."""
        for note in self.home.glob("runs/*/worker.json"):
            worker = json.loads(note.read_text())
            try:
                process = psutil.Process(worker["pid"])
                if abs(process.create_time() - worker["birth"]) < 1:
                    process.kill()
            except psutil.Error:
                pass
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, browser: sync_api.Browser) -> Iterator[Studio]:
    opened = Studio(tmp_path_factory.mktemp("evening") / "home")
    yield opened
    opened.end()


@pytest.fixture
def page(browser: sync_api.Browser, studio: Studio) -> Iterator[sync_api.Page]:
    """A page that fails the test on any console error and on any request to elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB", accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(120_000)
    wrong: list[str] = []
    page.on(
        "console",
        lambda message: (
            wrong.append(f"{message.text} {message.location.get('url', '')}") if message.type == "error" else None
        ),
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda request: (
            wrong.append(request.url) if not request.url.startswith((studio.url, "data:", "blob:")) else None
        ),
    )
    page.wrong = wrong  # type: ignore[attr-defined]
    yield page
    context.close()
    said = "\n".join([*wrong, "The studio said:", studio.said()])
    # Once, on a busy machine, one request of hundreds was answered with 500 and nobody knows why: it is told with what the
    # studio wrote, so that the next time shows it. A second one, or anything else, is a failure.
    if len(wrong) == 1 and "status of 500" in wrong[0]:
        warnings.warn(said, stacklevel=1)
    else:
        assert not wrong, said


def open_tab(page: sync_api.Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def points(page: sync_api.Page) -> int:
    """How many points the first curve of the loss chart has."""
    return page.evaluate(
        "() => { const plot = document.querySelector('.js-plotly-plot'); return plot && plot.data && plot.data.length ? plot.data[0].x.length : 0; }"
    )


def wait_for(ready: Callable[[], bool], seconds: float = WAIT / 1000) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as somebody brings them: a CSV whose columns have names of their own language."""
    path = tmp_path_factory.mktemp("data") / "my questions.csv"
    lines = ["question,answer"] + [f'"What is number {n}?","Ahoy! It is ""number {n}"", matey."' for n in range(60)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_several_files_at_once_and_columns_that_nobody_knows(
    page: sync_api.Page, studio: Studio, tmp_path: Path
) -> None:
    def write(name: str, *rows: dict) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    def drop(*files: str) -> None:
        page.locator(".drop input[type=file]").set_input_files(list(files))

    page.goto(studio.url + "/en/")
    open_tab(page, "Data")
    expect(page.locator(".preview .turn").first).to_be_visible(timeout=WAIT)
    asked = {name: [{"prompt": f"{name} {n}?", "completion": f"Yes, {n}."} for n in range(3)] for name in "abc"}
    drop(write("a.jsonl", *asked["a"]), write("weights.bin", {}), write("b.jsonl", *asked["b"]))
    lines = page.locator("#data-files tbody tr")
    expect(lines).to_have_count(2, timeout=WAIT)
    expect(page.get_by_role("alert")).to_contain_text("weights.bin")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Add files to these").click()
    chooser.value.set_files(write("c.jsonl", *asked["c"]))
    expect(lines).to_have_count(3, timeout=WAIT)
    expect(page.get_by_text("Row 1 of 9")).to_be_visible()
    page.get_by_role("button", name="Take a away").click()
    expect(lines).to_have_count(2, timeout=WAIT)
    expect(page.get_by_text("b 0?")).to_be_visible()

    # Columns of names that nobody knows: a press reads them, and Train has been told.
    drop(write("mine.jsonl", *({"Nachricht": f"Es regnet seit {n} Tagen", "Rubrik": "xy"[n % 2]} for n in range(8))))
    page.get_by_role("button", name="label = Rubrik").click()
    expect(page.locator(".label-chip")).to_be_visible(timeout=WAIT)
    open_tab(page, "Train")
    expect(page.get_by_label("Task")).to_have_value("Classification", timeout=WAIT)
    # Two answers of which one is better are looked at, and trained on only after a word.
    open_tab(page, "Data")
    drop(write("pairs.jsonl", *({"prompt": "Hi", "chosen": f"Hello {n}", "rejected": f"Go {n}"} for n in range(8))))
    expect(page.get_by_text("Rejected answer", exact=True)).to_be_visible(timeout=WAIT)
    expect(page.get_by_role("button", name="Use it for training")).to_be_disabled()
    page.get_by_role("button", name="Train on the chosen answers alone").click()
    expect(page.get_by_text("Rejected answer", exact=True)).to_have_count(0, timeout=WAIT)
    expect(page.get_by_role("button", name="Use it for training")).to_be_enabled()


def test_first_evening(page: sync_api.Page, studio: Studio, data_file: Path, tmp_path: Path) -> None:
    page.goto(studio.url)
    expect(page).to_have_url(re.compile("/en/"))

    # Data: a file is dropped, recognised and shown as a conversation.
    open_tab(page, "Data")
    page.locator("#tab-data input[type=file], input[type=file]").first.set_input_files(str(data_file))
    expect(page.get_by_text("What is number 0?")).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("matey").first).to_be_visible()
    page.get_by_role("button", name="Use it for training").click()

    # Train: the choices are there; one impossible number is refused beside its field, and nothing typed is lost.
    start = page.locator("#train-start")
    expect(start).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("57, and 3 set aside")).to_be_visible(timeout=WAIT)
    epochs = page.get_by_label("Epochs")
    epochs.fill("-3")
    epochs.blur()
    expect(page.get_by_role("alert").first).to_contain_text("Epochs", timeout=WAIT)
    start.click()
    time.sleep(1)
    assert studio.runs() == []
    epochs.fill("20")
    epochs.blur()
    expect(page.get_by_role("alert")).to_have_count(0, timeout=WAIT)
    expect(page.get_by_text("57, and 3 set aside")).to_be_visible(timeout=WAIT)

    # Start, pressed by somebody impatient.
    start.evaluate("button => { for (let i = 0; i < 5; i++) button.click(); }")
    wait_for(lambda: points(page) > 2)
    expect(page.get_by_text(re.compile("Training, step")).first).to_be_visible()
    before = points(page)
    wait_for(lambda: points(page) > before)
    assert len(studio.runs()) == 1

    # Reload in mid-run: the page finds the run again, the chart goes on.
    page.reload()
    wait_for(lambda: points(page) > before)
    expect(page.get_by_text(re.compile("Done after")).first).to_be_visible(timeout=WAIT)
    run = studio.runs()[0]
    assert (run["state"], run["step"]) == ("completed", 160)
    assert run["loss"] < 1

    # Chat: the answer streams in and says which weights made it.
    page.get_by_role("button", name="Chat with it").first.click()
    box = page.locator("#chat-box textarea")
    # Nobody types within the blink in which a tab is drawn.
    expect(page.locator("#chat-talk")).to_contain_text("Talk to", timeout=WAIT)
    page.wait_for_timeout(2000)
    box.fill("What is number 7?")
    box.press("Enter")
    talk = page.locator("#chat-talk")
    expect(talk).to_contain_text("Ahoy", timeout=WAIT)
    expect(talk).to_contain_text("step 160", timeout=WAIT)
    expect(talk).to_contain_text("tokens/s", timeout=WAIT)

    # Compare: three columns from one base, each with its own weights.
    open_tab(page, "Compare")
    box = page.locator("#compare-box textarea")
    page.wait_for_timeout(2000)
    box.fill("What is number 5?")
    page.locator("#compare-send").click()
    said = [page.locator(f"#compare-said-{number}") for number in range(3)]
    for column in said:
        expect(column).to_contain_text("tokens/s", timeout=WAIT)
    expect(said[0]).to_contain_text("no adapter")
    expect(said[0]).not_to_contain_text("Ahoy")
    expect(said[1]).to_contain_text("Ahoy")
    expect(said[1]).to_contain_text("strength 1")
    expect(said[2]).to_contain_text("Ahoy")
    expect(said[2]).to_contain_text("merged")

    # Export: the merged model as files and as a folder.
    open_tab(page, "Export")
    page.locator("#export-merged").click()
    link = page.locator("#export-made a", has_text="model.safetensors")
    expect(link).to_be_visible(timeout=WAIT)
    with page.expect_download() as download:
        link.click()
    assert Path(download.value.path()).stat().st_size > 1_000_000
    with page.expect_download() as download:
        page.locator("#export-made a[href*='.zip']").first.click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = {Path(name).name for name in archive.namelist()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
        archive.extractall(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(next((tmp_path / "model").rglob("config.json")).parent)


def test_every_row_is_looked_at(page: sync_api.Page, studio: Studio, tmp_path: Path) -> None:
    page.goto(studio.url + "/en/")
    # Which model reads them is one setting, here and in Train.
    models = page.get_by_label("Base model").locator("visible=true")
    for name, here, there in (("owner/other", "Data", "Train"), ("playground", "Train", "Data")):
        open_tab(page, here)
        models.fill(name)
        models.press("Enter")
        open_tab(page, there)
        expect(models).to_have_value(re.compile(name), timeout=WAIT)
    page.get_by_role("button", name="Look at every row").click()
    row = page.locator("#inspect-row")
    expect(row.locator(".token.learned").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#inspect-state")).to_contain_text("400 rows as playground reads them")
    findings = page.locator("#inspect-findings")
    expect(findings).to_contain_text("Nothing is wrong with these rows.")
    wait_for(lambda: page.locator(".inspector .js-plotly-plot").count() == 1)
    page.locator("#inspect-longest").click()
    expect(row).to_contain_text("174 tokens")
    search = page.locator("#inspect-search textarea, #inspect-search input").first
    search.fill("is the sky blue")
    search.press("Enter")
    expect(row).to_contain_text("Is the sky blue?")
    # One row too many: it is shown, left out by a press, and what is counted follows.
    rows = SAMPLES["style"].path.read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(rows + rows[: rows.index("\n")], encoding="utf-8")
    page.locator(".drop input[type=file]").set_input_files(str(tmp_path / "rows.jsonl"))
    expect(page.get_by_text("Row 1 of 401")).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Look at every row").click()
    expect(row).to_contain_text("Row 401 ", timeout=WAIT)
    findings.get_by_role("button", name="Leave these rows out").click()
    expect(findings).to_contain_text("Rows that are left out for what was found in them: 1.", timeout=WAIT)
    expect(findings).not_to_contain_text("Rows that repeat one before")
    expect(page.locator("#inspect-numbers")).to_contain_text("380, and 20 set aside")


def test_runs_are_searched_named_and_laid_over_each_other(page: sync_api.Page, studio: Studio) -> None:
    made = runs.create(Config(name="made"), folder=studio.home / "runs" / "20200101-120000-made")
    lines = [{"step": step, "steps": 9, "loss": 5.0 - step / 3} for step in range(1, 10)]
    (made.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made.finish("completed", step=9, steps=9)
    page.goto(studio.url + "/en/")
    open_tab(page, "Runs")
    box = page.locator(f".runs-table [data-pick='{made.id}']")
    box.click()
    expect(page.locator(".runs-overlay .js-plotly-plot")).to_be_visible(timeout=WAIT)
    expect(page.locator(f".runs-table [data-pick='{made.id}']")).to_be_checked()
    page.get_by_role("button", name="Clear the choice").click()
    expect(page.locator("div.runs-overlay").first).to_be_hidden(timeout=WAIT)
    page.locator(f".runs-table button[data-run='{made.id}']").click()
    detail = page.locator("#runs-detail")
    expect(detail.locator(".run-head")).to_be_visible(timeout=WAIT)
    # What changes out of sight is drawn when it comes into sight.
    chart = detail.locator(".chart.tall").first
    wait_for(lambda: chart.evaluate("node => node.data?.[0].x.at(-1)") == 9)
    page.set_viewport_size({"width": 1280, "height": 300})
    page.wait_for_timeout(1500)  # a press on a run scrolls to it
    page.evaluate("scrollTo(0, 0)")
    with page.expect_response(lambda one: "/run/predict" in one.url and f"{made.id}-loss" in one.text()):
        lines.append({"step": 10, "steps": 10, "loss": 1.5})
        (made.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page.wait_for_timeout(1000)
    assert chart.evaluate("node => node.data[0].x.at(-1)") == 9
    chart.scroll_into_view_if_needed()
    wait_for(lambda: chart.evaluate("node => node.data[0].x.at(-1)") == 10, 10)
    page.set_viewport_size({"width": 1280, "height": 900})
    detail.get_by_role("button", name="Name, note and tags").click()
    expect(detail.get_by_label("Name", exact=False).first).to_have_value(
        "made", timeout=WAIT
    )  # filled with what is known
    page.get_by_label("Tags").fill("first, kept")
    page.locator("#runs-keep").click()
    expect(page.locator(".runs-table .tag")).to_have_count(2, timeout=WAIT)
    search = page.locator(".runs-search").locator("input, textarea").first
    search.press_sequentially("nowhere at all")
    expect(page.locator(".block.runs-table")).to_contain_text("No run holds", timeout=WAIT)
    search.fill("kept")
    expect(page.locator(".runs-table tbody tr")).to_have_count(1, timeout=WAIT)
    page.wait_for_timeout(2500)  # a look later it is still what was asked for
    expect(page.locator(".runs-table tbody tr")).to_have_count(1)
    with page.expect_download() as download:
        detail.locator("a.pack").click()
    assert zipfile.is_zipfile(download.value.path())


def test_studio_is_killed_and_the_run_goes_on(page: sync_api.Page, studio: Studio) -> None:
    page.goto(studio.url + "/en/")
    open_tab(page, "Train")
    again = page.get_by_role("button", name="New training")
    start = page.locator("#train-start")
    expect(again.or_(start).first).to_be_visible(timeout=WAIT)
    if again.is_visible():
        again.click()
    expect(start).to_be_visible(timeout=WAIT)
    page.get_by_label("Epochs").fill("40")
    page.get_by_label("Epochs").blur()
    start.click()
    wait_for(lambda: points(page) > 2)
    step = studio.runs()[0]["step"]
    studio.kill()
    wait_for(lambda: studio.runs()[0]["step"] > step)
    assert studio.runs()[0]["state"] == "running"
    page.wrong.clear()  # type: ignore[attr-defined]
    page.goto("about:blank")  # what a page says while its server is away is no fault
    page.wrong.clear()  # type: ignore[attr-defined]
    studio.open()
    page.goto(studio.url + "/en/")
    open_tab(page, "Train")
    wait_for(lambda: points(page) > 3)
    expect(page.get_by_text(re.compile("Training, step")).first).to_be_visible(timeout=WAIT)

    # Stop keeps what was learned; Resume goes on from there; a second Stop ends it.
    page.get_by_role("button", name="Stop and keep", exact=True).first.click()
    expect(page.get_by_text(re.compile("Stopped at step")).first).to_be_visible(timeout=WAIT)
    stopped = studio.runs()[0]
    assert (stopped["state"], stopped["adapter"]) == ("stopped", True)
    page.get_by_role("button", name="Resume").first.click()
    wait_for(lambda: studio.runs()[0]["step"] > stopped["step"])
    page.get_by_role("button", name="Stop and keep", exact=True).first.click()
    expect(page.get_by_text(re.compile("Stopped at step")).first).to_be_visible(timeout=WAIT)


@pytest.mark.parametrize(
    ("code", "width", "theme"),
    [("en", 1280, "light"), ("en", 400, "dark"), ("zh", 1280, "dark"), ("zh", 400, "light")],
)
def test_every_tab_fits_in_every_language(
    page: sync_api.Page, studio: Studio, code: str, width: int, theme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{studio.url}/{code}/?__theme={theme}")
    expect(page.locator("#train-start").or_(page.locator(".run-view")).first).to_be_attached(timeout=WAIT)
    shown = page.evaluate("() => document.documentElement.lang")
    assert shown.startswith(code)
    for name in ("data", "train", "runs", "chat", "compare", "export"):
        assert page.get_by_role("tab", name=Language(code).t(f"{name}.title"), exact=True).count() >= 1
        page.evaluate("id => document.querySelector(`#tab-${id}-button`)?.click()", name)
        expect(page.locator(f"#tab-{name}")).to_be_visible(timeout=WAIT)
        page.wait_for_timeout(300)
        overflow = page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{name} is {overflow} px too wide"


def test_a_page_in_which_nothing_happens_is_not_drawn(page: sync_api.Page, studio: Studio) -> None:
    page.add_init_script(
        "const draw = window.requestAnimationFrame.bind(window); window.drawn = 0;"
        "window.requestAnimationFrame = (step) => { window.drawn = performance.now(); return draw(step); };"
    )
    page.goto(studio.url + "/en/")
    expect(page.locator("#train-start")).to_be_visible(timeout=WAIT)
    # It looks for news every two seconds, and has a frame then.
    page.wait_for_function("() => performance.now() - window.drawn > 600", polling=50)


def test_the_browsers_language_is_taken(browser: sync_api.Browser, studio: Studio) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(studio.url)
    expect(page).to_have_url(re.compile("/zh/"))
    page.locator("a[data-language=en]").click()
    expect(page).to_have_url(re.compile("/en/"))
    page.goto(studio.url)
    expect(page).to_have_url(re.compile("/en/"))
    context.close()
