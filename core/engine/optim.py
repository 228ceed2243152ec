"""The optimizer, and how fast each part of what is trained moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from core.config import TrainSettings

_USUAL_INPUT = 0.5  # what a trained pooler's tanh gives
_MOST_HASTE = 10.0


def create_optimizer(
    trained: Mapping[str, nn.Parameter],
    settings: TrainSettings,
    ratios: Mapping[str, float] | None = None,
    *,
    is_frugal: bool = False,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, vectors do not: zero is not where biases and scales come from.

    Args:
        ratios: how much faster than the others a parameter is trained, by name (LoRA+); each group keeps its `ratio`,
            by which the loop multiplies the learning rate of a step.
        is_frugal: one parameter after the other: slower where there are many, but no room for all of them once more.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim >= 2 and min(parameter.shape) > 1
        groups.setdefault((decays, (ratios or {}).get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, "ratio": ratio}
            for (decays, ratio), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        foreach=False if is_frugal else None,
    )


def reserve_moments(optimizer: torch.optim.AdamW) -> None:
    """Make what AdamW would make at its first step: if there is no room for it, this is seen before anything has changed."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


def head_ratios(
    trained: Iterable[str], heads: Sequence[str], settings: TrainSettings, sizes: Mapping[str, float]
) -> dict[str, float]:
    """How much faster than the rest a fresh head is trained: it begins at random, whatever suits the method.

    AdamW moves every weight by the learning rate, whatever the gradient, so that what a layer says moves by that times the
    size of what it reads: of an encoder whose pooler was never trained that is a tenth of the usual, and so is the pace.

    Args:
        sizes: what each layer of the heads reads, as `measure_inputs` tells it.
    """
    if settings.head_learning_rate is None:
        return {}
    ratio = settings.head_learning_rate / settings.learning_rate
    return {
        name: ratio * min(max(_USUAL_INPUT / sizes.get(name.rpartition(".")[0], _USUAL_INPUT), 1.0), _MOST_HASTE)
        for name in trained
        if any(name.startswith(f"{head}.") for head in heads)
    }


def measure_inputs(model: nn.Module, heads: Sequence[str], read: Callable[[], object]) -> dict[str, float]:
    """The mean size of the numbers that each linear layer of the heads reads, by its path, while `read` runs the model."""
    seen: dict[str, list[float]] = {}
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and any(f"{path}.".startswith(f"{head}.") for head in heads):

            def measure(_: nn.Module, given: tuple[torch.Tensor, ...], path: str = path) -> None:
                seen.setdefault(path, []).append(float(given[0].detach().float().abs().mean()))

            hooks.append(module.register_forward_pre_hook(measure))
    try:
        if hooks:
            read()
    finally:
        for hook in hooks:
            hook.remove()
    return {path: max(sum(sizes) / len(sizes), 1e-6) for path, sizes in seen.items()}
