"""The worker: becomes a run folder's one writer, does the job that its config names, and says how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from typing import Any

from core import changes, disk, output
from core.config import Config
from core.disk import DiskFull
from core.engine.wishes import Interrupted, Wishes
from core.fit import check_model
from core.problem import Problem
from core.runs import ExportConfig, Run

log = logging.getLogger("atelier")


def work(run: Run) -> dict[str, Any]:
    """Do a run's job to its end. Whatever happens, result.json says so, and only then.

    Returns:
        What result.json holds.

    Raises:
        Problem: when the run is already done or another process works on it; the folder is untouched then.
    """
    if run.state() == "completed" and not changes.waits(run):
        raise Problem("The run {run} is already completed.", to_do="Start a new one with other settings.", run=run.id)
    os.umask(0o077)  # what is learned from private rows is private
    with run.claim():
        (run.folder / "result.json").unlink(missing_ok=True)
        # Who stopped it while it was starting may have said more than that.
        for old in ("resume", "save") if run.asked("stop") else ("resume", "discard", "save"):
            run.take(old)
        wishes = Wishes(run)
        try:
            with wishes.heard():
                result = _do(run, wishes)
        except Interrupted:
            result = {"outcome": "stopped"}  # before a first step of this worker: what was saved earlier is still there
        except DiskFull as full:
            result = _paused(full.problem)
        except Problem as problem:
            result = {"outcome": "failed", "message": str(problem), "problem": problem.to_data()}
        except (Exception, SystemExit) as error:  # the reader of the folder must learn of anything that ends the work
            with contextlib.suppress(OSError):
                traceback.print_exc()
            if disk.is_full(error):
                result = _paused(disk.describe(run.folder, 0))
            else:
                unexpected = _unforeseen(error)
                result = {"outcome": "failed", "message": str(unexpected), "problem": unexpected.to_data()}
        if result["outcome"] == "stopped" and run.asked("discard"):
            run.discard()
            result |= {"discarded": True}
        for done in ("stop", "discard", "save"):
            run.take(done)
        metrics = run.metrics()
        last = metrics.steps[-1] if metrics.steps else {}
        result = {
            "message": "",
            "step": last.get("step", 0),
            "steps": last.get("steps"),
            "adapter": run.has_adapter(),
        } | result
        run.finish(**result)
    return result


def _paused(problem: Problem) -> dict[str, Any]:
    """It did not fail: as soon as there is room, it goes on."""
    return {"outcome": "stopped", "message": str(problem), "problem": problem.to_data()}


def _unforeseen(error: BaseException) -> Problem:
    return Problem(
        "The work ended with an error that was not foreseen: {error}.",
        to_do="The log has the details.",
        error=f"{type(error).__name__}: {error}".rstrip("."),
    )


def _do(run: Run, wishes: Wishes) -> dict[str, Any]:
    data = run.config_data()
    if data.get("job") == "export":
        from core.engine.export import export_job

        wishes.may_break("stop")  # what it has written by then is removed
        return export_job(run, ExportConfig.model_validate(data))
    config = Config.read(data)
    wishes.may_break("stop")
    check_model(config)  # before the data is read, which may take long
    from core.engine.loop import train

    return train(run, config, wishes)


def main(run: Run) -> int:
    """`python -m core work`: the detached worker; its output goes to the run's log."""
    with output.kept_in(run.folder / "log.txt"):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        log.info("working on %s", run.id)
        result = work(run)
        log.info("%s %s", result["outcome"], result["message"])
    return 0 if result["outcome"] in ("completed", "stopped") else 2
