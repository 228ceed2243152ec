"""The lines of Python that load an export elsewhere."""

from __future__ import annotations

from core.methods import Method, SelectiveMethod
from core.objectives import Objective


def write_lines(to: str, method: type[Method], objective: Objective, base: str, folder: str) -> str | None:
    """Python for whoever takes an export along; None where no other program knows the method.

    Args:
        to: adapter, lora or merged.
        base: where transformers finds the base.
        folder: where the export lies.
    """
    auto = objective.auto_class
    if to == "merged":
        return (
            f"from transformers import {auto}, AutoTokenizer\n\n"
            f"model = {auto}.from_pretrained({folder!r})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})\n"
        )
    if to == "lora" or method.is_in_peft():
        return (
            f"from peft import PeftModel\nfrom transformers import {auto}\n\n"
            f"base = {auto}.from_pretrained({base!r})\n"
            f"model = PeftModel.from_pretrained(base, {folder!r})\n"
        )
    if issubclass(method, SelectiveMethod):
        # The trained weights themselves, under the base's own names.
        return (
            f"from safetensors.torch import load_file\nfrom transformers import {auto}\n\n"
            f"model = {auto}.from_pretrained({base!r})\n"
            f"model.load_state_dict(load_file({folder + '/adapter_model.safetensors'!r}), strict=False)\n"
        )
    return None
