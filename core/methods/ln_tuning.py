"""LayerNorm tuning: only the scales and shifts of the norms are trained (Zhao et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from core.config import knob
from core.methods import SelectiveMethod
from core.targets import HEADS, ends_with, full_match

#: layernorm, input_layernorm, LayerNorm, q_norm, norm1, norm_f, ln_1, ln_f ... over all families.
_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)", re.IGNORECASE)
_PREFIX = "base_model.model."
_KEY = ".ln_tuning_layers."


class LnTuning(SelectiveMethod):
    """Trains every number of the norms; they are few, and set how loud each direction of the model speaks."""

    title = "LayerNorm tuning"
    about = (
        "Trains the scales of the norms alone: hardly any numbers, and every model has them whose norms have scales."
    )
    family = "Selective"
    peft_type = "LN_TUNING"
    learning_rate_factor = 3.0
    nothing = "Name norms that it has, or choose another method."

    norms: str | list[str] = knob(
        [],
        "Norms",
        "Names such as input_layernorm, or a regular expression over full paths; empty takes them all.",
        group="method",
        max_length=1000,
    )

    def trains(self, parameter: str, layers: int) -> bool:
        module = parameter.rpartition(".")[0]
        if not _NORM.search(module.rpartition(".")[2]):
            return False
        if isinstance(self.norms, str):
            return not self.norms or full_match(self.norms, module, "method.norms") or ends_with(module, [self.norms])
        return not self.norms or ends_with(module, self.norms)

    def peft_key(self, parameter: str) -> str:
        module, _, last = parameter.rpartition(".")
        return f"{_PREFIX}{module}{_KEY}{last}" if self.trains(parameter, 0) else _PREFIX + parameter

    def to_peft(self, parameters: list[str]) -> dict[str, Any]:
        norms = sorted({path.rpartition(".")[0] for path in parameters if self.trains(path, 0)})
        names = norms if self.norms else sorted({module.rpartition(".")[2] for module in norms})
        heads = {path.partition(".")[0] for path in parameters} & HEADS
        others = {
            path.rpartition(".")[0]
            for path in parameters
            if not self.trains(path, 0) and path.partition(".")[0] not in heads
        }
        return {"target_modules": names, "modules_to_save": sorted(heads | others) or None}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        targets = config.get("target_modules") or []
        if config.get("exclude_modules"):
            # What is left is what the file holds.
            targets = {key.removeprefix(_PREFIX).partition(_KEY)[0] for key in shapes if _KEY in key}
        return cls.read({"norms": targets if isinstance(targets, str) else sorted(targets)})
