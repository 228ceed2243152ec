"""Runs travel whole and checked, and take nothing private with them."""

from __future__ import annotations

import getpass
import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from core import parcel, runs
from core.__main__ import main
from core.config import Config
from core.notes import Notes
from core.problem import Problem
from core.runs import Run

USER = "zelda.private-user"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home with a telling name, in which the studio's own home lies."""
    folder = tmp_path / "people" / USER
    folder.mkdir(parents=True)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(folder))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("ATELIER_HOME", str(folder / ".atelier"))
    monkeypatch.setenv("SOME_API_KEY", "a-secret-of-no-known-form")
    assert getpass.getuser() == USER
    return folder


@pytest.fixture
def run(private: Path) -> Run:
    """A run that ended badly, with this user's paths and tokens wherever they come to lie."""
    rows = private / "my data" / "rows of mine.jsonl"
    rows.parent.mkdir()
    rows.write_text("{}")
    model = private / "models" / "my-model"
    model.mkdir(parents=True)
    config = Config.read({"name": "travels", "model": {"name": str(model)}, "data": {"train": f"{rows};hub:owner/name", "eval": str(rows)}})  # fmt: skip
    run = runs.create(config)
    lines = [
        {"event": "started", "step": 0, "where": str(rows)},
        {"step": 1, "loss": 2.5, "learning_rate": 1e-4},
        {"event": "odd", "step": 1, "why": "read /srv/another-team/secret-project/a.txt, and http://host/b/c."},
        {
            "event": "odd",
            "step": 1,
            "why": f"cannot open '{private}/x y/z.txt' with {TOKEN} or a-secret-of-no-known-form",
        },
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "samples.jsonl").write_text(json.dumps({"step": 0, "prompt": "see http://a.b/c/d?", "answer": "and/or\n"}) + "\n")  # fmt: skip
    (run.folder / "log.txt").write_text(f"{private} {TOKEN}")
    (run.folder / "worker.json").write_text(json.dumps({"host": "my-host-name", "pid": 1, "birth": 1.0}))
    (run.folder / "adapter").mkdir()
    (run.folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(model), "r": 8})
    )
    (run.folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 10)
    (run.folder / "adapter" / "README.md").write_text(f"Base: `{model}`\nC:\\Users\\{USER}\\thing.bin\n")
    for step, inside in ((5, b"{}"), (10, str(private).encode())):
        folder = run.folder / "checkpoints" / f"step-{step:06}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_bytes(inside)
    Notes("", f"see {private}/notes", ("a",)).write(run)
    run.finish("failed", f"There is no file {rows}.", step=1, steps=9, seconds=3.5)
    return run


def _packed(run: Run) -> tuple[bytes, zipfile.ZipFile]:
    data = b"".join(parcel.pack(run))
    return data, zipfile.ZipFile(io.BytesIO(data))


def test_a_packed_run_holds_no_private_path_name_or_token(run: Run, private: Path) -> None:
    data, archive = _packed(run)
    assert archive.testzip() is None
    for secret in (
        str(private),
        str(private.parent),
        USER,
        TOKEN,
        "a-secret-of-no-known-form",
        "my-host-name",
        "my data",
    ):
        assert secret.encode() not in data, secret
    names = {name.partition("/")[2] for name in archive.namelist()}
    assert names == {
        "config.yaml", "metrics.jsonl", "samples.jsonl", "notes.json", "result.json", "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors", "adapter/README.md", "checkpoints/step-000005/state.json",
    }  # fmt: skip


def test_what_is_packed_means_the_same(run: Run) -> None:
    _, archive = _packed(run)

    def read(name: str) -> str:
        return archive.read(f"{run.id}/{name}").decode()

    config = Config.read(yaml.safe_load(read("config.yaml")))
    assert (config.model.name, config.data.train, config.data.eval) == ("my-model", "rows of mine.jsonl;hub:owner/name", "rows of mine.jsonl")  # fmt: skip
    assert [json.loads(line).get("loss") for line in read("metrics.jsonl").splitlines()] == [None, 2.5, None, None]
    assert json.loads(read("metrics.jsonl").splitlines()[2])["why"] == "read a.txt, and http://host/b/c."
    sample = json.loads(read("samples.jsonl"))
    assert (sample["prompt"], sample["answer"]) == ("see http://a.b/c/d?", "and/or\n")
    assert json.loads(read("adapter/adapter_config.json")) == {"base_model_name_or_path": "my-model", "r": 8}
    assert archive.read(f"{run.id}/adapter/adapter_model.safetensors") == bytes(range(256)) * 10
    assert json.loads(read("result.json"))["message"] == "There is no file rows of mine.jsonl."


def test_a_packed_run_is_taken_in_elsewhere(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, archive = _packed(run)
    archive.extractall(tmp_path / "unpacked")
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "other"))
    taken = parcel.take_in(tmp_path / "unpacked" / run.id)
    assert taken.id == run.id and taken.folder.parent == runs.runs_folder() and taken.state() == "failed"
    assert [row["loss"] for row in taken.metrics().steps] == [2.5] and Notes.read(taken).tags == ("a",)
    assert runs.find_id(taken.id) == taken
    again = parcel.take_in(tmp_path / "unpacked" / run.id)
    assert again.id == f"{run.id}-2" and len(runs.all_runs()) == 2, "nothing is written over"
    if os.name == "posix":
        assert all(path.stat().st_mode & 0o077 == 0 for path in taken.folder.rglob("*"))


def test_a_run_at_work_is_not_packed(private: Path) -> None:
    waits = runs.create(Config(name="waits"))
    with pytest.raises(Problem, match="not at its end"):
        parcel.pack(waits)


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path) -> Path:
    """A run's folder of another home, which ended before it said so."""
    folder = tmp_path / "stick" / "a run"
    runs.create(Config(name="from afar"), folder=folder)
    (folder / "metrics.jsonl").write_text('{"step": 1, "steps": 3, "loss": 1.0}\n')
    (folder / "control").mkdir()
    (folder / "control" / "resume").touch()
    return folder


def test_a_run_that_had_not_ended_is_interrupted_and_starts_by_nothing(elsewhere: Path) -> None:
    run = parcel.take_in(elsewhere)
    assert run.state() == "interrupted" and run.resumable and not (run.folder / "control").exists()
    assert run.id.endswith("-from-afar")
    assert (elsewhere / "control" / "resume").exists(), "the original is left as it was"


@pytest.mark.parametrize("name", ["adapter/pytorch_model.bin", "x.PKL", "a/b/c.pt", "model.ckpt.json", "checkpoints/step-000001/optimizer.pth"])  # fmt: skip
def test_pickles_are_refused_by_name_and_nothing_is_kept(elsewhere: Path, home: Path, name: str) -> None:
    (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
    (elsewhere / name).write_bytes(b"x")
    with pytest.raises(Problem, match="could run a program") as told:
        parcel.take_in(elsewhere)
    assert Path(name).name in str(told.value)
    assert runs.all_runs() == [] and not list((home / "imports").glob("*"))


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "metrics.jsonl", ".."])
def test_links_are_refused(elsewhere: Path, target: str) -> None:
    (elsewhere / "adapter").mkdir()
    (elsewhere / "adapter" / "link").symlink_to(target)
    with pytest.raises(Problem, match="is a link"):
        parcel.take_in(elsewhere)
    assert runs.all_runs() == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe")
def test_what_is_no_file_is_refused(elsewhere: Path) -> None:
    os.mkfifo(elsewhere / "pipe")
    with pytest.raises(Problem, match="no ordinary file"):
        parcel.take_in(elsewhere)


@pytest.mark.parametrize(("text", "what"), [("[1]", "holds no settings"), ("job: export\nrun: x\n", "holds no training"), ("train: {epochs: -1}", "cannot be"), ("nonsense: 1", "no setting"), ("a: [", "no valid YAML")])  # fmt: skip
def test_settings_that_do_not_load_are_refused(elsewhere: Path, text: str, what: str) -> None:
    (elsewhere / "config.yaml").write_text(text)
    with pytest.raises(Problem, match=what):
        parcel.take_in(elsewhere)
    assert runs.all_runs() == []


def test_what_is_no_run_is_refused(home: Path, tmp_path: Path, elsewhere: Path) -> None:
    own = runs.create(Config())
    for path, what in ((tmp_path / "nothing", "no folder"), (tmp_path, "holds no run|own already"), (own.folder, "own already"), (elsewhere / "config.yaml", "is a file"), (Path("a\0b"), "no folder")):  # fmt: skip
        with pytest.raises(Problem, match=what):
            parcel.take_in(path)


def test_a_copy_that_fails_leaves_nothing(elsewhere: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []
    real = parcel._open

    def fails(path: Path) -> object:
        copied.append(path)
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(parcel, "_open", fails)
    with pytest.raises(Problem, match="No space left"):
        parcel.take_in(elsewhere)
    assert len(copied) == 2 and runs.all_runs() == [] and not list((home / "imports").iterdir())


def test_the_command_line_packs_and_takes_in(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    out = tmp_path / "run.zip"
    assert main(["pack", run.id, "--out", str(out)]) == 0 and zipfile.is_zipfile(out)
    assert main(["pack", run.id, "--out", str(out)]) == 2, "no file is written over"
    zipfile.ZipFile(out).extractall(tmp_path / "unpacked")
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "other"))
    assert main(["import", str(tmp_path / "unpacked" / run.id)]) == 0
    assert [one.title for one in runs.all_runs()] == ["travels"]


@pytest.mark.parametrize("outcome", ["queued", "xyz"])
def test_a_result_of_no_known_end_is_an_interruption(run: Run, tmp_path: Path, outcome: str) -> None:
    elsewhere = runs.create(Config(name="odd"), folder=tmp_path / "odd")
    (elsewhere.folder / "result.json").write_text(json.dumps({"outcome": outcome}))
    taken = parcel.take_in(elsewhere.folder)
    assert taken.state() == "interrupted" and (taken.result() or {})["outcome"] == "interrupted"


def test_nothing_of_a_tracker_and_no_path_of_the_settings_is_packed(run: Run) -> None:
    for name in ("tensorboard/events.out.tfevents.1.my-host-name.1", "wandb/run/files/wandb-metadata.json", "mlflow.db", "mlruns/0/meta.yaml"):  # fmt: skip
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text("my-host-name")
    folder = run.folder.parents[4] / "elsewhere" / "rows.jsonl"
    folder.parent.mkdir()
    folder.write_text("{}")
    data = run.config_data()
    data["data"]["train"] = str(folder)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(data))
    (run.folder / "adapter" / "told.safetensors").write_bytes(b"\0" + str(folder).encode())
    packed, archive = _packed(run)
    assert b"my-host-name" not in packed and str(folder).encode() not in packed
    assert not any("told" in name for name in archive.namelist())


def test_what_was_not_at_its_end_says_so_in_every_language(tmp_path: Path, private: Path) -> None:
    taken = parcel.take_in(runs.create(Config(name="odd"), folder=tmp_path / "odd").folder)
    told = Problem.from_data((taken.result() or {})["problem"])
    assert told.what == "It was brought here before its end."


def test_what_cannot_be_read_is_named_and_half_a_zip_is_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(run: Run) -> Iterator[bytes]:
        yield b"half"
        raise OSError(5, "Input/output error", "weights")

    monkeypatch.setattr(parcel, "pack", breaks)
    assert main(["pack", run.id, "--out", str(tmp_path / "a.zip")]) == 2
    assert "weights: Input/output error" in capsys.readouterr().err and not (tmp_path / "a.zip").exists()
