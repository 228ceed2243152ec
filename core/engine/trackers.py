"""A run's numbers for TensorBoard, Weights & Biases, MLflow or trackio as well, through their own libraries; never at the run's cost."""

from __future__ import annotations

import importlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from core.config import Config
from core.presets import flatten
from core.runs import Run

Numbers = Mapping[str, float]

_MOST_WAITING = 10_000
_LAST_SECONDS = 20.0
_LEFT_OUT = {"step", "steps", "time", "event"}


class Tracker(Protocol):
    """What a library has to do: take numbers of a step, and come to an end.

    Attributes:
        forgets: whether it takes away what was written beyond the step that a run goes on from.
    """

    forgets: bool

    def log(self, numbers: Numbers, step: int) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    """Event files in the run's own folder: tensorboard --logdir RUNS."""

    forgets = True

    def __init__(self, run: Run, settings: Mapping[str, Any], resumed: int | None):
        importlib.import_module("tensorboard")  # torch has the writer, and says only that something is missing
        from torch.utils.tensorboard import SummaryWriter

        # What was written beyond the checkpoint did not happen.
        self.writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=None if resumed is None else resumed + 1
        )
        if resumed is None:
            self.writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


class _Wandb:
    """A run of Weights & Biases under our run's id, so that a resumed one goes on there."""

    forgets = False

    def __init__(self, run: Run, settings: Mapping[str, Any], resumed: int | None):
        library = importlib.import_module("wandb")
        self.run = library.init(
            project="atelier", id=run.id, name=run.title, resume="allow", config=dict(settings), dir=str(run.folder), settings=library.Settings(console="off"),
        )  # fmt: skip

    def log(self, numbers: Numbers, step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def finish(self) -> None:
        self.run.finish()


class _Mlflow:
    """A run of MLflow in the experiment atelier, at the address of its own variables, else in the run's folder."""

    forgets = False

    def __init__(self, run: Run, settings: Mapping[str, Any], resumed: int | None):
        library = importlib.import_module("mlflow")
        # It would write where the studio was started.
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder / 'mlflow.db'}"
        self.client = library.MlflowClient(tracking_uri=address)
        found = self.client.get_experiment_by_name("atelier")
        experiment = found.experiment_id if found else self.client.create_experiment("atelier")
        old = self.client.search_runs([experiment], f"tags.atelier_run = '{run.id}'", max_results=1)
        tags = {"atelier_run": run.id}
        self.id = old[0].info.run_id if old else self.client.create_run(experiment, run_name=run.title, tags=tags).info.run_id  # fmt: skip
        if not old:
            for name, value in settings.items():
                self.client.log_param(self.id, name, str(value)[:500])
        if resumed is not None:  # it keeps every value that it was ever given
            self.client.set_tag(self.id, "atelier_resumed_from_step", str(max(resumed, 0)))

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.id, name, value, step=step)

    def finish(self) -> None:
        self.client.set_terminated(self.id)


class _Trackio:
    """A run of trackio, which keeps its numbers on this machine."""

    forgets = False

    def __init__(self, run: Run, settings: Mapping[str, Any], resumed: int | None):
        library = importlib.import_module("trackio")
        self.run = library.init(project="atelier", name=run.id, resume="allow", config=dict(settings), embed=False)

    def log(self, numbers: Numbers, step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def finish(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Run, Mapping[str, Any], int | None], Tracker]] = {
    "tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio,
}  # fmt: skip


class Tracking:
    """Hands every line of metrics.jsonl to a tracker, in a thread of its own: whatever the library does, the run goes on.

    Args:
        name: one of `TRACKERS`, or none.
        tell: is given an event, once each: when the library is missing, fails, or cannot keep pace; and when it keeps
            steps that are done again.
    """

    def __init__(self, run: Run, name: str, tell: Callable[..., None]):
        self.run, self.name, self._tell = run, name, tell
        self._resumed: int | None = None
        self._before = 0
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._failed = False
        if name in TRACKERS:
            self._before = max((line["step"] for line in run.metrics().steps[-1:]), default=0)
            self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
            self._thread.start()

    @classmethod
    def of(cls, run: Run, tell: Callable[..., None]) -> Tracking:
        """What the run's own settings ask for; nothing for a folder that is no training."""
        try:
            data = run.config_data().get("train")
        except ValueError:
            data = None
        return cls(run, str(data.get("tracker", "none")) if isinstance(data, dict) else "none", tell)

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line; it never waits."""
        if self._thread is None or self._failed:
            return
        try:
            self._lines.put_nowait(dict(line))
        except queue.Full:
            self._fail("it cannot keep pace")

    def close(self) -> None:
        """Let it write what is left, for some seconds at the most."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            try:
                self._lines.put_nowait(None)
            except queue.Full:
                return
            thread.join(_LAST_SECONDS)

    def _work(self) -> None:
        tracker: Tracker | None = None
        try:
            while (line := self._lines.get()) is not None:
                step = line.get("step")
                # The run's first lines say where it goes on; the library is loaded with the first number.
                if line.get("event") == "resumed":
                    self._resumed = line["step"]
                numbers = {
                    name: float(value) for name, value in line.items()
                    if name not in _LEFT_OUT and isinstance(value, int | float) and not isinstance(value, bool)
                }  # fmt: skip
                if "event" in line or not isinstance(step, int) or not numbers:
                    continue
                if tracker is None:
                    tracker = TRACKERS[self.name](self.run, _flat(self.run), self._resumed)
                    first = max(self._resumed or 0, 0) + 1
                    if self._resumed is not None and first <= self._before and not tracker.forgets:
                        self._tell("tracker_keeps", first=first, last=self._before, name=self.name)
                tracker.log(numbers, step)
            if tracker is not None:
                tracker.finish()
        except BaseException as error:  # a library may even call sys.exit
            self._fail(f"{type(error).__name__}: {error}".split("\n")[0][:200])

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            self._tell("tracker_failed", why=why)


def _flat(run: Run) -> dict[str, Any]:
    data = Config.read(run.config_data()).to_data()
    data.pop("origins", None)
    return flatten(data)
