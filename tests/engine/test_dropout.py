"""Dropout in an adapter hides inputs while training, and makes up for what it hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ground import FAMILIES
from test_adapt import fill, load
from transformers.pytorch_utils import Conv1D

from core import methods


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_kept_is_made_louder_by_what_is_hidden(family: Callable[[str], Path], name: str, share: float) -> None:
    """A row with a single input tells each case apart: hidden it is the base's, kept it is 1/(1 - share) times the gain,
    so that the mean is what is computed without dropout (Srivastava et al. 2014, section 10)."""
    adapted = load(family(name))
    adapted.add("a", methods.find("lora")(rank=4, dropout=share))
    fill(adapted, "a")
    untouched = load(family(name)).model
    torch.manual_seed(5)
    for path in adapted.layers:
        layer, plain = adapted.model.get_submodule(path), untouched.get_submodule(path)
        x = torch.zeros(400, plain.weight.shape[0 if isinstance(plain, Conv1D) else 1])
        x[:, 1] = 3.0
        with torch.no_grad():
            gain = layer.eval()(x) - plain(x)
            drawn = layer.train()(x) - plain(x)
        assert gain.abs().max() > 0.01, path
        kept = drawn.abs().amax(-1) > 1e-5
        assert torch.allclose(drawn[kept], gain[kept] / (1 - share), atol=1e-4), path
        # five standard deviations of a share of 400 draws are at most 0.125
        assert abs(float((~kept).float().mean()) - share) < 0.13, path
