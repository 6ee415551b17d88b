"""One tokenizer for both models of a pair: the base model's, after the tuned one's was asked on the same texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from backends.sources.checkpoint_files import VOCABULARIES
from layerdrift.contract.errors import InputError
from workers.models.loading import loaded
from workers.models.texts import Text, encode
from workers.results.warnings import ReportWarning

TOLERATED_SHARE = 0.05
"""Texts that the two tokenizers may split otherwise: so many are passed over, more make the pair incomparable."""

SHOWN_TOKENS, SHOWN_IDS = 10, 8
ASKED_AT_ONCE = 1024
TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
MAX_EXPANSION = 64


@dataclass(frozen=True)
class CommonTokenizer:
    """What both models are read with.

    differing: numbers of the asked texts whose ids differ between the tokenizers, to be passed over.
    """

    tokenizer: PreTrainedTokenizerBase
    warnings: list[ReportWarning] = field(default_factory=list)
    differing: frozenset[int] = frozenset()


def load_tokenizer(folder: Path, pointer: str) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, padding on the right; InputError where it cannot be read."""
    tokenizer: PreTrainedTokenizerBase = loaded(
        folder,
        pointer,
        "the tokenizer",
        lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )
    _check_expansion(folder, pointer)
    filed = loaded(folder, pointer, TOKENIZER, lambda: _as_its_file_says(folder, tokenizer))
    filed.padding_side = "right"
    loaded(folder, pointer, TOKENIZER, lambda: _check_added(filed, pointer))
    return filed


def _as_its_file_says(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that tokenizer.json holds, where transformers built another one by the name of a class.

    What tokenizer_config.json says by name (case, accents, spaces, added ends) counts more than tokenizer.json, as it
    does in transformers.
    """
    path = folder / TOKENIZER
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not path.is_file():
        return tokenizer
    named = folder / "tokenizer_config.json"
    config = json.loads(named.read_text(encoding="utf-8")) if named.is_file() else {}
    own = json.loads(tokenizer.backend_tokenizer.to_str())
    state = json.loads(Tokenizer.from_file(str(path)).to_str())
    for part, type_name, keys in _OVERRIDES:
        for step in _steps(state[part]):
            if step["type"] == type_name:
                step.update({key: config[name] for key, name in keys.items() if config.get(name) is not None})
    if any(config.get(name) is not None for name in ("add_bos_token", "add_eos_token")):
        state["post_processor"] = own["post_processor"]
    if all(own[part] == state[part] for part in ("normalizer", "pre_tokenizer", "post_processor", "model")):
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    )


_OVERRIDES = (
    (
        "normalizer",
        "BertNormalizer",
        {
            "lowercase": "do_lower_case",
            "strip_accents": "strip_accents",
            "handle_chinese_chars": "tokenize_chinese_chars",
        },
    ),
    ("pre_tokenizer", "ByteLevel", {"add_prefix_space": "add_prefix_space"}),
)
"""Parts of tokenizer.json, the type of a step in them, and its fields by the names that tokenizer_config.json uses."""


def _check_expansion(folder: Path, pointer: str) -> None:
    """InputError where the normaliser of tokenizer.json makes much longer texts of what it reads."""
    path = folder / TOKENIZER
    if not path.is_file():
        return
    times = 1.0
    for step in _steps(json.loads(path.read_text(encoding="utf-8")).get("normalizer")):
        pattern = step.get("pattern")
        found = pattern.get("String") if isinstance(pattern, dict) else None
        times *= max(1.0, len(str(step.get("content") or "")) / max(1, len(found or "")))
        times *= 1 + len(str(step.get("prepend") or ""))  # of a text of one character
    if times > MAX_EXPANSION:
        raise InputError.at(
            pointer,
            f"the normaliser of {TOKENIZER} makes texts up to {times:.3g} times longer; the limit is {MAX_EXPANSION}",
        )


def _check_added(tokenizer: PreTrainedTokenizerBase, pointer: str) -> None:
    """InputError where a tokenizer makes far more tokens of a text than it has characters."""
    for text in _PROBES:
        found = len(tokenizer(text, truncation=False)["input_ids"])
        if found > MAX_EXPANSION * (1 + len(text)):
            raise InputError.at(
                pointer,
                f"the tokenizer makes {found} tokens from a text of {len(text)} characters; the limit is "
                f"{MAX_EXPANSION} per character",
            )


_PROBES = ("", "a", "a Text, 1 é\n")


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, which may be one or a sequence of them."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [part] if inner is None else [found for one in inner for found in _steps(one)]


def common_tokenizer(base: Path, tuned: Path | None, texts: Sequence[Text]) -> CommonTokenizer:
    """The base model's tokenizer, asked with the tuned model's on all texts.

    Tokens that one of the two has more than the other make no difference where no text has them; in texts that do, both
    models see the base model's ids.

    Raises:
        InputError: the vocabularies differ, or more than 5 % of the texts get other ids.
    """
    tokenizer = load_tokenizer(base, "/base/uri")
    if tuned is None or not has_vocabulary(tuned):
        return CommonTokenizer(tokenizer)
    other = load_tokenizer(tuned, "/tuned/uri")
    added = _added_tokens(tokenizer, other)
    differing, with_added = [], 0
    for start, part in _parts(texts):
        pairs = zip(encode(tokenizer, part, None), encode(other, part, None), strict=True)
        for number, (one, another) in enumerate(pairs, start=start):
            if one.ids == another.ids:
                continue
            if _holds(texts[number], added):
                with_added += 1
            else:
                differing.append(number)
    if len(differing) > TOLERATED_SHARE * len(texts):
        raise InputError.at("/tuned/uri", _disagreement(tokenizer, other, texts[differing[0]], differing, len(texts)))
    warnings = [*_told_added(added, with_added, len(texts)), *_told_differing(differing, len(texts))]
    return CommonTokenizer(tokenizer, warnings, frozenset(differing))


def _parts(texts: Sequence[Text]) -> Iterator[tuple[int, list[Text]]]:
    """The texts, some at once, with the number of the first: single ones or pairs, never both in one part."""
    start = 0
    for _, run in groupby(texts, key=lambda text: isinstance(text, str)):
        alike = list(run)
        for inside in range(0, len(alike), ASKED_AT_ONCE):
            yield start + inside, alike[inside : inside + ASKED_AT_ONCE]
        start += len(alike)


def _added_tokens(base: PreTrainedTokenizerBase, tuned: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that only one of the two has; InputError where a common token has another id."""
    one, other = base.get_vocab(), tuned.get_vocab()
    common = one.keys() & other.keys()
    moved = sorted(token for token in common if one[token] != other[token])
    missing = sorted(one.keys() - common)
    added = sorted(other.keys() - common, key=lambda token: other[token])
    taken = {number: token for token, number in one.items()}
    added_later = {str(token) for one_of in (base, tuned) for token in one_of.added_tokens_decoder.values()}
    replaced = [  # a word by another; reserved tokens may get names
        token for token in added if other[token] in taken and not {token, taken[other[token]]} & added_later
    ]
    if replaced and not moved:
        raise InputError.at(
            "/tuned/uri",
            "the models have different vocabularies, so their tokens cannot be compared one by one: id "
            f"{other[replaced[0]]} is {taken[other[replaced[0]]]!r} in the base model and {replaced[0]!r} in the "
            "tuned model. Give the tuned checkpoint the tokenizer that it was trained with",
        )
    if moved or (missing and len(missing) > TOLERATED_SHARE * len(one)):
        what = (
            f"{moved[0]!r} has the ids {one[moved[0]]} and {other[moved[0]]}"
            if moved
            else f"only one of them has {missing[0]!r}"
        )
        raise InputError.at(
            "/tuned/uri",
            "the models have different vocabularies, so their tokens cannot be compared one by one: "
            f"{what}. Give the tuned checkpoint the tokenizer that it was trained with",
        )
    return [*added, *missing]


def _holds(text: Text, tokens: list[str]) -> bool:
    whole = text if isinstance(text, str) else "\n".join(text)
    return any(token in whole for token in tokens)


def _told_added(added: list[str], with_added: int, texts: int) -> list[ReportWarning]:
    if not added:
        return []
    shown = ", ".join(added[:SHOWN_TOKENS]) + (f" and {len(added) - SHOWN_TOKENS} more" if added[SHOWN_TOKENS:] else "")
    message = f"only one of the two tokenizers has {shown}; texts are tokenized with the base model's tokenizer"
    if with_added:
        message += (
            f". {with_added} of {texts} texts contain such tokens: there the tuned model's input differs from its "
            "training"
        )
    return [ReportWarning(code="added_tokens", message=message)]


def _told_differing(differing: list[int], texts: int) -> list[ReportWarning]:
    if not differing:
        return []
    message = f"{len(differing)} of {texts} texts are split differently by the two tokenizers and were skipped"
    return [ReportWarning(code="tokenizers_differ", message=message)]


def _disagreement(
    base: PreTrainedTokenizerBase, tuned: PreTrainedTokenizerBase, text: Text, differing: list[int], texts: int
) -> str:
    one, other = (encode(tokenizer, [text], None)[0].ids for tokenizer in (base, tuned))
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    around = slice(max(0, place - 1), place + SHOWN_IDS)
    shown = [_shown(tokenizer, ids[around]) for tokenizer, ids in ((base, one), (tuned, other))]
    return (
        f"the two tokenizers split {len(differing)} of {texts} texts differently (normalisation, pre-tokenizer or "
        f"special tokens): base {shown[0]}, tuned {shown[1]}. Both models must see the same tokens: give both "
        "checkpoints the tokenizer that the tuned model was trained with"
    )


def _shown(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    tokens: Any = tokenizer.convert_ids_to_tokens(ids)
    return " ".join(map(str, tokens))


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to a text, white space included; joined they are the text.

    Of a character that several tokens make, the last of them has all.
    """
    found, told = list[str](), ""
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False))
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        found.append("" if unfinished else text[len(told) :])
        told = told if unfinished else text
    return found


def with_chat_template(base: Path, tuned: Path | None) -> tuple[PreTrainedTokenizerBase, str] | None:
    """The tokenizer that renders chats, the tuned model's or else the base's, and whose it is; None: neither can.

    An adapter may come with a chat template and no vocabulary: the base's tokenizer renders by it.

    Raises:
        InputError: a tokenizer cannot be loaded.
    """
    own = load_tokenizer(base, "/base/uri")
    if tuned is not None:
        tokenizer = load_tokenizer(tuned, "/tuned/uri") if has_vocabulary(tuned) else None
        if tokenizer is not None and tokenizer.chat_template:
            return tokenizer, "tuned"
        if tokenizer is None and (tuned / CHAT_TEMPLATE).exists():
            own.chat_template = (tuned / CHAT_TEMPLATE).read_text(encoding="utf-8")
            return own, "tuned"
    return (own, "base") if own.chat_template else None


def has_vocabulary(folder: Path) -> bool:
    """Whether a checkpoint brings a tokenizer; adapters often leave it to their base."""
    return any((folder / name).exists() for name in VOCABULARIES)
