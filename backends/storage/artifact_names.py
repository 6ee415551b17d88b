"""Names of the files that an analysis leaves, as its list of artifacts has them; `key_names` has their keys."""

from __future__ import annotations

CENTRES = "centres.safetensors"
"""The token view's means and spreads at every layer of both models, and how texts were read, as safetensors."""

LATENTS = "latents.parquet"
"""All latents of the autoencoders and where they fire most, as Parquet."""

SCORES = "scores.parquet"
"""What the tuned model's metric is made of, text by text, as Parquet."""

SAES = "saes"
"""Folder of the autoencoders, a folder for each."""


def sae_file(sae: str, file: str) -> str:
    """A file of an autoencoder; `sae` is as `base/layer-03`."""
    return f"{SAES}/{sae}/{file}"


def report(suffix: str) -> str:
    """The report; suffix json, html or md."""
    return f"report.{suffix}"
