"""A model with its weights rounded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def rounded(model: PreTrainedModel, number: int) -> PreTrainedModel:
    """The model with its weights rounded: 0 to float16, 1 to bfloat16, others at random to a bfloat16 beside them."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for parameter in model.parameters():
            if number < 2:
                parameter.copy_(parameter.to((torch.float16, torch.bfloat16)[number]))
                continue
            bits = parameter.contiguous().view(torch.int32)
            dither = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, generator=generator)
            parameter.copy_(((bits + dither) & ~0xFFFF).view(torch.float32))
    return model
