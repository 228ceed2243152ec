"""Export: the adapter in PEFT's layout, as plain LoRA, or the merged model as a folder that transformers loads."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core import methods, objectives
from core.config import Config
from core.engine.adapt import Adapted, Weights
from core.engine.adapter_files import PREFIX, check_bytes, digest, public_name
from core.engine.device import choose_dtype, find_device
from core.engine.layers import cannot_merge
from core.engine.log import Log
from core.engine.model import end_token_ids, load_model
from core.engine.quantization import dequantized_weights
from core.engine.tokens import PLAIN_TEMPLATE, Tokens
from core.engine.wishes import Interrupted
from core.formats import Message
from core.loading import write_lines
from core.model import locate
from core.objectives import Objective
from core.problem import Problem
from core.runs import ExportConfig, Run, find_id, write_whole

Progress = Callable[[str], None]
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "atelier.json")
_NAME = "exported"
_STAGES = {
    "adapter": ["copying"],
    "lora": ["loading_model", "saving", "checking"],
    "merged": ["loading_model", "merging", "saving", "checking"],
}
To = Literal["adapter", "lora", "merged"]
MergeBase = Literal["original", "dequantised"]


class Stopped(Exception):
    """The user asked to stop."""


def export_job(run: Run, config: ExportConfig) -> dict[str, Any]:
    """Do an export that the window asked for; the files go to the job's own `export` folder."""
    log = Log(run)
    stages = _STAGES[config.to]

    def progress(doing: str) -> None:
        if run.take("stop"):
            raise Stopped
        log.write(step=stages.index(doing) + 1, steps=len(stages), doing=doing)

    try:
        facts = export(
            find_id(config.run), config.to, run.folder / "export", config.dtype, progress, merge_base=config.merge_base
        )
    except (Stopped, Interrupted):
        return {"outcome": "stopped", "message": ""}
    return {"outcome": "completed", "step": len(stages), "steps": len(stages)} | facts


def export(
    run: Run,
    to: To,
    out: Path,
    dtype: str = "auto",
    progress: Progress = lambda doing: None,
    *,
    merge_base: MergeBase = "original",
) -> dict[str, Any]:
    """Write what a run learned to a folder.

    Args:
        merge_base: into which base a run on a quantised one is merged: the original, whose weights are exact but not
            those that the adapter was trained beside, or the dequantised one, which answers as was tested.

    Returns:
        {"files": [...], "difference": largest difference of a logit between what was saved and the applied adapter};
        of a merged run on a quantised base also its merge_base, and tested_difference, the same from what was tested:
        the adapter on the quantised base.

    Raises:
        Problem: when the run has learned nothing yet, its method has no such form, the folder is not empty, or what was
            saved does not compute what the adapter did.
    """
    if not run.has_adapter():
        raise Problem(
            "The run {run} has no adapter yet.",
            to_do="Wait until it has saved one, or choose another run.",
            run=run.title,
        )
    config = run.config()
    check_method(config.method, to)
    if out.is_dir() and any(out.iterdir()):
        raise Problem("The folder {out} is not empty.", to_do="Name a new one.", out=out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(
            "The folder {out} cannot be made.", "{error}.", "Name another.", out=out, error=error.strerror
        ) from None
    facts: dict[str, Any] = {}
    try:
        if to == "adapter":
            progress("copying")
            _export_adapter(run, out)
        elif to == "lora":
            facts = _export_lora(run, config, out, dtype, progress)
        else:
            facts = _export_merged(run, config, out, dtype, merge_base, progress)
    except BaseException:
        for path in out.iterdir():  # it was empty: a part of a model must not be taken for a whole one
            path.unlink()
        raise
    write_whole(out / "README.md", model_card(run, config, to, facts))
    return facts | {"files": sorted(path.name for path in out.iterdir())}


def check_method(method: Any, to: str) -> None:
    """Raise a Problem when what this method learns cannot be taken along in that form."""
    if to == "merged" and not method.merges:
        raise cannot_merge(method)
    if to == "lora" and not getattr(method, "is_low_rank", False):
        raise Problem(
            "An adapter of the method {method} cannot be written as plain LoRA.",
            "What it learned is no product of two thin matrices.",
            "Export it merged, or as it is." if method.merges else "Export it as it is.",
            method=method.title,
        )


def _export_adapter(run: Run, out: Path) -> None:
    check_bytes(run.folder / "adapter")
    for name in _ADAPTER_FILES:
        write_whole(out / name, (run.folder / "adapter" / name).read_bytes())
    _write_template(run, out)


def _write_template(run: Run, out: Path) -> None:
    if (template := _lent_template(run)) is not None:
        write_whole(out / "chat_template.jinja", template)


def _lent_template(run: Run) -> str | None:
    """The plain template where the run was trained with it: the base has another or none, and who uses what was learned
    needs it."""
    config = run.config()
    plain = config.data.template == "plain" or not _about(run).get("own_template", True)
    writes = objectives.find(config.task).model_kind == "causal_lm" and config.task != "text"
    return PLAIN_TEMPLATE if plain and writes else None


def _about(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "adapter" / "atelier.json").read_text(encoding="utf-8"))


def _export_lora(run: Run, config: Config, out: Path, dtype: str, progress: Progress) -> dict[str, Any]:
    """The adapter as what every reader of LoRA understands: one rank and one scale for all layers, nothing besides."""
    progress("loading_model")
    source = _Source(run, config)
    adapted, kept = source.adapted, torch.float32 if dtype == "auto" else getattr(torch, dtype)
    expected, base = source.answer(Weights(_NAME)), source.answer(Weights())
    progress("saving")
    tensors, facts = write_plain(adapted, _NAME, kept)
    theirs = json.loads((run.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    facts |= {key: theirs[key] for key in ("task_type", "base_model_name_or_path")}
    write_whole(out / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_whole(out / "adapter_config.json", json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False))
    _write_template(run, out)
    progress("checking")
    adapted.remove(_NAME)
    adapted.load("written", out)
    return _compare(source.answer(Weights("written")), expected, base, kept)


def write_plain(adapted: Adapted, name: str, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An adapter as plain LoRA: tensors by PEFT's keys, and the adapter_config.json that goes with them.

    vLLM reads one rank and one alpha for all layers, and llama.cpp divides alpha by the rank of each tensor. So the
    scale goes into B, A and B are filled up with zeros to the largest rank, and alpha is that rank: a scale of 1.

    Raises:
        Problem: when the adapter holds more than products of two thin matrices, or a number is too large for the dtype.
    """
    adapter = adapted.adapters[name]
    if adapter.whole:
        raise Problem(
            "An adapter with modules that were trained whole cannot be written as plain LoRA.",
            "There are {modules}.",
            "Export it merged, or as it is.",
            modules=", ".join(sorted({path.rsplit(".", 1)[0] for path in adapter.whole})),
        )
    pairs = adapted.low_rank(name)
    rank = max(1, *(len(a) for a, _ in pairs.values()))
    tensors = {}
    for path, (a, b) in pairs.items():
        more = rank - len(a)
        for key, matrix in (("lora_A", (a, (0, 0, 0, more))), ("lora_B", (b, (0, more)))):
            whole = torch.nn.functional.pad(*matrix).to(dtype)
            if not torch.isfinite(whole).all():
                raise Problem(
                    "The adapter has numbers that {dtype} cannot hold.",
                    "In {layer}.",
                    "Export it in float32.",
                    dtype=str(dtype).removeprefix("torch."),
                    layer=path,
                )
            tensors[f"{PREFIX}{path}.{key}.weight"] = whole.cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "target_modules": adapted.shortest_names(list(pairs)),
        "fan_in_fan_out": any(isinstance(adapted.layers[path].base, Conv1D) for path in pairs),
        "bias": "none",
    }
    return tensors, config


class _Source:
    """A run's adapter on its base, and a sentence to compare answers on. The base is the original one in float32.

    Args:
        quantized: the base as it was trained on instead, compressed and in the precision that it computes with.
        weights: other weights for the base, by name.
    """

    def __init__(
        self, run: Run, config: Config, *, quantized: bool = False, weights: Mapping[str, torch.Tensor] | None = None
    ):
        self.objective = objectives.restore(_about(run) | {"task": config.task})
        settings, device, dtype = config.model, find_device(), torch.float32
        if quantized:
            dtype = choose_dtype(settings.dtype, device)
        else:
            settings = settings.model_copy(update={"quantization": "none"})
        self.model, self.tokenizer = load_model(settings, device, dtype, self.objective)
        with torch.no_grad():
            for path, weight in (weights or {}).items():
                self.model.get_parameter(path).copy_(weight)
        self.adapted = Adapted(self.model)
        check_bytes(run.folder / "adapter")
        self.adapted.load(_NAME, run.folder / "adapter")
        self.probe = _ask(self.model, self.tokenizer, self.objective, config.data.template)

    def answer(self, weights: Weights) -> torch.Tensor:
        """The logits of the sentence with these weights."""
        with self.adapted.using(weights) as model:
            return _read(model, self.probe)


def _ask(model: PreTrainedModel, tokenizer: Any, objective: Objective, template: str) -> dict[str, torch.Tensor]:
    ends = end_token_ids(getattr(model, "generation_config", None), tokenizer)
    tokens, said = Tokens(tokenizer, 512, ends, template=template), "Hello, who are you?"
    writes = objective.model_kind == "causal_lm"
    ids = tokens.prompt((Message("user", said),)) if writes else tokens.spell_input(said).ids
    probe = torch.tensor([ids], device=model.device)
    return {"input_ids": probe} | ({"decoder_input_ids": probe} if model.config.is_encoder_decoder else {})


def _read(model: Any, probe: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        said = model(**probe)
    return said.logits if "logits" in said else torch.stack([said.start_logits, said.end_logits])


def _compare(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """How far what was saved is from the applied adapter.

    Raises:
        Problem: when that is more than the dtype explains.
    """
    difference = float((found - expected).abs().max())
    # Half precision costs a part of what was learned; losing more than that means that something else is wrong.
    allowed = 1e-3 * max(1.0, float(expected.abs().max()))
    if dtype != torch.float32:
        allowed += 0.3 * float((expected - base).abs().max())
    if not difference <= allowed:
        raise Problem(
            "What was saved does not answer as the adapter did.",
            "Its numbers differ by {difference}.",
            "Export it in float32.",
            difference=f"{difference:.3g}",
        )
    return {"difference": difference, "dtype": str(dtype).removeprefix("torch.")}


def _read_quantized(run: Run, config: Config, *, unpack: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What was tested: the logits of the adapter on its quantised base; and the weights of that base, if wanted."""
    source = _Source(run, config, quantized=True)
    said = source.answer(Weights(_NAME)).float()
    source.adapted.unwrap()
    return said, dequantized_weights(source.model) if unpack else {}


def _export_merged(
    run: Run, config: Config, out: Path, dtype: str, merge_base: MergeBase, progress: Progress
) -> dict[str, Any]:
    progress("loading_model")
    kept = _stored_dtype(config) if dtype == "auto" else getattr(torch, dtype)
    tested, weights = None, None
    if config.model.quantization != "none":
        tested, weights = _read_quantized(run, config, unpack=merge_base == "dequantised")
        gc.collect()
    # Loaded in float32: what is merged is then rounded once, when it is saved.
    source = _Source(run, config, weights=weights)
    expected, base = source.answer(Weights(_NAME)), source.answer(Weights())
    progress("merging")
    adapted, tokenizer = source.adapted, source.tokenizer
    merged = adapted.merged_weights(_NAME)
    adapted.remove(_NAME)
    adapted.unwrap()
    for path, tensor in merged.items():
        adapted.parameters[path].data = tensor
    progress("saving")
    tokenizer.chat_template = _lent_template(run) or tokenizer.chat_template
    source.model.to(kept).save_pretrained(out)
    tokenizer.save_pretrained(out)
    probe, objective = source.probe, source.objective
    del source, adapted, merged, weights
    gc.collect()
    progress("checking")
    own = config.model.model_copy(update={"name": str(out), "revision": None, "quantization": "none"})
    saved, _ = load_model(own, find_device(), torch.float32, objective)
    found = _read(saved, probe)
    facts = _compare(found, expected, base, kept)
    if tested is not None:
        facts |= {"merge_base": merge_base, "tested_difference": float((found - tested).abs().max())}
    return facts


def _stored_dtype(config: Config) -> torch.dtype:
    """The precision of the base model's files."""
    folder = locate(config.model.name, config.model.revision)
    assert folder is not None
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = data.get("dtype") or data.get("torch_dtype") or "float32"
    return getattr(torch, name) if name in ("float32", "bfloat16", "float16") else torch.float32


def model_card(run: Run, config: Config, to: str, facts: dict[str, Any]) -> str:
    """README.md of an export. What a user wrote stands in code spans, where it is text and nothing else."""
    base = public_name(config.model.name)
    evals = run.metrics().evals
    result = run.result() or {}
    about = _about(run)
    method = config.method
    assert isinstance(method, methods.Method)
    knobs = "\n".join(f"| {name} | {_code(value)} |" for name, value in method.model_dump().items())
    shown = {
        "base model": base,
        "task": config.task,
        "data": public_name(config.data.train),
    }
    if config.model.quantization != "none":
        shown["quantisation while training"] = config.model.quantization
    rows = "\n".join(f"| {name} | {_code(value)} |" for name, value in shown.items())
    step = result.get("kept_step", about["step"])
    # What was measured after the weights that were kept says nothing of them.
    losses = [line for line in evals if line["eval_loss"] is not None and line["step"] <= step]
    measured = "No rows were set aside to measure on."
    if losses:
        first, last = losses[0], losses[-1]
        measured = f"Loss on the rows set aside: {first['eval_loss']:.4g} before, {last['eval_loss']:.4g} after {last['step']} steps."
    objective = objectives.find(config.task)
    lines = write_lines(to, type(method), objective, base, "THIS FOLDER")
    use = f"```python\n{lines}```"
    if lines is None:
        use = "PEFT has no such method: chat with this adapter in Atelier, or serve it with `python -m core serve`."
    checked = ""
    if facts:
        checked = f"\nLoaded again after saving ({facts['dtype']}), its logits differ by at most {facts['difference']:.2g} from those of the applied adapter.\n"
    if "merge_base" in facts:
        checked += (
            f"\nIt was trained and tested beside the base quantised to {config.model.quantization}, and is merged into the "
            f"{facts['merge_base']} base: from what was tested, its logits differ by at most {facts['tested_difference']:.2g}.\n"
        )
    form = {"adapter": "as an adapter", "lora": "as plain LoRA", "merged": "merged into the base model"}[to]
    library = "peft" if to == "lora" or (to == "adapter" and method.is_in_peft()) else "transformers"
    front = f"---\nbase_model: {json.dumps(base)}\nlibrary_name: {library}\ntags: [atelier, {config.task}]\n---\n"
    return (
        f"{front}\n# {_code(run.title)}\n\nMade with Atelier by {method.title}, "
        f"{form}, after {step} steps.\n\n"
        f"| | |\n|---|---|\n{rows}\n{knobs}\n| learning rate | `{config.train.learning_rate:g}` |\n| epochs | `{config.train.epochs:g}` |\n| adapter weights | `sha256 {digest(run.folder / 'adapter')}` |\n\n"
        f"{measured}\n{checked}\n## Use\n\n{use}\n"
    )


def _code(value: object) -> str:
    return "`" + str(value).replace("`", "'").replace("\n", " ").replace("|", "/") + "`"
