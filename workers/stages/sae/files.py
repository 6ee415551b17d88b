"""Trained autoencoders as files that `sae_lens.SAE.load_from_disk` opens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from workers.analysis.sae import SaeStack
from workers.stages.sae.findings import Dictionaries

FORMAT_VERSION = "6.0.0"
"""Of sae-lens: the first whose configuration has these fields; without it they would be read as an older one's."""


class NamedSae(NamedTuple):
    """One of a pair's autoencoders: its folder's name and where it is."""

    name: str
    stack: SaeStack
    site: int
    layer: int


def named(dictionaries: Dictionaries) -> Iterator[NamedSae]:
    """All that are worth keeping: of both models, and the tuned model's that went on from the base model's."""
    layout = dictionaries.layout
    for place, layer in enumerate(dictionaries.layers):
        yield NamedSae(f"base/layer-{layer:02d}", dictionaries.stack, layout.base(place), layer)
        yield NamedSae(f"tuned/layer-{layer:02d}", dictionaries.stack, layout.tuned(place), layer)
        if dictionaries.warmed is not None:
            yield NamedSae(f"warm-start/layer-{layer:02d}", dictionaries.warmed, layout.tuned(place), layer)


def save_sae(stack: SaeStack, site: int, folder: Path, metadata: dict[str, Any]) -> None:
    """Writes cfg.json and sae_weights.safetensors of one autoencoder.

    The scalar that inputs are divided by is folded in: the file's latents and reconstructions are in the units of the
    raw rows, and decoder rows keep their unit norm. At inference every architecture but topk is a JumpReLU.
    """
    latents, width = stack.W_enc.shape[1:]
    scale = stack.scale[site]
    weights: dict[str, Tensor] = {
        "W_enc": stack.W_enc[site].T,
        "b_enc": stack.b_enc[site] * scale,
        "W_dec": stack.W_dec[site],
        "b_dec": stack.b_dec[site] * scale,
    }
    config: dict[str, Any] = {"architecture": "topk", "k": stack.row_k}
    if not stack.row_k:
        config = {"architecture": "jumprelu"}
        weights["threshold"] = stack.threshold[site] * scale
    config |= {
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**metadata, "sae_lens_version": FORMAT_VERSION},
    }
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
