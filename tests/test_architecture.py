"""Who may import whom, and where torch may live."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ground import ROOT

HEAVY = {"torch", "transformers", "accelerate", "peft", "sklearn", "sacrebleu", "rouge_score"}
CORE_TOP = {"regex", "pydantic", "pydantic_core", "yaml", "psutil", "huggingface_hub", "filelock", "safetensors"}
ALLOWED = [
    # folder, what it may import besides the standard library and itself
    ("core/likeness.py", {"numpy"}),
    ("core/engine/quantization.py", {"core", "torch", "transformers", "bitsandbytes*"}),
    ("core/engine/inspection.py", {"core", "torch", "transformers", "numpy", "pyarrow", "regex"}),
    ("core/engine/helper.py", {"core"}),
    ("core/engine/crew.py", {"core", "transformers", "numpy", "pyarrow"}),
    ("core/engine/survey.py", {"core", "numpy", "pyarrow"}),
    ("core/engine/rows.py", {"core", "pyarrow"}),
    ("core/engine/spelling.py", {"core.words", "transformers", "tokenizers"}),
    ("core/engine", {"core", "torch", "transformers", "accelerate", "safetensors", "jinja2", "psutil", "pydantic", "starlette", "uvicorn"}),
    ("core/methods", {"core.config", "core.methods", "core.problem", "core.targets", "torch*", "pydantic"}),
    ("core/objectives", {"core.config", "core.objectives", "core.problem", "core.formats", "torch*", "sklearn*", "sacrebleu*", "rouge_score*"}),
    ("core/formats", {"core.formats", "core.problem", "core.config"}),
    ("core/playground", {"core.playground", "torch*", "transformers*", "tokenizers*", "safetensors*", "numpy*"}),
    ("core/__main__.py", {"core"}),
    ("core/notice.py", {"core", "httpcore", "httpx"}),
    ("core/runs.py", {"core", *CORE_TOP, "numpy*"}),
    ("core/advice.py", {"core", "numpy"}),
    ("core/readers", {"core.formats", "core.problem", "core.readers", "pyarrow", "openpyxl"}),
    ("core/sources.py", {"core", "datasets"}),
    ("core/judgement.py", {"core", "numpy", "regex", "xxhash"}),
    ("core/spool.py", {"core.columns", "core.problem", "core.runs", "pyarrow"}),
    ("core/columns.py", {"numpy", "pyarrow"}),
    ("core/examples.py", {"core.formats", "core.spool", "orjson", "pyarrow"}),
    ("core", {"core", *CORE_TOP}),
    ("studio", {"core", "studio", "filelock", "gradio", "huggingface_hub", "plotly", "yaml", "psutil", "httpx", "fastapi", "starlette", "uvicorn", "pydantic", "multipart", "python_multipart", "anyio", "numpy", "orjson", "pyarrow", "tokenizers"}),
    ("app.py", {"studio", "core", "uvicorn"}),
]  # fmt: skip


def sources() -> Iterator[Path]:
    for folder in ("core", "studio"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield ROOT / "app.py"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports, and whether it does so inside a function or for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test))
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for name in node.names:
                # `from core import methods` is an import of core.methods
                yield (
                    f"{node.module}.{name.name}" if node.module in ("core", "studio") else str(node.module),
                    id(node) in inner,
                )


def rule(path: Path) -> tuple[str, set[str]]:
    relative = path.relative_to(ROOT).as_posix()
    return next(
        (folder, allowed) for folder, allowed in ALLOWED if relative == folder or relative.startswith(folder + "/")
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_keep_to_the_house(path: Path) -> None:
    folder, allowed = rule(path)
    for module, inner in imports(path):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top in HEAVY and f"{top}*" in allowed:
            assert inner, f"{path.name} may import {top} inside functions only"
            continue
        fits = any(module == name or module.startswith(name + ".") for name in (a.rstrip("*") for a in allowed))
        assert fits, f"{folder} may not import {module}"
        if module.startswith("core.engine"):
            assert folder.startswith("core/engine") or folder == "core/__main__.py", (
                f"{path.name} may not import the engine"
            )
            assert inner or folder.startswith("core/engine"), (
                "the command line loads torch only when a command needs it"
            )


def test_core_never_knows_the_studio() -> None:
    for path in (ROOT / "core").rglob("*.py"):
        assert not any(module.split(".")[0] in ("studio", "gradio", "app") for module, _ in imports(path)), path


def test_listing_everything_loads_no_torch() -> None:
    code = (
        "import sys; from core import methods, objectives, formats, presets, runs, fit, model, dataset;"
        "methods.catalogue(); objectives.catalogue(); formats.formats(); presets.resolve('chat', 'tiny');"
        "assert not {'torch', 'transformers', 'gradio'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_rows_are_spelled_without_torch() -> None:
    """A process that only spells starts in a third of the time."""
    code = "import sys; sys.modules['torch'] = None; from core.engine import crew"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_nothing_is_unpickled_and_no_shell_is_used() -> None:
    forbidden = re.compile(
        r"\b(pickle|marshal|shelve)\b\.|torch\.load\(|shell=True|os\.system\(|trust_remote_code=True|yaml\.load\(|\beval\(|\bexec\("
    )
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = forbidden.search(line)
            assert not found or ".eval(" in line, f"{path.name}:{number}: {line.strip()}"


def test_every_module_opens_with_a_sentence() -> None:
    for path in sources():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert text.split("\n")[0].rstrip().endswith((".", "?")), path


def test_every_signature_is_typed() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [
                    a
                    for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    if a.arg not in ("self", "cls")
                ]
                assert all(a.annotation for a in arguments), f"{path.name}: {node.name}"
                assert node.returns or node.name == "__init__", f"{path.name}: {node.name}"


def test_nothing_of_this_machine_is_in_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(rb"(?<![\w.:/])/(home|root|Users|work|opt|tmp)/\w|@ file:")
    for name in filter(None, tracked.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".safetensors", ".png") and path != Path(__file__).resolve():
            assert not pattern.search(path.read_bytes()), name


def test_the_method_that_contributing_shows_is_the_file_whole() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    name, code = re.search(r"This is all of `(core/methods/\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL).groups()  # type: ignore[union-attr]
    assert code == (ROOT / name).read_text(encoding="utf-8")
