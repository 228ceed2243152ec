"""The gate: raw requests to a real server for each rule, and a real browser for what a visitor sees."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import safehttpx
import uvicorn

from core.problem import Problem
from studio import gate

REPOSITORY = Path(__file__).parents[2]
UPLOAD_BYTES = 100_000
PASSWORD = "correct horse battery"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Studio:
    port: int
    home: Path
    runs: Path
    uploads: Path

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | Iterator[bytes] | None = None,
        hosts: list[str] | None = None,
        **headers: str,
    ) -> Answer:
        """One request, sent as it is written here: the path is not tidied up and no header is added but Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for host in [f"127.0.0.1:{self.port}"] if hosts is None else hosts:
            connection.putheader("Host", host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if isinstance(body, bytes) and "Content_Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        elif body is not None and not isinstance(body, bytes):
            connection.putheader("Transfer-Encoding", "chunked")
        # A refusal comes before the whole body is sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders(body, encode_chunked=body is not None and not isinstance(body, bytes))
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    def sign_in(self, user: str = "ada", password: str = PASSWORD) -> Answer:
        form = urlencode({"user": user, "password": password}).encode()
        return self.ask(gate.SIGN_IN_PATH, "POST", form, Origin=self.origin, Content_Type=FORM["Content-Type"])


def build_window() -> Any:
    import gradio as gr

    with gr.Blocks(title="Atelier", analytics_enabled=False) as window:
        name = gr.Textbox(label="Name", elem_id="name")
        greeting = gr.Textbox(label="Greeting", elem_id="greeting")
        gr.Button("Greet", elem_id="greet").click(lambda text: f"hello {text}", name, greeting, api_name="greet")
        file = gr.File(label="File")
        size = gr.Number(label="Size", elem_id="size")
        file.change(lambda path: os.path.getsize(path) if path else 0, file, size, api_name="measure")
        gr.Chatbot([{"role": "user", "content": "a"}, {"role": "assistant", "content": "```python\nprint(1)\n```"}])
        script = (
            "watch('value', () => { element.dataset.plotly = typeof Plotly }); element.dataset.plotly = typeof Plotly"
        )
        gr.HTML("<b>drawn</b>", js_on_load=script, elem_id="drawn")
        gr.Dataframe([["a", 1], ["b", 2]], headers=["name", "value"])
        ticks = gr.Textbox(label="Ticks", elem_id="ticks")
        gr.Timer(0.5).tick(lambda: str(time.monotonic()), None, ticks, queue=False, show_progress="hidden")
    return window


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Studio]]:
    patch = pytest.MonkeyPatch()
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    # Gradio asks the environment at every upload: one folder for all servers of this process.
    uploads = tmp_path_factory.mktemp("gradio")
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    patch.setenv("GRADIO_TEMP_DIR", str(uploads))
    patch.setenv("GRADIO_EXAMPLES_CACHE", str(uploads / "examples"))

    def start(**settings: Any) -> Studio:
        home = tmp_path_factory.mktemp("home")
        runs = home / "runs"
        runs.mkdir()
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]

        def resolve(run_id: str, path: str) -> Path | None:
            return runs / run_id / path if (runs / run_id).is_dir() else None

        app = gate.create_app(
            {"en": build_window(), "zh": build_window()},
            gate.GateSettings(downloads=runs, port=port, upload_bytes=UPLOAD_BYTES, **settings),
            resolve,
            say=lambda language, text: {"Sign in": "登录"}.get(text, text) if language == "zh" else text,
            head=f'<script src="{gate.plotly_url()}"></script>',
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", proxy_headers=False, server_header=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive(), "the server did not start"
            time.sleep(0.05)
        return Studio(port, home, runs, uploads)

    yield start
    for server, thread in servers:
        server.should_exit = server.force_exit = True
        thread.join(20)
    patch.undo()


@pytest.fixture(scope="module")
def studio(start: Callable[..., Studio]) -> Studio:
    return start(origins=("https://studio.example",))


@pytest.fixture(scope="module")
def guarded(start: Callable[..., Studio]) -> Studio:
    return start(credentials=gate.Credentials("ada", PASSWORD))


@pytest.fixture
def closed(guarded: Studio, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """The studio with sign-in, where nobody waits however often signing in failed, in this test or in an earlier one."""
    monkeypatch.setattr(gate._Attempts, "longest_wait", 0)
    yield guarded
    # Who signs in has nothing held against him: the next test does not meet this one's failures.
    assert guarded.sign_in().status == 303


def multipart(content: bytes, name: str = "a.txt") -> tuple[bytes, str]:
    head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def upload(studio: Studio, content: bytes, **headers: str) -> Answer:
    body, kind = multipart(content)
    return studio.ask("/en/gradio_api/upload", "POST", body, Content_Type=kind, **headers)


def stored_bytes(studio: Studio) -> int:
    return sum(file.stat().st_size for file in studio.uploads.rglob("*") if file.is_file())


# --- Host -------------------------------------------------------------------------------------------------------------

ROUTES = ["/", "/en/", "/en/config", "/en/theme.css", "/en/gradio_api/startup-events", gate.PLOTLY_PATH, "/nowhere"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "LocalHost:{port}", "[::1]:{port}", "studio.example"]
)
def test_serves_its_own_names(studio: Studio, host: str) -> None:
    assert studio.ask("/en/config", hosts=[host.format(port=studio.port)]).status == 200


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", "localhost.:{port}",
     "user@localhost:{port}", "0.0.0.0:{port}", "studio.example:{port}", ""],
)  # fmt: skip
def test_refuses_a_rebound_host(studio: Studio, host: str, route: str) -> None:
    answer = studio.ask(route, hosts=[host.format(port=studio.port)])
    assert answer.status == 421
    assert f"http://127.0.0.1:{studio.port}" in answer.text


def test_refuses_two_hosts(studio: Studio) -> None:
    assert studio.ask("/en/config", hosts=[f"127.0.0.1:{studio.port}", "evil.example"]).status in (400, 421)


def test_a_forwarded_host_reaches_no_page(studio: Studio) -> None:
    headers = {
        "X_Forwarded_Host": "evil.example",
        "X_Forwarded_Proto": "https",
        "X_Gradio_Server": "http://evil.example",
    }
    answer = studio.ask("/en/config", **headers)
    assert answer.status == 200
    assert "evil.example" not in answer.text
    assert json.loads(answer.body)["root"] == f"{studio.origin}/en"


# --- Origin and Sec-Fetch-Site ----------------------------------------------------------------------------------------


def test_takes_an_upload_from_its_own_page(studio: Studio) -> None:
    assert upload(studio, b"12345", Origin=studio.origin, Sec_Fetch_Site="same-origin").status == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "https://127.0.0.1:{port}", "http://localhost:{port}", "http://127.0.0.1",
     "http://127.0.0.1:{port}.evil.example", "http://127.0.0.1:{port}@evil.example", "file://"],
)  # fmt: skip
def test_refuses_another_origin(studio: Studio, origin: str) -> None:
    before = stored_bytes(studio)
    answer = upload(studio, b"x" * 1000, Origin=origin.format(port=studio.port))
    assert answer.status == 403
    assert stored_bytes(studio) == before


def test_an_origin_belongs_to_its_host(studio: Studio) -> None:
    def ask(origin: str) -> int:
        return studio.ask("/en/config", hosts=["studio.example"], Origin=origin).status

    assert ask("https://studio.example") == 200
    assert ask("http://studio.example") == ask(studio.origin) == 403


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("origin", ["http://evil.example", "{own}"])
def test_sends_no_cors_headers(studio: Studio, route: str, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        answer = studio.ask(
            route, method, Origin=origin.format(own=studio.origin), Access_Control_Request_Method="POST"
        )
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert method == "GET" or answer.status in (403, 404, 405)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
def test_refuses_what_another_site_fetches(studio: Studio, site: str) -> None:
    for route in ROUTES:
        assert studio.ask(route, Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image").status == 403
    assert upload(studio, b"x", Sec_Fetch_Site=site, Sec_Fetch_Mode="cors").status == 403


def test_a_link_on_another_site_may_open_a_page(studio: Studio) -> None:
    visit = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert studio.ask("/", **visit).status == 307
    assert studio.ask("/en/", **visit).status == 200
    assert studio.ask("/en/", **{**visit, "Sec_Fetch_Dest": "iframe"}).status == 403
    assert studio.ask("/en/", "POST", b"", **visit).status == 403
    for path in ("/en/config", "/language/zh", f"{gate.DOWNLOAD_PATH}/run/a", "/en/gradio_api/startup-events"):
        assert studio.ask(path, **visit).status == 403


def test_websockets_are_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the gate let a websocket through")

    settings = gate.GateSettings(downloads=Path())
    guard = gate.Gate(application, settings, gate._Door(settings, ["en"], gate._as_written), ["en"], gate._as_written)
    asyncio.run(guard({"type": "websocket", "path": "/", "headers": [(b"host", b"127.0.0.1:7860")]}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# --- Size -------------------------------------------------------------------------------------------------------------

TOO_MUCH = UPLOAD_BYTES + gate._MULTIPART_BYTES + 1


def test_refuses_an_announced_upload_before_reading_it(studio: Studio) -> None:
    answer = studio.ask(
        "/en/gradio_api/upload", "POST", b"", Content_Length=str(TOO_MUCH), Content_Type="multipart/form-data"
    )
    assert answer.status == 413
    assert answer.headers["Connection"] == "close"


def test_stops_reading_a_chunked_upload_at_the_limit(studio: Studio) -> None:
    before = stored_bytes(studio)
    part, sent = multipart(b"x" * 90_000)[0].removesuffix(b"--b--\r\n"), 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(400):
            sent += 1
            yield part
        yield b"--b--\r\n"

    answer = studio.ask("/en/gradio_api/upload", "POST", parts(), Content_Type="multipart/form-data; boundary=b")
    assert answer.status == 413
    assert "The limit is" in answer.text
    assert sent < 400
    assert stored_bytes(studio) - before < TOO_MUCH


def test_many_small_files_count_together(studio: Studio) -> None:
    one = multipart(b"x" * 90_000)[0].removesuffix(b"--b--\r\n")
    kind = "multipart/form-data; boundary=b"
    few, many = (
        studio.ask("/en/gradio_api/upload", "POST", one * n + b"--b--\r\n", Content_Type=kind) for n in (2, 20)
    )
    assert (few.status, many.status) == (200, 413)


def test_one_file_has_the_limit_that_was_set(studio: Studio) -> None:
    assert upload(studio, b"x" * UPLOAD_BYTES).status == 200
    assert upload(studio, b"x" * (UPLOAD_BYTES + 1)).status == 413


def test_other_bodies_have_their_own_limit(studio: Studio) -> None:
    for length in (gate._BODY_BYTES + 1, 10**30):
        answer = studio.ask("/en/gradio_api/queue/join", "POST", b"", Content_Length=str(length))
        assert answer.status in (400, 413)
    chunks = (b"x" * 2**20 for _ in range(40))
    assert studio.ask("/en/gradio_api/run/greet", "POST", chunks, Content_Type="application/json").status == 413


# --- Headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "route", [*ROUTES, "/en/gradio_api/file=/etc/passwd", "/en/gradio_api/proxy=x", "/en/assets/none"]
)
def test_every_answer_carries_the_security_headers(studio: Studio, route: str) -> None:
    answer = studio.ask(route)
    for name, value in gate._HEADERS.items():
        assert answer.headers.get_all(name) == [value]
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy and "*" not in policy


# --- Gradio's own routes ----------------------------------------------------------------------------------------------

CLOSED = [
    ("GET", "/en/gradio_api/proxy=https://a.hf.space/x"),
    ("GET", "/en/monitoring"),
    ("GET", "/en/monitoring/summary"),
    ("GET", "/en/monitoring/key"),
    ("GET", "/en/gradio_api/deep_link?session_hash=a"),
    ("GET", "/en/gradio_api/openapi.json"),
    ("GET", "/en/openapi.json"),
    ("GET", "/en/docs"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/en/gradio_api/dev/reload"),
    ("GET", "/en/gradio_api/mcp/"),
    ("POST", "/en/gradio_api/mcp/"),
    ("GET", "/en/gradio_api/runs"),
    ("GET", "/en/gradio_api/run-history/buckets"),
    ("GET", "/en/gradio_api/vibe-code"),
    ("POST", "/en/gradio_api/vibe-edit"),
    ("POST", "/en/gradio_api/process_recording"),
    ("POST", "/en/gradio_api/component_server"),
    ("GET", "/en/gradio_api/custom_component/a/client/component/b"),
    ("POST", "/en/gradio_api/call/greet"),
    ("POST", "/en/gradio_api/api/greet"),
    ("POST", "/en/login"),
    ("GET", "/en/logout"),
    ("GET", "/en/gradio_api/token"),
    ("GET", "/en/gradio_api/queue/status"),
    ("GET", "/en/gradio_api/file/etc/passwd"),
    ("GET", "/en/gradio_api/file=http://evil.example/x"),
    ("GET", "/en/gradio_api/file=HTTP%3A//evil.example/x"),
    ("GET", "/en/gradio_api/file=//evil.example/share"),
    ("GET", "/en/gradio_api/file=%5C%5Cevil.example%5Cshare"),
    ("GET", "/en//gradio_api/monitoring"),
    ("GET", "/en/%6donitoring/summary"),
    ("PUT", "/en/config"),
    ("DELETE", "/en/"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_the_window_does_not_need_is_not_there(studio: Studio, method: str, path: str) -> None:
    assert studio.ask(path, method, b"{}" if method == "POST" else None, Content_Type="application/json").status == 404


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "%2Fetc%2Fpasswd", "../../../../etc/passwd", "..%2f..%2f..%2fetc/passwd", f"{quote(__file__)}"],
)
def test_gradio_reads_no_file_of_the_machine(studio: Studio, path: str) -> None:
    answer = studio.ask(f"/en/gradio_api/file={path}")
    assert answer.status in (403, 404)
    assert b"root:" not in answer.body and b"import" not in answer.body


def test_gradio_takes_nothing_in_place_of_an_upload(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("12345")
    asked: list[Any] = []
    monkeypatch.setattr(safehttpx, "async_validate_url", lambda host: asked.append(host))

    def measure(path: str) -> Answer:
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        return studio.ask(
            "/en/gradio_api/run/measure", "POST", json.dumps(data).encode(), Content_Type="application/json"
        )

    uploaded = json.loads(upload(studio, b"123456").body)[0]
    assert json.loads(measure(uploaded).body)["data"] == [6]
    for path in (str(secret), "/etc/passwd", __file__, f"{uploaded}/../../../../secret.txt", "https://evil.example/x"):
        refused = measure(path)
        assert refused.status == 500
        assert json.loads(refused.body) == {"error": None}
    assert asked == []


def test_an_uploaded_page_is_not_shown_as_one(studio: Studio) -> None:
    body, kind = multipart(b"<script>alert(1)</script>", "a.html")
    path = json.loads(studio.ask("/en/gradio_api/upload", "POST", body, Content_Type=kind).body)[0]
    answer = studio.ask(f"/en/gradio_api/file={quote(path)}")
    assert answer.status == 200
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert "sandbox" in answer.headers["Content-Security-Policy"]


# --- Downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(studio: Studio) -> Path:
    folder = studio.runs / "20260101-120000-a"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights.bin").write_bytes(bytes(range(256)) * 5000)
    (folder / "adapter" / "empty.txt").write_bytes(b"")
    (folder / "report 1 é.html").write_text("<script>alert(1)</script>")
    other = studio.runs / "20260101-130000-b"
    other.mkdir()
    (other / "private.txt").write_text("secret")
    (studio.home / "outside.txt").write_text("secret")
    (studio.runs / "loose.txt").write_text("secret")
    (folder / "link-out").symlink_to(studio.home / "outside.txt")
    (folder / "link-other").symlink_to(other / "private.txt")
    (folder / "link-folder").symlink_to(studio.home, target_is_directory=True)
    (folder / "link-in").symlink_to(folder / "adapter" / "empty.txt")
    (studio.runs / "linked").symlink_to(studio.home, target_is_directory=True)
    return folder


def test_a_file_leaves_as_an_attachment(studio: Studio, run: Path) -> None:
    answer = studio.ask(f"{gate.DOWNLOAD_PATH}/{run.name}/{quote('report 1 é.html')}")
    assert (answer.status, answer.body) == (200, b"<script>alert(1)</script>")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == "attachment; filename*=utf-8''report%201%20%C3%A9.html"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    weights = studio.ask(f"{gate.DOWNLOAD_PATH}/{run.name}/adapter/weights.bin")
    assert weights.body == (run / "adapter" / "weights.bin").read_bytes()
    assert studio.ask(f"{gate.DOWNLOAD_PATH}/{run.name}/link-in").status == 200


@pytest.mark.parametrize(
    "path",
    ["{run}/../../outside.txt", "{run}/..%2f..%2foutside.txt", "{run}/%2e%2e/%2e%2e/outside.txt", "{run}/adapter/../../loose.txt",
     "{run}/..%5c..%5coutside.txt", "{run}/adapter%5cweights.bin", "{run}//etc/passwd", "{run}/%2fetc/passwd", "{run}/etc/passwd",
     "{run}/C:%5cWindows%5cwin.ini", "{run}/C:/Windows/win.ini", "{run}/adapter/empty.txt:stream", "{run}/./adapter/empty.txt",
     "{run}/adapter//empty.txt", "{run}/adapter/empty.txt%00", "{run}/link-out", "{run}/link-other", "{run}/link-folder/outside.txt",
     "{run}/adapter", "{run}/", "{run}/nothing", "../outside.txt", "%2e%2e/outside.txt", "../loose.txt", "./loose.txt", "%2e/loose.txt",
     "linked/outside.txt", "loose.txt/", "nobody/x", "20260101-130000-b/../{run}/adapter/empty.txt", "..%5coutside.txt/x"],
)  # fmt: skip
def test_nothing_else_leaves(studio: Studio, run: Path, path: str) -> None:
    answer = studio.ask(f"{gate.DOWNLOAD_PATH}/{path.format(run=run.name)}")
    assert answer.status == 404
    assert b"secret" not in answer.body


def test_a_growing_file_is_sent_as_long_as_it_was(studio: Studio, run: Path) -> None:
    log = run / "log.txt"
    log.write_bytes(b"line\n" * 10)
    stop = threading.Event()

    def grow() -> None:
        with log.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"line\n" * 100)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        for _ in range(5):
            answer = studio.ask(f"{gate.DOWNLOAD_PATH}/{run.name}/log.txt")
            assert len(answer.body) == int(answer.headers["Content-Length"]) > 0
    finally:
        stop.set()
        writer.join()
        log.unlink()


def test_a_run_leaves_packed_when_it_has_ended(studio: Studio, run: Path) -> None:
    folder = studio.runs / "20260101-140000-packed"
    folder.mkdir()
    assert studio.ask(f"{gate.PACK_PATH}/{folder.name}.zip").status == 404, "there are no settings in it"
    (folder / "config.yaml").write_text("name: packed\ndata: {train: /srv/people/ada/rows.jsonl}\n")
    (folder / "log.txt").write_text("private")
    assert studio.ask(f"{gate.PACK_PATH}/{folder.name}.zip").status == 404, "it waits"
    (folder / "result.json").write_text('{"outcome": "stopped"}')
    answer = studio.ask(f"{gate.PACK_PATH}/{folder.name}.zip")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip")
    assert "attachment" in answer.headers["Content-Disposition"] and b"/srv/people" not in answer.body
    names = {Path(name).name for name in zipfile.ZipFile(io.BytesIO(answer.body)).namelist()}
    assert names == {"config.yaml", "result.json"}
    for other in ("../20260101-140000-packed", "..%2f..%2foutside", "linked", "nothing"):
        assert studio.ask(f"{gate.PACK_PATH}/{other}.zip").status in (404, 400), other


def test_a_folder_leaves_as_a_zip(studio: Studio, run: Path, tmp_path: Path) -> None:
    answer = studio.ask(f"{gate.DOWNLOAD_PATH}/{run.name}.zip")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(answer.body))
    assert archive.testzip() is None
    inside = {name.removeprefix(f"{run.name}/") for name in archive.namelist()}
    assert inside == {"adapter/weights.bin", "adapter/empty.txt", "report 1 é.html", "link-in"}
    assert archive.read(f"{run.name}/adapter/weights.bin") == (run / "adapter" / "weights.bin").read_bytes()
    part = studio.ask(f"{gate.DOWNLOAD_PATH}/{run.name}.zip?part=adapter")
    assert f"{run.name}-adapter.zip" in part.headers["Content-Disposition"]
    assert len(zipfile.ZipFile(io.BytesIO(part.body)).namelist()) == 2
    if unzip := shutil.which("unzip"):
        (tmp_path / "run.zip").write_bytes(answer.body)
        assert subprocess.run([unzip, "-tq", tmp_path / "run.zip"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "path",
    ["../runs.zip", "..zip", "nobody.zip", "linked.zip", "{run}.zip?part=..", "{run}.zip?part=../20260101-130000-b",
     "{run}.zip?part=/etc", "{run}.zip?part=link-folder", "{run}.zip?part=..%5c..", "{run}.zip?part=adapter/weights.bin"],
)  # fmt: skip
def test_no_other_folder_is_packed(studio: Studio, run: Path, path: str) -> None:
    assert studio.ask(f"{gate.DOWNLOAD_PATH}/{path.format(run=run.name)}").status == 404


def test_a_zip_is_never_whole_in_memory(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 20 * 2**20)
    chunks = [len(chunk) for chunk in gate.stream_zip(tmp_path.resolve(), tmp_path.resolve(), "run")]
    assert sum(chunks) > 20 * 2**20
    assert max(chunks) < 2 * 2**20


# --- Language and plotly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cookie", "accepted", "expected"),
    [("", "", "en"), ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("", "en;q=0.2, zh;q=0.3", "zh"), ("", "zh;q=0, en;q=0.1", "en"), ("", "zh;q=0", "en"),
     ("", "fr, de;q=0.9, zh;q=0.1", "zh"), ("", "ZH-Hant-TW", "zh"), ("", "*", "en"), ("", ";;q=,zh;q=2,,", "en"),
     ("zh", "en", "zh"), ("en", "zh", "en"), ("../x", "zh", "zh")],
)  # fmt: skip
def test_the_first_page_speaks_the_visitors_language(studio: Studio, cookie: str, accepted: str, expected: str) -> None:
    headers = {"Accept_Language": accepted, "Cookie": f"{gate.LANGUAGE_COOKIE}={cookie}"}
    assert studio.ask("/", **headers).headers["Location"] == f"/{expected}/"


def test_the_language_is_kept(studio: Studio) -> None:
    answer = studio.ask("/language/zh?tab=runs")
    assert (answer.status, answer.headers["Location"]) == (303, "/zh/?tab=runs")
    assert f"{gate.LANGUAGE_COOKIE}=zh" in answer.headers["Set-Cookie"]
    for code in ("xx", "..", "%2f%2fevil.example", "zh%0d%0aX:1"):
        answer = studio.ask(f"/language/{code}")
        assert answer.status == 404 and answer.headers["Set-Cookie"] is None


def test_plotly_is_served_from_here_and_kept(studio: Studio) -> None:
    plain, packed = studio.ask(gate.plotly_url()), studio.ask(gate.plotly_url(), Accept_Encoding="gzip, br")
    assert b"plotly.js" in plain.body[:200]
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert "immutable" in packed.headers["Cache-Control"]
    assert studio.ask(f"{gate.PLOTLY_PATH}?v=0").headers["Cache-Control"] == "no-cache"


# --- Sign-in ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/en/config", "/en/theme.css", "/en/assets/x.js", "/en/gradio_api/startup-events", "/en/gradio_api/heartbeat/a",
     "/en/gradio_api/file=x", "/en/monitoring", gate.PLOTLY_PATH, f"{gate.DOWNLOAD_PATH}/a/b", "/language/en", "/nowhere",
     f"/en/..{gate.SIGN_IN_PATH}", f"{gate.SIGN_IN_PATH}/x"],
)  # fmt: skip
@pytest.mark.parametrize("cookie", ["", "atelier_session_{port}=", "atelier_session_{port}=guess", "access-token-x=y"])
def test_nothing_is_served_before_signing_in(closed: Studio, path: str, cookie: str) -> None:
    assert closed.ask(path, Cookie=cookie.format(port=closed.port)).status == 401


def test_posts_are_refused_before_signing_in(closed: Studio) -> None:
    assert upload(closed, b"x").status == 401
    assert (
        closed.ask("/en/gradio_api/run/greet", "POST", b'{"data": ["x"]}', Content_Type="application/json").status
        == 401
    )
    assert closed.ask(gate.SIGN_OUT_PATH, "POST", b"").status == 401


def test_the_sign_in_page_stands_alone(closed: Studio) -> None:
    assert closed.ask("/").headers["Location"] == closed.ask("/en/").headers["Location"] == gate.SIGN_IN_PATH
    page = closed.ask(gate.SIGN_IN_PATH, Accept_Language="zh")
    assert page.status == 200
    assert '<html lang="zh">' in page.text and "登录" in page.text
    assert not re.search(r"src=|href=|url\(|https?:", page.text)


def test_signing_in_and_out(closed: Studio) -> None:
    answer = closed.sign_in()
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    session = cookie.partition(";")[0]
    assert len(session.partition("=")[2]) >= 43
    assert closed.ask("/en/config", Cookie=session).status == 200
    assert closed.sign_in().headers["Set-Cookie"].partition(";")[0] != session
    assert closed.ask(gate.SIGN_OUT_PATH, Cookie=session).status == 405
    assert closed.ask(gate.SIGN_OUT_PATH, "POST", b"", Cookie=session).status == 303
    assert closed.ask("/en/config", Cookie=session).status == 401


def test_a_session_ends(closed: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    session = closed.sign_in().headers["Set-Cookie"].partition(";")[0]
    now = time.monotonic()
    # Only the gate's own clock: the event loop of the server goes by the real one.
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: now + gate._SESSION_SECONDS - 60))
    assert closed.ask("/en/config", Cookie=session).status == 200
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: now + 2 * gate._SESSION_SECONDS))
    assert closed.ask("/en/config", Cookie=session).status == 401


@pytest.mark.parametrize(
    ("user", "password"), [("ada", "wrong"), ("eve", PASSWORD), ("", ""), ("ada", PASSWORD + "x"), ("é", "密")]
)
def test_wrong_credentials(closed: Studio, user: str, password: str) -> None:
    answer = closed.sign_in(user, password)
    assert answer.status == 401
    assert answer.headers["Set-Cookie"] is None
    assert "do not belong together" in answer.text


def test_odd_forms(closed: Studio) -> None:
    def post(body: bytes, kind: str = FORM["Content-Type"]) -> int:
        return closed.ask(gate.SIGN_IN_PATH, "POST", body, Content_Type=kind).status

    file, kind = multipart(b"x")
    assert post(b"") == post(b"user=ada") == post(file, kind) == 401
    assert post(b"\xff\xfe=%ff", "text/plain") == 401
    assert post(b"user=ada&password=" + b"x" * gate._SIGN_IN_BYTES) == 413
    assert closed.ask(gate.SIGN_IN_PATH, "POST", b"", Origin="http://evil.example").status == 403


def test_guessing_is_throttled(start: Callable[..., Studio]) -> None:
    studio = start(credentials=gate.Credentials("ada", PASSWORD))
    answers = [studio.sign_in(password=f"guess {n}") for n in range(gate._Attempts.free + 2)]
    assert [answer.status for answer in answers] == [401] * gate._Attempts.free + [429] * 2
    assert int(answers[-1].headers["Retry-After"]) >= 1
    blocked = studio.sign_in()
    assert blocked.status == 429 and blocked.headers["Set-Cookie"] is None
    time.sleep(int(blocked.headers["Retry-After"]))
    assert studio.sign_in().status == 303
    assert studio.sign_in(password="wrong").status == 401


def test_the_wait_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: now))
    attempts, waits = gate._Attempts(), []
    for _ in range(20):
        attempts.fail("a")
        waits.append(attempts.wait("a"))
    assert waits[:8] == [0, 0, 0, 0, 1, 2, 4, 8]
    assert waits[-1] == attempts.longest_wait
    assert attempts.wait("b") == 0
    now += attempts.longest_wait
    assert attempts.wait("a") == 0


def test_the_throttle_forgets_the_oldest_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate._Attempts, "most_clients", 3)
    attempts = gate._Attempts()
    for client in "abacd":
        attempts.fail(client)
    assert list(attempts._failures) == ["a", "c", "d"]


def test_a_link_from_elsewhere_finds_its_session_again(closed: Studio) -> None:
    visit = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    answer = closed.ask("/en/", **visit)
    assert answer.status == 200 and 'http-equiv="refresh"' in answer.text
    assert b"gradio" not in answer.body


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "::", "", "192.168.1.5", "fe80::1", "some-name", "127.0.0.1.evil.example"]
)
def test_listens_elsewhere_only_with_sign_in(address: str) -> None:
    open_to_all = gate.GateSettings(downloads=Path(), address=address)
    with pytest.raises(Problem, match="without a sign-in"):
        gate.check_settings(open_to_all)
    with pytest.raises(Problem, match="without a sign-in"):
        gate.create_app({}, open_to_all, lambda run_id, path: None)
    gate.check_settings(
        gate.GateSettings(downloads=Path(), address=address, credentials=gate.Credentials("a", "b" * 8))
    )


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_sign_in(address: str) -> None:
    gate.check_settings(gate.GateSettings(downloads=Path(), address=address))


def test_hosts_follow_address_port_and_origins() -> None:
    def hosts(**settings: Any) -> set[str]:
        return set(gate.GateSettings(downloads=Path(), **settings).hosts())

    assert hosts(port=80) == {"127.0.0.1", "localhost", "[::1]"}
    assert hosts(address="fd00::1", port=9) - hosts(port=9) == {"[fd00::1]:9"}
    assert hosts(address="0.0.0.0") == hosts()
    assert hosts(origins=("HTTPS://A.example:443/", "http://b:81")) - hosts() == {"a.example", "b:81"}


@pytest.mark.parametrize(
    "origin", ["a.example", "ftp://a", "http://", "http://*", "http://a/b", "http://a:x", "*", "null", ""]
)
def test_refuses_what_is_no_origin(origin: str) -> None:
    with pytest.raises(Problem, match="not an address"):
        gate.check_settings(gate.GateSettings(downloads=Path(), origins=(origin,)))


def test_credentials_come_from_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_SIGN_IN", "ada:a:long:password")
    credentials = gate.Credentials.read()
    assert credentials == gate.Credentials("ada", "a:long:password")
    assert "password" not in repr(credentials)
    assert "ATELIER_SIGN_IN" not in os.environ
    assert gate.Credentials.read() is None


@pytest.mark.parametrize("line", ["", "ada", ":password1", "ada:", "ada:short"])
def test_refuses_weak_credentials(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_SIGN_IN", line)
    with pytest.raises(Problem) as problem:
        gate.Credentials.read()
    assert "short" not in str(problem.value).split()


def test_credentials_come_from_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "sign-in"
    with pytest.raises(Problem, match="cannot be read"):
        gate.Credentials.read(file)
    file.write_text("ada:long enough\n")
    file.chmod(0o600)
    assert gate.Credentials.read(file) == gate.Credentials("ada", "long enough")
    if os.name == "posix":
        file.chmod(0o640)
        with pytest.raises(Problem, match="other users"):
            gate.Credentials.read(file)


def test_the_environment_of_gradio_is_dropped(tmp_path: Path) -> None:
    script = """
import json, os, pathlib, sys
from studio import gate
assert "gradio" not in sys.modules, "the gate imports gradio too early"
home = pathlib.Path(sys.argv[1])
gate.drop_gradio_environment(home)
import gradio as gr, huggingface_hub
with gr.Blocks() as blocks:
    gr.Textbox()
try:
    gate.drop_gradio_environment(home)
except RuntimeError:
    late = True
print(json.dumps({
    "names": sorted(name for name in os.environ if name.startswith("GRADIO_")),
    "analytics": blocks.analytics_enabled,
    "folder": gr.utils.get_upload_folder(),
    "silent": huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY,
    "modes": [oct(folder.stat().st_mode & 0o777) for folder in (home, home / "gradio")],
    "late": late,
    "torch": "torch" in sys.modules,
}))
"""
    home = tmp_path / "home"
    (home / "gradio").mkdir(parents=True)
    old, new = home / "gradio" / "tmpold", home / "gradio" / "tmpnew"
    for part in (old, new):
        part.write_bytes(b"part")
    os.utime(old, (0, 0))
    hostile = {
        "GRADIO_SHARE": "True",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_ANALYTICS_ENABLED": "True",
        "GRADIO_ROOT_PATH": "x",
    }
    result = subprocess.run(
        [sys.executable, "-c", script, str(home)],
        env={**os.environ, **hostile, "GRADIO_TEMP_DIR": str(tmp_path)},
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["names"] == ["GRADIO_ANALYTICS_ENABLED", "GRADIO_EXAMPLES_CACHE", "GRADIO_TEMP_DIR"]
    assert seen["analytics"] is False and seen["silent"] and seen["late"] and not seen["torch"]
    assert seen["folder"] == str(home / "gradio")
    assert new.exists() and not old.exists()
    if os.name == "posix":
        assert seen["modes"] == ["0o700", "0o700"]


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    must = os.environ.get("CI") == "true"
    try:
        from playwright import sync_api as playwright
    except ImportError:
        pytest.fail("CI needs playwright") if must else pytest.skip("no playwright: the window was not looked at")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.fail("CI needs a browser") if must else pytest.skip("no chromium here: the window was not looked at")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@dataclass
class Visit:
    page: Any
    errors: list[str]
    outside: list[str]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    context = browser.new_context()
    page, errors, outside = context.new_page(), [], []
    page.set_default_timeout(120_000)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda answer: errors.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    local = re.compile(r"(https?://(127\.0\.0\.1|localhost):|data:|blob:)")
    page.on("request", lambda request: None if local.match(request.url) else outside.append(request.url))
    yield Visit(page, errors, outside)
    context.close()


def wait_for_value(page: Any, name: str, value: str) -> None:
    page.wait_for_function(
        "([name, value]) => [...document.querySelectorAll(`#${name} textarea, #${name} input`)].some(e => e.value === value)",
        arg=[name, value],
    )


def use_window(visit: Visit) -> None:
    """Click, type, upload and wait as a visitor does."""
    page = visit.page
    page.wait_for_selector("#greet", timeout=60_000)
    page.fill("#name textarea, #name input", "Ada")
    page.click("#greet")
    wait_for_value(page, "greeting", "hello Ada")
    page.set_input_files("input[type=file]", files=[{"name": "a.txt", "mimeType": "text/plain", "buffer": b"12345"}])
    wait_for_value(page, "size", "5")
    first = page.input_value("#ticks textarea, #ticks input")
    page.wait_for_function(
        "first => document.querySelector('#ticks textarea, #ticks input').value !== first", arg=first
    )
    page.wait_for_function("typeof Plotly === 'object'")
    assert page.evaluate("!!document.querySelector('[data-plotly]')")
    assert page.locator("text=print").count() and page.locator("table").count()


@pytest.mark.browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_window_works_through_the_gate(studio: Studio, visit: Visit, language: str) -> None:
    visit.page.goto(f"{studio.origin}/language/{language}")
    use_window(visit)
    assert visit.page.url == f"{studio.origin}/{language}/"
    assert visit.errors == []
    assert visit.outside == []


@pytest.mark.browser
def test_the_window_sends_nothing_elsewhere(studio: Studio, visit: Visit) -> None:
    visit.page.goto(f"{studio.origin}/en/")
    visit.page.wait_for_selector("#greet", timeout=60_000)
    blocked = visit.page.evaluate(
        """async () => {
            const blocked = [];
            addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));
            fetch('https://evil.example/', {mode: 'no-cors'}).catch(() => 0);
            new Image().src = 'https://evil.example/x.png';
            document.head.append(Object.assign(document.createElement('script'), {src: 'https://evil.example/x.js'}));
            await new Promise(resolve => setTimeout(resolve, 500));
            return blocked;
        }"""
    )
    assert set(blocked) == {"connect-src", "img-src", "script-src-elem"}


@pytest.mark.browser
def test_a_visitor_signs_in(guarded: Studio, visit: Visit) -> None:
    page = visit.page
    page.goto(guarded.origin)
    page.wait_for_url(f"**{gate.SIGN_IN_PATH}")
    page.fill("#user", "ada")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    use_window(visit)
    assert visit.errors == []
    assert visit.outside == []
    assert page.evaluate("document.cookie") == ""


@pytest.mark.browser
def test_another_site_can_link_but_neither_frame_nor_send(studio: Studio, guarded: Studio, visit: Visit) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a href="{guarded.origin}/en/">a link</a><iframe src="{studio.origin}/en/">'.encode())

        def log_message(self, *args: Any) -> None: ...

    page, before = visit.page, stored_bytes(studio)
    page.goto(guarded.origin)
    page.fill("#user", "ada")
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_selector("#greet", timeout=60_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        framed: list[int] = []
        page.on(
            "response", lambda answer: framed.append(answer.status) if answer.url.startswith(studio.origin) else None
        )
        page.goto(f"http://localhost:{server.server_port}/")
        page.wait_for_timeout(500)
        assert framed == [403]
        script = """async url => {
            const form = new FormData();
            form.append('files', new File(['x'.repeat(1000)], 'a.txt'));
            try { await fetch(url, {method: 'POST', mode: 'no-cors', body: form}); return true } catch { return false }
        }"""
        assert page.evaluate(script, f"{studio.origin}/en/gradio_api/upload") is False
        assert stored_bytes(studio) == before
        page.click("text=a link")
        page.wait_for_selector("#greet", timeout=60_000)
    finally:
        server.shutdown()
        server.server_close()
