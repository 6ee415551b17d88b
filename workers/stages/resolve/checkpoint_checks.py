"""What is wrong with a fine-tuned language model's files though they load: its tokens, its template, what it trained.

Each is a warning with a code that a policy can use. Weights are read a row at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from backends.sources.checkpoint_files import GENERATION_CONFIG, generation_config_of
from backends.sources.checkpoint_folder import ADAPTER_WEIGHTS, CONFIG
from workers.models.checkpoint_tensors import stored_tensors
from workers.models.staging import tensor_names
from workers.models.tokenizers import CHAT_TEMPLATE, has_vocabulary, load_tokenizer
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Checkpoint

SHOWN_TOKENS = 5

_GENERATED: Final = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")
_NAMED: Final = ("bos", "eos", "pad")
_EMBEDDINGS: Final = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)


def about_checkpoint(base: Checkpoint, tuned: Checkpoint) -> list[ReportWarning]:
    """Everything that is noticed.

    Raises:
        InputError: a tokenizer cannot be loaded.
    """
    if not has_vocabulary(tuned.light):
        return []
    one, other = load_tokenizer(base.light, "/base/uri"), load_tokenizer(tuned.light, "/tuned/uri")
    return [
        *_unknown_generation_tokens(tuned.light, other),
        *_unlike_special_tokens(tuned.light, other),
        *_changed_template(one, other, adapted=tuned.adapter is not None, folder=tuned.light),
        *_untrained_tokens(base, tuned, one, other),
    ]


def doubled_bos(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[ReportWarning]:
    """Texts that spell out the token that the tokenizer puts first by itself: training code may read it twice."""
    first = tokenizer.bos_token
    if not isinstance(first, str) or not first:
        return []
    ids = list(tokenizer("a")["input_ids"])
    if not ids or ids[0] != tokenizer.bos_token_id:
        return []
    count = sum(text.startswith(first) for text in texts)
    if not count:
        return []
    message = (
        f"{count} of {len(texts)} texts begin with {first!r}, which the tokenizer also adds. One of the two was "
        "dropped here; training code that keeps both trains on a beginning that generation never has"
    )
    return [ReportWarning(code="double_bos", message=message)]


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The tokens at which generation stops: the tokenizer's end token, and what the configurations name."""
    ids = {
        number
        for file in (folder / CONFIG, generation_config_of(folder))
        for number in _ids(_read(file).get("eos_token_id"))
    }
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    found = {known[number] for number in ids if number in known}
    return found | ({tokenizer.eos_token} if isinstance(tokenizer.eos_token, str) else set())


def _unknown_generation_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[ReportWarning]:
    """Ids that generation would stop or begin with and that no token has."""
    settings = _read(generation_config_of(folder))
    known = set(tokenizer.get_vocab().values())
    wrong = [f"{name} {number}" for name in _GENERATED for number in _ids(settings.get(name)) if number not in known]
    if not wrong:
        return []
    message = (
        f"{GENERATION_CONFIG} of the tuned model names tokens that its tokenizer does not have: {', '.join(wrong)}. "
        "Generation may never stop; write the ids of its tokenizer there"
    )
    return [ReportWarning(code="generation_tokens", message=message)]


def _unlike_special_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[ReportWarning]:
    """Special tokens on which the tokenizer and the two configurations disagree."""
    unlike = []
    for file in (CONFIG, GENERATION_CONFIG):
        settings = _read(folder / file if file == CONFIG else generation_config_of(folder))
        for name in _NAMED:
            own, named = getattr(tokenizer, f"{name}_token_id", None), _ids(settings.get(f"{name}_token_id"))
            if isinstance(own, int) and named and own not in named:
                unlike.append(f"{name} is {own} in the tokenizer and {', '.join(map(str, named))} in {file}")
    if not unlike:
        return []
    message = f"the tuned model's files disagree on special tokens: {'; '.join(unlike)}"
    return [ReportWarning(code="special_tokens_differ", message=message)]


def _changed_template(
    base: PreTrainedTokenizerBase, tuned: PreTrainedTokenizerBase, adapted: bool, folder: Path
) -> list[ReportWarning]:
    before, after = base.chat_template, tuned.chat_template
    if before == after or (adapted and not after and not (folder / CHAT_TEMPLATE).exists()):
        return []
    if not after:
        change = "the tuned model has no chat template, but the base model has one"
    elif not before:
        change = "the tuned model has a chat template, and the base model none"
    else:
        change = "the tuned model's chat template differs from the base model's"
    message = f"{change}: chats are rendered differently when the model is served"
    return [ReportWarning(code="chat_template_changed", message=message)]


def _untrained_tokens(
    base: Checkpoint, tuned: Checkpoint, one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> list[ReportWarning]:
    """Tokens that the tuned tokenizer added and whose embeddings no training moved."""
    known = one.get_vocab()
    padding = {other.pad_token} - {other.eos_token}  # nothing is ever learnt of it
    added = {
        token: number for token, number in other.get_vocab().items() if token not in known and token not in padding
    }
    if not added:
        return []
    if tuned.adapter is not None:
        untrained = [] if _adapts_embeddings(tuned.adapter.folder) else sorted(added)
    else:
        rows = _embeddings(tuned.light, "/tuned/uri", set(added.values()))
        untrained = _unmoved(_embeddings(base.light, "/base/uri", set(rows)), rows, added)
    if not untrained:
        return []
    shown = ", ".join(sorted(untrained)[:SHOWN_TOKENS]) + (" …" if len(untrained) > SHOWN_TOKENS else "")
    message = (
        f"{len(untrained)} of {len(added)} tokens that the fine-tune added were never trained: {shown}. Their "
        "embeddings are as they were before training"
    )
    return [ReportWarning(code="untrained_tokens", message=message)]


def _unmoved(before: dict[int, Tensor], after: dict[int, Tensor], added: dict[str, int]) -> list[str]:
    """Those whose row is zero, is the base's to the last bit, or is that of another added token."""
    rows = {token: after[number] for token, number in added.items() if number in after}
    alike: dict[bytes, list[str]] = {}
    for token, row in rows.items():
        alike.setdefault(row.contiguous().view(torch.uint8).numpy().tobytes(), []).append(token)
    found = {token for tokens in alike.values() if len(tokens) > 1 for token in tokens}
    for token, row in rows.items():
        own = before.get(added[token])
        if (own is not None and torch.equal(own.to(row.dtype), row)) or not bool(row.any()):
            found.add(token)
    return sorted(found)


def _embeddings(folder: Path, pointer: str, rows: set[int]) -> dict[int, Tensor]:
    """Rows of the table of word embeddings, those that it has; none where it is not found by its name."""
    if not any(folder.glob("*.safetensors")):
        return {}
    stored = stored_tensors(folder, pointer)
    name = next((name for end in _EMBEDDINGS for name in stored if name.endswith(end)), None)
    if name is None or len(stored[name].shape) != 2:
        return {}
    with safe_open(folder / stored[name].file, framework="pt") as file:
        table = file.get_slice(name)
        return {row: table[row] for row in sorted(rows) if row < stored[name].shape[0]}


def _adapts_embeddings(adapter: Path) -> bool:
    names = tensor_names(adapter / ADAPTER_WEIGHTS, "/tuned/uri")
    return any(part in name for name in names for part in ("embed", "wte", "lm_head", "trainable_tokens"))


def _ids(value: Any) -> list[int]:
    every = value if isinstance(value, list) else [value]
    return [number for number in every if isinstance(number, int) and not isinstance(number, bool)]


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none, or it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
