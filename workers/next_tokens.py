"""What two language models say after each token of a text, and how they go on from its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from layerdrift.contract.inspection import LIKELIEST, NextTokens, TextCompletions, TokenProbability
from workers.models.device import best_device
from workers.models.known_head import KnownHead, load_head
from workers.models.loading import body_of, head_kind
from workers.models.texts import Batch, special_ids
from workers.stages.common.evaluation import kl_bits, over_common_tokens
from workers.stages.common.inputs import Checkpoint
from workers.stages.learned.completions import sampled
from workers.stages.learned.prompts import Prompt


@dataclass(frozen=True)
class Heads:
    """The heads of both models, whose bodies are elsewhere."""

    base: PreTrainedModel
    tuned: PreTrainedModel

    @classmethod
    def load(cls, base: Checkpoint, tuned: Checkpoint, dtypes: tuple[torch.dtype, torch.dtype]) -> Heads | None:
        """Of language models; None where one is none, or its head cannot be read alone.

        Args:
            dtypes: of the last states of both.
        """
        other = base.light if tuned.adapter is not None and not _has_weights(tuned) else tuned.light
        found = []
        for folder, pointer, dtype in ((base.light, "/base/uri", dtypes[0]), (other, "/tuned/uri", dtypes[1])):
            if head_kind(folder, pointer) != "causal_lm":
                return None
            try:
                head = load_head(folder, pointer, best_device(), dtype)
            except InputError:  # a head that lacks a tensor, beside a body that has all
                return None
            if head is None:
                return None
            found.append(head.model)
        return cls(found[0], found[1])

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        own = {
            id(one): one.nbytes
            for model in (self.base, self.tuned)
            for one in model.parameters()
            if not one.is_meta
        }  # fmt: skip
        return sum(own.values())

    def next_tokens(
        self, tokenizer: PreTrainedTokenizerBase, batch: Batch, row: int, states: tuple[Tensor, Tensor]
    ) -> list[NextTokens]:
        """After each token of one text of a batch.

        Args:
            states: the last of both models at this text, [T, D] each.
        """
        length = len(states[0])
        alone = batch.rows(torch.tensor([row]), length)._replace(indices=[0])
        heads = [
            KnownHead(model, lambda _, own=own: own)  # type: ignore[misc]
            for model, own in zip((self.base, self.tuned), states, strict=True)
        ]
        found = list[NextTokens]()
        with torch.inference_mode():
            for span in heads[0].spans(alone):
                base, tuned = (head.logits(alone, span)[0].float().cpu().log_softmax(-1) for head in heads)
                base, tuned = over_common_tokens(base, tuned)
                for place, divergence in enumerate(kl_bits(tuned, base).tolist()):
                    found.append(
                        NextTokens(
                            divergence=divergence,
                            base=_likeliest(tokenizer, base[place]),
                            tuned=_likeliest(tokenizer, tuned[place]),
                        )
                    )
        return found

    def completions(
        self,
        bodies: tuple[PreTrainedModel, PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[list[int]],
        tokens: int,
    ) -> list[TextCompletions]:
        """How both go on from texts in tokens, always with the likeliest one.

        Args:
            bodies: whole, of the classes of the heads' own bodies.
        """
        ends = special_ids(tokenizer)
        prompts = [Prompt("text", "", _open(ids, ends)) for ids in texts]
        written = [
            [str(tokenizer.decode(ids)) for ids in _written(head, body, prompts, tokens, ends)]
            for head, body in zip((self.base, self.tuned), bodies, strict=True)
        ]
        return [TextCompletions(base=one, tuned=other) for one, other in zip(*written, strict=True)]


def _written(
    head: PreTrainedModel, body: PreTrainedModel, prompts: list[Prompt], tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    """Greedily; the body stands in the place of the head's own while it writes."""
    own, whole = body_of(head), body.config.use_cache
    name = next(name for name, module in head.named_modules() if module is own)
    vocabulary = int(head.config.get_text_config().vocab_size)
    holder: Any = head.get_submodule(name.rpartition(".")[0])
    leaf = name.rpartition(".")[2]
    try:
        setattr(holder, leaf, body)
        body.config.use_cache = True
        return sampled(head, prompts, tokens, None, vocabulary, ends)
    finally:
        setattr(holder, leaf, own)
        body.config.use_cache = whole


def _open(ids: list[int], ends: frozenset[int]) -> list[int]:
    """A text without the special tokens at its end; the whole of it where there is nothing else."""
    last = max((place for place, token in enumerate(ids) if token not in ends), default=len(ids) - 1)
    return ids[: last + 1]


def _likeliest(tokenizer: PreTrainedTokenizerBase, log_probs: Tensor) -> list[TokenProbability]:
    top = log_probs.topk(min(LIKELIEST, len(log_probs)))
    return [
        TokenProbability(token=str(tokenizer.decode([token])), probability=min(1.0, float(value)))
        for token, value in zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)
    ]


def _has_weights(checkpoint: Checkpoint) -> bool:
    return any(checkpoint.light.glob("*.safetensors"))
