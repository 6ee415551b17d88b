"""Stored rows of one layer in which one latent fires where the texts say."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.builders.models import tiny_tokenizer
from workers.analysis.sae import Normalisation, SaeStack
from workers.models.texts import batches
from workers.scratch import ActivationStore
from workers.stages.extract.contexts import Contexts
from workers.stages.sae.latents import Side

TEXTS = ["the good film", "bad", "the film was good and the plot was bad and the story was dull"]


LABELS = ["yes", None, "no"]


def stored(folder: Path, strengths: tuple[float, float] = (1.0, 2.0)) -> tuple[ActivationStore, Contexts, int]:
    """One layer of two models whose activation at a token is its number's unit vector, times 1 and 2.

    Gives the vocabulary's size too.
    """
    tokenizer = tiny_tokenizer(folder)
    size = len(tokenizer)
    rows, contexts = ActivationStore(folder / "rows", max_rows=100), Contexts(tokenizer, LABELS)
    for batch in batches(tokenizer, TEXTS, 2, 32):
        one_hot = torch.eye(size)[batch.input_ids[batch.real]]
        rows.add(torch.stack([strength * one_hot for strength in strengths]))
        contexts.add(batch)
    return rows, contexts, size


def side(size: int, source: int) -> Side:
    """A dictionary with a latent for each token."""
    ones = torch.ones(2)
    normalisation = Normalisation(ones, torch.zeros(2, size), 10 * ones)
    stack = SaeStack.initial(normalisation, size, torch.Generator())
    stack.W_enc[:], stack.W_dec[:] = torch.eye(size), torch.eye(size)
    stack.threshold[:] = 0.5
    return Side(stack, source, source, torch.full((size,), 0.1))
