"""Chat, Compare and Export as a person uses them: a real browser, the real window behind its gate, the real engine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.browser

_SERVE = """
import sys
from core import runs
from studio.gate import GateSettings, drop_gradio_environment
drop_gradio_environment(runs.home())
from studio.window import serve
serve(GateSettings(downloads=runs.runs_folder(), port=int(sys.argv[1])))
"""


def _chromium() -> str:
    found = (
        os.environ.get("ATELIER_CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if found is None:
        pytest.skip("needs a Chromium; name one in ATELIER_CHROMIUM")
    return found


@contextlib.contextmanager
def open_window(home: Path) -> Iterator[str]:
    """The address of a studio in that home."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    studio = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(port)],
        cwd=ROOT,
        env=os.environ | {"ATELIER_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/en/", timeout=5).close()
                break
            except OSError:
                assert studio.poll() is None
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        studio.terminate()
        studio.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser: Any, window: str) -> Iterator[Any]:
    """A page of the window; whatever it complains of in its console fails the test."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"a script ran: {dialog.message}") or dialog.dismiss())
    page.goto(f"{window}/en/")
    page.wait_for_selector("#tab-chat-button", timeout=60_000)
    try:
        yield page
    except Exception as error:
        error.add_note(f"The page says: {page.inner_text('body')[-3000:]}")
        raise
    page.close()
    assert not complaints


@pytest.fixture(scope="module")
def home(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the studio that the window is of."""
    home = tmp_path_factory.mktemp("window") / "home"
    shutil.copytree(trained_home, home)
    return home


@pytest.fixture(scope="module")
def window(home: Path) -> Iterator[str]:
    """The address of a studio in a home of its own."""
    with open_window(home) as address:
        yield address


@pytest.fixture
def page(browser: Any, window: str) -> Iterator[Any]:
    with open_page(browser, window) as page:
        yield page


def open_tab(page: Any, name: str) -> None:
    page.click(f"#tab-{name}-button")
    page.wait_for_selector(f"#tab-{name}", state="visible")


def press_stop(page: Any) -> None:
    """Stop, unless the answer has ended before it could be pressed."""
    error = pytest.importorskip("playwright.sync_api").Error
    with contextlib.suppress(error):
        page.click("#chat-stop", timeout=2000)


def set_sampling(page: Any, **values: float) -> None:
    for name, value in values.items():
        page.fill(f"#chat-{name} input[type=number]", str(value))
        page.press(f"#chat-{name} input[type=number]", "Tab")


def say(page: Any, text: str) -> None:
    """Type and send, as a person does: again when the answer before was not quite finished."""
    page.fill("#chat-box textarea", text)
    for _ in range(20):
        page.press("#chat-box textarea", "Enter")
        page.wait_for_timeout(500)
        if not page.input_value("#chat-box textarea"):
            return
    raise AssertionError("the message was never taken")


def test_a_conversation(page: Any):
    open_tab(page, "chat")
    page.wait_for_selector("#chat-talk [data-prompt]")
    # Short, and the same each time: whatever so short a training left of the model, the conversation must stay readable.
    page.click("#chat-settings > button")
    set_sampling(page, max_tokens=24, temperature=0)
    page.click("#chat-talk [data-prompt] >> nth=0")
    page.wait_for_function("document.querySelector('#chat-box textarea').value === 'Who are you?'")
    # Two presses are one message.
    page.dblclick("#chat-send")
    page.wait_for_selector("#chat-talk .counted", timeout=120_000)
    assert page.locator("#chat-talk .talk-turn.user").count() == 1
    assert "strength 1 · on Playground" in page.inner_text("#chat-talk .made-by")
    say(page, "<img src=x onerror=\"alert('owned')\"> <script>alert(1)</script>")
    page.wait_for_function("document.querySelectorAll('#chat-talk .counted').length === 2", timeout=60_000)
    assert page.locator("#chat-talk img, #chat-talk script").count() == 0
    assert "onerror" in page.inner_text("#chat-talk .talk-turn.user >> nth=1")
    # A long answer; the weights are switched in its middle, and what is being made stays what it was.
    set_sampling(page, max_tokens=200, temperature=2)
    say(page, "Tell me a very long story.")
    page.wait_for_function(
        "document.querySelector('#chat-talk .caret') || document.querySelectorAll('#chat-talk .counted').length === 3",
        timeout=60_000,
    )
    page.click("#chat-how label:has-text('Base alone')")
    page.wait_for_selector("#chat-strength", state="hidden")
    press_stop(page)
    page.wait_for_function("document.querySelectorAll('#chat-talk .counted').length === 3", timeout=60_000)
    assert "strength 1" in page.inner_text("#chat-talk .made-by >> nth=2")
    page.wait_for_selector("#chat-send", state="visible")
    page.click("#chat-again")
    page.wait_for_function(
        "[...document.querySelectorAll('#chat-talk .made-by')].at(-1)?.innerText.includes('no adapter')", timeout=60_000
    )
    press_stop(page)
    page.wait_for_selector("#chat-send", state="visible", timeout=60_000)
    page.click("#chat-clear")
    page.wait_for_selector("#chat-talk .nothing")


def test_a_comparison(page: Any):
    open_tab(page, "compare")
    page.click("#compare-prompts [data-prompt] >> nth=1")
    page.wait_for_function("document.querySelector('#compare-box textarea').value !== ''")
    page.click("#compare-send")
    page.wait_for_function("document.querySelectorAll('#tab-compare .counted').length === 3", timeout=120_000)
    made = [page.inner_text(f"#compare-said-{number} .made-by") for number in range(3)]
    assert "no adapter" in made[0] and "strength 1" in made[1] and "merged" in made[2]
    page.check("#compare-changes input")
    page.wait_for_selector("#compare-said-1 mark")
    page.click("#compare-add")
    page.wait_for_selector("#compare-column-3", state="visible")
    page.click("#compare-remove-1")
    page.wait_for_selector("#compare-column-1", state="hidden")


def test_an_export_is_made_and_taken(page: Any, window: str):
    open_tab(page, "export")
    page.dblclick("#export-adapter")
    page.wait_for_selector("#export-made .badge.completed", timeout=120_000)
    assert page.locator("#export-made .export-job").count() == 1
    with page.expect_download() as download:
        page.click("#export-made a:has-text('adapter_model.safetensors')")
    assert download.value.suggested_filename == "adapter_model.safetensors"
    with urllib.request.urlopen(window + page.get_attribute("#export-made a.way", "href")) as answer:
        names = zipfile.ZipFile(io.BytesIO(answer.read())).namelist()
    assert any(name.endswith("/adapter_model.safetensors") for name in names)


def test_a_text_is_labelled_and_an_answer_is_marked(
    browser: Any, solved_home: Path, solved: dict[str, str], tmp_path: Path
):
    shutil.copytree(solved_home, tmp_path / "home")
    with open_window(tmp_path / "home") as address, open_page(browser, address) as page:
        # The newest run comes first: questions about a text.
        open_tab(page, "chat")
        page.wait_for_selector("#chat-context", state="visible")
        page.wait_for_selector("#chat-settings", state="hidden")
        page.fill("#chat-context textarea", "Look: <img src=x onerror=\"alert('owned')\"> a lamp is on the old table.")
        say(page, "Where is a lamp?")
        page.wait_for_selector("#chat-talk .found-text mark")
        assert page.locator("#chat-talk img").count() == 0 and "onerror" in page.inner_text("#chat-talk .found-text")
        # Its fellow is selected elsewhere and taken over: a text to label needs no context.
        open_tab(page, "runs")
        page.click(f"#tab-runs tr[data-run='{solved['classification']}'] button")
        page.click("#tab-runs button:has-text('Try it')")
        page.wait_for_selector("#chat-context", state="hidden")
        say(page, "the cat is under a green chair.")
        page.wait_for_function("document.querySelectorAll('#chat-talk .labels li').length === 3")
        figures = [float(text.strip(" <%")) for text in page.locator("#chat-talk .labels .number").all_inner_texts()]
        assert figures == sorted(figures, reverse=True) and page.locator("#chat-talk .label-name b").count() == 0
        assert page.locator("#chat-talk .made-by").count() == 2


def test_a_method_is_chosen_from_the_list(page: Any):
    open_tab(page, "train")
    # A number is changed, and goes back by a press beside it.
    epochs = page.get_by_label("Epochs")
    before = epochs.input_value()
    epochs.fill("3")
    epochs.blur()
    page.click("[data-reset='train.epochs']")
    page.wait_for_selector("[data-reset='train.epochs']", state="detached")
    assert epochs.input_value() == before != "3"
    page.click("#tab-train .group > button >> nth=0")
    page.click("#train-method summary")
    page.click("#train-method label:has(input[value=full])")
    page.wait_for_function("!document.querySelector('#train-method details').open")
    assert page.inner_text("#picker-chosen b") == "Full fine-tuning"
    page.wait_for_function("document.querySelector('#tab-train .card .facts').innerText.includes('Full fine-tuning')")
    # With the keyboard: opened, moved through, closed.
    page.focus("#train-method summary")
    page.keyboard.press("Enter")
    page.focus("#train-method input[value=full]")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("document.querySelector('#picker-chosen b').innerText !== 'Full fine-tuning'")
    assert page.evaluate("document.querySelector('#train-method details').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('#train-method details').open")
    page.reload()
    page.wait_for_function("document.querySelector('#picker-chosen b')?.innerText !== 'LoRA'")


# What the browser is asked to show, by its own Notification.
_SPY = """
window.told = [];
const Real = window.Notification;
window.Notification = class extends Real {
  constructor(title, options) { super(title, options); window.told.push([title, options.body, this instanceof Real]); }
};
"""


def test_the_browser_is_asked_to_tell_of_a_run_that_has_ended(page: Any, home: Path, trained_run: str):
    page.context.grant_permissions(["notifications"])
    page.add_init_script(_SPY)
    page.reload()
    open_tab(page, "runs")
    page.get_by_text("Notify me when a run ends").click()
    page.get_by_role("button", name="Notify me in this browser").click()
    page.get_by_text("On, as long as a page of the studio is open.").wait_for()
    page.wait_for_function("localStorage.getItem('atelier.ended')")  # what ended before is known

    def end(name: str) -> None:
        """A run that has just ended, named so."""
        beside, run = home / name, home / "runs" / f"20300101-00000{len(name)}-{name}"
        shutil.copytree(home / "runs" / trained_run, beside)
        (beside / "notes.json").write_text(json.dumps({"name": name}))
        beside.rename(run)

    end("one")
    page.wait_for_function("window.told.length")
    assert page.evaluate("window.told") == [["one", "Completed", True]], "the one that had ended before is no news"
    # Whoever wants no more is not told, and not of what has ended meanwhile either.
    page.get_by_role("button", name="No more notifications in this browser").click()
    end("three")
    page.wait_for_function("localStorage.getItem('atelier.ended').includes('three')")
    page.get_by_role("button", name="Notify me in this browser").click()
    end("second")
    page.wait_for_function("window.told.length > 1")
    assert [title for title, *_ in page.evaluate("window.told")] == ["one", "second"]
