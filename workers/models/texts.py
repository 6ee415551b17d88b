"""Texts into padded batches of tokens, and batches into models. Padding never leaves this module.

Every model sees its own padding token, so that a text in a batch gets the answer that it gets alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.errors import InputError
from workers.models.chats import TOKEN_ROLES, ChatText

MIN_LENGTH = 4
WINDOW_BATCHES = 16
"""Texts are sorted by length within windows of so many batches, which halves the padding."""

COUNTED_AT_ONCE = 1024

PADDING_TOLERANCE = 1e-3
"""What padding may change in a model's answer to a text, relative to the answer."""

_reading_padding: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

LENGTH_CEILING = 512
LENGTH_PERCENTILE = 95
"""Where no length is asked for: this percentile of the texts' lengths, up to the ceiling."""

Text = str | tuple[str, str]
"""A single text, or the two texts of a pair."""


class Batch(NamedTuple):
    """B texts padded to T tokens.

    input_ids, attention_mask: [B, T]. indices: of the texts, as given.
    real: [B, T] bool, the tokens that count: neither padding nor special, and no outliers once these are known.
    token_types: [B, T], which of a pair's texts a token is of; None where the tokenizer does not tell.
    outlying: [B, T] bool, tokens that were taken out of `real` (see `Inliers`); None: not looked at.
    roles: [B, T] int8, whose words each token is, as a number of TOKEN_ROLES; None where no text is a chat.
    """

    input_ids: Tensor
    attention_mask: Tensor
    real: Tensor
    indices: list[int]
    token_types: Tensor | None = None
    outlying: Tensor | None = None
    roles: Tensor | None = None

    def rows(self, chosen: Tensor, length: int) -> Batch:
        """Some of the texts, cut to a length that none of them exceeds."""
        optional = self.token_types, self.outlying, self.roles
        cut = [None if one is None else one[chosen, :length] for one in optional]
        ids, mask, real = (one[chosen, :length] for one in (self.input_ids, self.attention_mask, self.real))
        return Batch(ids, mask, real, [self.indices[index] for index in chosen.tolist()], *cut)

    def by_length(self) -> Iterator[tuple[Tensor, Batch]]:
        """The batch in parts without padding: the rows of each part, and the part."""
        lengths = self.attention_mask.sum(1)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            yield rows, self.rows(rows, length)


@dataclass(frozen=True)
class Encoded:
    """One text in tokens: their ids, which of them are special, and their types where the tokenizer tells.

    roles: of a chat, whose words each token is, as a number of TOKEN_ROLES.
    """

    ids: list[int]
    special: list[bool]
    types: list[int] | None
    roles: list[int] | None = None


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of tokens that are not words: of the tokenizer and of chat templates. An unknown word is a word."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "sep", "cls", "pad", "mask")} - {
        None
    }
    unknown = {tokenizer.unk_token_id} - named
    return frozenset((set(tokenizer.all_special_ids) | added | named) - unknown)  # type: ignore[arg-type]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int | None) -> list[Encoded]:
    """Texts in tokens, cut at `max_length` (None: whole).

    A text that already begins with the token that the tokenizer puts first, or ends with its last one, keeps one of
    them. To a chat that a template rendered nothing is added.
    """
    found = dict[int, Encoded]()
    chats = [number for number, text in enumerate(texts) if isinstance(text, ChatText) and not text.plain]
    others = sorted(set(range(len(texts))) - set(chats)) if chats else range(len(texts))
    for numbers, ends in ((others, True), (chats, False)):
        asked = [texts[number] for number in numbers]
        found |= zip(numbers, _encoded(tokenizer, asked, max_length, ends), strict=True)
    return [found[number] for number in range(len(texts))]


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int | None, ends: bool
) -> Iterator[Encoded]:
    """Texts in tokens. ends: with the special tokens that the tokenizer puts around a text."""
    if not texts:
        return
    specials = special_ids(tokenizer)
    start, end = _added_ends(tokenizer) if ends else (None, None)
    encoded = _tokenized(tokenizer, texts, max_length, ends)
    doubled = [number for number, ids in enumerate(encoded["input_ids"]) if any(_doubled(ids, start, end))]
    if doubled and max_length is not None:  # room for the tokens that will be dropped
        wider = _tokenized(tokenizer, [texts[number] for number in doubled], max_length + 2, ends)
        for place, number in enumerate(doubled):
            for key in encoded:
                encoded[key][number] = wider[key][place]
    for number, ids in enumerate(encoded["input_ids"]):
        at_start, at_end = _doubled(ids, start, end)
        kept = list(range(int(at_start), len(ids) - int(at_end)))
        if max_length is not None and len(kept) > max_length:
            last = kept[-1:] if end is not None and ids[kept[-1]] == end else []
            kept = [*kept[: max_length - len(last)], *last]
        masks, types, text = encoded["special_tokens_mask"][number], encoded.get("token_type_ids"), texts[number]
        roles = _roles(tokenizer, text, ids, encoded, number) if isinstance(text, ChatText) else None
        yield Encoded(
            [ids[place] for place in kept],
            [bool(masks[place]) or ids[place] in specials for place in kept],
            None if types is None else [types[number][place] for place in kept],
            None if roles is None else [roles[place] for place in kept],
        )


def _roles(
    tokenizer: PreTrainedTokenizerBase, chat: ChatText, ids: list[int], encoded: dict[str, Any], number: int
) -> list[int]:
    """Whose words each token is: the one whose characters it has, of several the last of TOKEN_ROLES."""
    if "offset_mapping" in encoded:
        offsets = np.array(encoded["offset_mapping"][number], dtype=np.int64).reshape(-1, 2)
        offsets = _with_spaces(offsets, np.array(encoded["special_tokens_mask"][number], dtype=bool))
    else:
        offsets = _offsets(tokenizer, chat, ids)
    roles = np.zeros(len(ids), dtype=np.int8)
    starts, ends = offsets.T
    for span in chat.spans:
        inside = (ends > span.start) & (starts < span.end) & (ends > starts)
        roles[inside] = np.maximum(roles[inside], TOKEN_ROLES.index(span.role))
    found: list[int] = roles.tolist()
    return found


def _with_spaces(offsets: NDArray[np.int64], added: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The characters of every token [T, 2]: some tokenizers tell none of a token that is white space alone.

    Args:
        added: tokens that stand for no character, [T].
    """
    empty = (offsets[:, 0] == offsets[:, 1]) & ~added
    if not empty.any():
        return offsets
    found, told = offsets.copy(), ~empty & ~added
    ends = np.maximum.accumulate(np.where(told, offsets[:, 1], 0))
    starts = np.where(told, offsets[:, 0], np.iinfo(np.int64).max)
    following = np.minimum.accumulate(starts[::-1])[::-1]
    for place in empty.nonzero()[0].tolist():
        if ends[place] < following[place] < np.iinfo(np.int64).max:
            found[place] = ends[place], following[place]
        elif following[place] == np.iinfo(np.int64).max:
            found[place] = ends[place], ends[place] + 1
    return found


def _offsets(tokenizer: PreTrainedTokenizerBase, chat: ChatText, ids: list[int]) -> NDArray[np.int64]:
    """The characters of every token, for a tokenizer that does not tell them: exact at the ends of the chat's spans."""
    borders = sorted({0, len(chat), *(place for span in chat.spans for place in span[:2])})
    found, before = np.zeros((len(ids), 2), dtype=np.int64), 0
    for start, end in pairwise(borders):
        beginning = tokenizer(str(chat)[:end], add_special_tokens=chat.plain)["input_ids"]
        shared = next((at for at, (a, b) in enumerate(zip(beginning, ids, strict=False)) if a != b), len(beginning))
        shared = len(ids) if end == len(chat) else min(shared, len(ids))
        found[before:shared] = (start, end)
        before = max(before, shared)
    return found


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int | None, ends: bool
) -> dict[str, Any]:
    firsts = [text if isinstance(text, str) else text[0] for text in texts]
    seconds = [text[1] for text in texts if not isinstance(text, str)]
    asked: dict[str, Any] = {"truncation": True, "max_length": max_length} if max_length else {"truncation": False}
    if tokenizer.is_fast and any(isinstance(text, ChatText) for text in texts):
        asked["return_offsets_mapping"] = True
        firsts = [str(text) for text in firsts]
    asked |= {"return_special_tokens_mask": True, "add_special_tokens": ends}
    try:
        return dict(tokenizer(firsts, seconds or None, verbose=False, **asked))
    except BaseException as error:  # a panic of the tokenizers' library is no Exception, and would end the process
        if type(error).__name__ != "PanicException":
            raise
        raise InputError.at("/base/uri", f"the tokenizer failed on one of the texts: {error}") from None


def _added_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """The special ids that the tokenizer puts before and after every text; None where it puts none."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    if not ids:
        return None, None
    return (ids[0] if mask[0] else None), (ids[-1] if mask[-1] and len(ids) > 1 else None)


def _doubled(ids: list[int], start: int | None, end: int | None) -> tuple[bool, bool]:
    """Whether the tokenizer's first token stands twice at the start, and its last one twice at the end."""
    if len(ids) < 2:
        return False, False
    return start is not None and ids[0] == ids[1] == start, end is not None and ids[-1] == ids[-2] == end


def positions_of(config: PreTrainedConfig) -> int | None:
    """Tokens that a model can read at once; None: as many as there are."""
    named = int(getattr(config.get_text_config(), "max_position_embeddings", None) or 0)
    return named if named > 0 else None  # XLNet names -1


def usable_length(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, wanted: int) -> int:
    """Tokens of a text that are read: what was asked for, as far as tokenizer and model have positions.

    Raises:
        InputError: the tokenizer's own limit leaves no room for a text.
    """
    positions = positions_of(model.config) or wanted
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1  # the positions of such a table begin after the padding's
            break
    limit = tokenizer.model_max_length
    if not isinstance(limit, int | float) or limit < MIN_LENGTH:
        raise InputError.at(
            "/base/uri", f"model_max_length of the tokenizer is {limit!r}; it must be at least {MIN_LENGTH}"
        )
    return int(min(wanted, positions, limit))


def fitting_length(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> int:
    """The length that most of the texts fit into: their 95th percentile in tokens, special ones counted, 8 to 512."""
    lengths = sorted(len(one.ids) for one in encode(tokenizer, texts, None))
    if not lengths:
        return LENGTH_CEILING
    percentile = lengths[min(len(lengths) - 1, len(lengths) * LENGTH_PERCENTILE // 100)]
    return max(8, min(LENGTH_CEILING, percentile))


def batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    batch_size: int,
    max_length: int,
    batch_tokens: int | None = None,
) -> Iterator[Batch]:
    """All texts that have a token, once, in batches of like length; the order is random but depends on the texts alone.

    Random, so that wherever a reader stops, it has seen long texts and short ones alike. A batch has at most
    `batch_size` texts, and with `batch_tokens` at most so many tokens, padding included, unless it is one text.
    """
    window = batch_size * WINDOW_BATCHES
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(texts), window):
        inside = range(start, min(start + window, len(texts)))
        encoded = encode(tokenizer, [texts[index] for index in inside], max_length)
        filled = [item for item in range(len(inside)) if encoded[item].ids]
        order = sorted(filled, key=lambda item: len(encoded[item].ids))
        lengths = [len(encoded[item].ids) for item in order]
        spans = cuts(lengths, batch_size, batch_tokens)
        for number in torch.randperm(len(spans), generator=generator).tolist():
            chosen = order[slice(*spans[number])]
            yield _padded([encoded[item] for item in chosen], [inside[item] for item in chosen])


def _padded(texts: list[Encoded], indices: list[int]) -> Batch:
    shape = len(texts), max(len(text.ids) for text in texts)
    ids, mask, types = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    real = torch.zeros(shape, dtype=torch.bool)
    typed = all(text.types is not None for text in texts)
    for row, text in enumerate(texts):
        length = len(text.ids)
        ids[row, :length] = torch.tensor(text.ids)
        mask[row, :length] = 1
        real[row, :length] = ~torch.tensor(text.special)
        if typed:
            types[row, :length] = torch.tensor(text.types)
    roles = None
    if any(text.roles is not None for text in texts):
        roles = torch.zeros(shape, dtype=torch.int8)
        for row, text in enumerate(texts):
            roles[row, : len(text.ids)] = torch.tensor(text.roles or [0] * len(text.ids), dtype=torch.int8)
    return Batch(ids, mask, real, indices, types if typed else None, roles=roles)


def cuts(lengths: list[int], batch_size: int, batch_tokens: int | None) -> list[tuple[int, int]]:
    """Where each batch begins and ends, in texts that are sorted by length."""
    found, start = [], 0
    for end, length in enumerate(lengths):
        full = batch_tokens is not None and (end - start + 1) * length > batch_tokens
        if end - start == batch_size or (full and end > start):
            found.append((start, end))
            start = end
    return [*found, (start, len(lengths))] if lengths else []


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int | None) -> list[int]:
    """How many tokens of each text are read (None: there are), special ones not counted."""
    counts: list[int] = []
    for start in range(0, len(texts), COUNTED_AT_ONCE):
        encoded = encode(tokenizer, texts[start : start + COUNTED_AT_ONCE], max_length)
        counts += [text.special.count(False) for text in encoded]
    return counts


def known_tokens(model: PreTrainedModel, batch: Batch) -> None:
    """Raises InputError where the tokenizer knows more tokens than the model."""
    known, largest = len(next(iter(model.get_input_embeddings().parameters()))), int(batch.input_ids.max())
    if largest >= known:
        raise InputError.at(
            "/base/uri",
            f"the tokenizer produces token {largest}, but the model's embeddings end at {known - 1}; resize them, or "
            "use the tokenizer that belongs to the model",
        )


@contextmanager
def padded_for(model: PreTrainedModel, batch: Batch, device: torch.device | None = None) -> Iterator[dict[str, Tensor]]:
    """A batch as a model takes it, on its device, filled with the model's own padding token.

    Classifiers on decoders find the last token of a text by that token. A model that names none gets, inside, one that
    is in no text of the batch; so it reads every text to its end, as it does one text alone.

    Args:
        device: where the batch goes; None: to the model's weights.
    """
    config = model.config.get_text_config()
    own = config.pad_token_id
    known = len(next(iter(model.get_input_embeddings().parameters())))
    named = isinstance(own, int) and 0 <= own < known
    pad = int(own) if named else _unused_id(batch.input_ids, known)
    ids = batch.input_ids.masked_fill(batch.attention_mask == 0, pad)
    inputs = {"input_ids": ids, "attention_mask": batch.attention_mask}
    if batch.token_types is not None and (getattr(config, "type_vocab_size", None) or 0) > 1:
        inputs["token_type_ids"] = batch.token_types  # of encoders; GPT-2 would add the embedding of a word
    try:
        if not named:
            config.pad_token_id = pad
        yield {name: tensor.to(device or model.device) for name, tensor in inputs.items()}
    finally:
        config.pad_token_id = own


def _unused_id(ids: Tensor, known: int) -> int:
    """The smallest id that no text of a batch has; 0 where they have them all."""
    used = set(ids.unique().tolist())
    return next((number for number in range(known) if number not in used), 0)


def reads_padding(model: PreTrainedModel) -> bool:
    """Whether what a model makes of a text depends on how far it is padded, as in FNet or XLNet's classifier.

    Found by trying, once for each model: one text alone, and beside a longer one. `run` knows what was tried.
    """
    found = _reading_padding.get(model)
    if found is None:
        found = _reading_padding[model] = _tried_padding(model)
    return found


def _tried_padding(model: PreTrainedModel) -> bool:
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = (torch.arange(18) * 7 + 3).remainder(vocabulary).view(2, 9)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    both = Batch(ids, mask, mask.bool(), [0, 1])
    training = [module for module in model.modules() if module.training]  # a frozen part is not
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            beside, alone = (_answer(model, batch)[0, :5].float() for batch in (both, both.rows(torch.tensor([0]), 5)))
    finally:
        for module in training:
            module.training = True
    return bool((beside - alone).norm() > PADDING_TOLERANCE * alone.norm())


def _answer(model: PreTrainedModel, batch: Batch) -> Tensor:
    with padded_for(model, batch) as inputs:
        output = model(**inputs)
    answer: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return answer


def run(model: PreTrainedModel, batch: Batch, **options: bool) -> Any:
    """The model's output on a batch, of which `logits` is read.

    Raises:
        InputError: the tokenizer knows more tokens than the model.
    """
    known_tokens(model, batch)
    if not _reading_padding.get(model, False) or not bool((batch.attention_mask == 0).any()):
        with padded_for(model, batch) as inputs:
            return model(**inputs, **options)
    logits: dict[int, Tensor] = {}
    for rows, part in batch.by_length():
        with padded_for(model, part) as inputs:
            found = model(**inputs, **options).logits
        missing = batch.input_ids.shape[1] - part.input_ids.shape[1] if found.dim() == 3 else 0
        logits |= {
            row: pad(one, (0, 0, 0, missing)) if missing else one for row, one in zip(rows.tolist(), found, strict=True)
        }
    return SimpleNamespace(logits=torch.stack([logits[row] for row in range(len(batch.indices))]))
