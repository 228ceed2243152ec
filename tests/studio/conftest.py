"""A home in which something was trained, by the real engine, for the tests of the window."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent.parent


_TRAIN = "import json, sys; from core.__main__ import main; sys.exit(any(map(main, json.loads(sys.argv[1]))))"


def _train(home: Path, *runs: tuple[str, dict[str, Any]]) -> None:
    """Train one after the other in a process that loads torch once."""
    commands = [
        ["train", task, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]
        for task, settings in runs
    ]
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, json.dumps(commands)],
        cwd=ROOT,
        env=os.environ | {"ATELIER_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _share(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A copy of what is made once for all processes that test side by side."""
    whole = factory.getbasetemp()
    made = (whole.parent if "PYTEST_XDIST_WORKER" in os.environ else whole) / f"{name}-once"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            make(made.with_suffix(".part"))
            made.with_suffix(".part").rename(made)
    return Path(shutil.copytree(made, factory.mktemp(name) / "home"))


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A studio's home with one short LoRA run on the playground; it is shared, so leave the run as it is."""
    return _share(tmp_path_factory, "trained", _train_voice)


def _train_voice(home: Path) -> None:
    settings = {
        "name": "first <b>try</b>",
        "train.max_steps": 10,
        "train.scheduler": "constant",
        "train.warmup": 0,
        "train.learning_rate": 0.005,
        "train.eval_every": 0,
        "train.save_every": 0,
        "data.eval_fraction": 0.01,
        "samples.max_new_tokens": 4,
        "samples.prompts": '["Who are you?", "What is the moon?"]',
    }
    _train(home, ("chat", settings))


PLACES = {"the <b>moon</b>": "high above the sea", "a lamp": "on the old table", "the cat": "under a green chair"}
"""Things, and where they are: what the runs of `solved_home` learn to find and to tell apart."""


@pytest.fixture(scope="session")
def solved_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A studio's home with a classifier and a run for questions about a text, both on the playground; leave them as they are."""
    return _share(tmp_path_factory, "solved", _train_solvers)


def _train_solvers(home: Path) -> None:
    home.mkdir()
    texts = [{"text": f"{thing} is {place}.", "label": thing} for thing, place in PLACES.items()] * 8
    asked = [
        {"context": f"Look: {thing} is {place}.", "question": f"Where is {thing}?", "answers": [place]}
        for thing, place in PLACES.items()
    ] * 8
    solvers = []
    for task, rows in (("classification", texts), ("extractive_qa", asked)):
        path = home / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        settings = {
            "name": f"a {task}", "data.train": path, "data.eval_fraction": 0.2, "train.max_steps": 12, "train.learning_rate": 0.01,
            "train.scheduler": "constant", "train.warmup": 0, "train.eval_every": 0, "train.save_every": 0,
        }  # fmt: skip
        solvers.append((task, settings))
    _train(home, *solvers)


@pytest.fixture(scope="session")
def solved(solved_home: Path) -> dict[str, str]:
    """The ids of the runs in `solved_home` by their task."""
    ids = [path.name for path in (solved_home / "runs").iterdir()]
    return {
        task: next(id for id in ids if id.endswith(task.replace("_", "-")))
        for task in ("classification", "extractive_qa")
    }


@pytest.fixture(scope="session")
def trained_run(trained_home: Path) -> str:
    """The id of the run in `trained_home`."""
    return next((trained_home / "runs").iterdir()).name


@pytest.fixture(scope="module")
def served(trained_home: Path) -> Iterator[None]:
    """The serving process that the tabs share; it is ended after the module."""
    from studio import serving

    serving.shared.cache_clear()
    yield
    serving.shared().end()
    serving.shared.cache_clear()


@pytest.fixture
def draw() -> Callable[..., Any]:
    """Draws the class of a tab alone in a window."""
    import gradio as gr

    from studio.clock import Clock
    from studio.language import Language
    from studio.launcher import Launcher
    from studio.tabs import Page

    def draw(tab: Any, language: str = "en") -> Any:
        with gr.Blocks() as blocks:
            shared = {"run": gr.BrowserState(""), "form": gr.BrowserState(None)}
            shared |= {"data": gr.State(None), "config": gr.State(None)}
            page = Page(
                words=Language(language),
                blocks=blocks,
                tabs=gr.Tabs(),
                clock=Clock(),
                launcher=Launcher(),
                **shared,
            )
            return tab(page)

    return draw


@pytest.fixture
def visitor() -> Any:
    """What a handler learns of the page that calls it."""
    return SimpleNamespace(session_hash="one")


@pytest.fixture
def merge() -> Callable[[AsyncIterator[Any]], Any]:
    """Joins all updates of a handler, the later ones over the earlier; what is skipped is left out."""
    import gradio as gr

    async def merge(updates: AsyncIterator[Any]) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        async for update in updates:
            if "__type__" not in update:
                merged |= {part: value for part, value in update.items() if value != gr.skip()}
        return merged

    return merge
