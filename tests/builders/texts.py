"""Random sentences over a small vocabulary."""

from __future__ import annotations

WORDS = (
    "the a film movie plot actor scene story is was not very good bad great awful dull bright slow fast warm cold "
    "funny sad and but with without for every no some it this that feels looks sounds works fails"
).split()


def make_texts(count: int, seed: int = 0, length: int = 9) -> list[str]:
    """Random sentences over WORDS, all of different lengths around `length`."""
    import torch  # here: texts are asked for by tests that need no torch

    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        size = int(torch.randint(length // 2, length * 2, (), generator=generator))
        texts.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (size,), generator=generator).tolist()))
    return texts
