"""Tiny checkpoints, adapters and data sets as people have them: made in milliseconds, from random weights.

The base of every case unless it says otherwise: 3 blocks, 32 wide, 4 heads, and a word-level tokenizer of 83 tokens
that puts `<s>` first.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.builders.texts import WORDS, make_texts

BLOCKS, WIDTH, HEADS, VOCABULARY = 3, 32, 4, 83
SPECIALS = ["<s>", "</s>", "<unk>", "<pad>"]
TEXTS = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 3,
}
USUAL_NAMES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "intermediate_size",
)  # fmt: skip
OWN_NAMES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 64},
    "xlnet": {"d_model": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "d_inner": 2 * WIDTH},
    "xlm": {"emb_dim": WIDTH, "n_layers": BLOCKS, "n_heads": HEADS},
}
"""Families whose configurations call the sizes otherwise."""

Change = Callable[[PreTrainedModel], None]


@dataclass(frozen=True)
class Words:
    """A word-level tokenizer. start: the token put first, or none. pad: whether it names a padding token."""

    start: str | None = "<s>"
    pad: bool = True
    lower: bool = False
    added: tuple[str, ...] = ()
    pairs: bool = False

    def save(self, folder: Path) -> None:
        """Writes its files into a checkpoint."""
        self.made().save_pretrained(folder)

    def made(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        fillers = [f"filler{number}" for number in range(VOCABULARY - len(SPECIALS) - len(WORDS))]
        vocabulary = {token: index for index, token in enumerate([*SPECIALS, *WORDS, *fillers])}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        if self.lower:
            tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if self.start is not None:
            tokenizer.post_processor = TemplateProcessing(
                single=f"{self.start} $A",
                pair=f"{self.start} $A </s> $B:1" if self.pairs else None,
                special_tokens=[(self.start, vocabulary[self.start]), ("</s>", 1)],
            )
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, **names, **({"pad_token": "<pad>"} if self.pad else {}), model_max_length=64
        )
        if self.pairs:
            fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        if self.added:
            fast.add_tokens([AddedToken(token, special=True) for token in self.added], special_tokens=True)
        return fast


WITH_START, WITHOUT_START = Words(), Words(start=None)


def model_of(family: str, auto: Any = AutoModelForCausalLM, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family, with weights large enough for its blocks to matter."""
    sizes = {**SIZES, "initializer_range": 0.2, **changes}
    if family in OWN_NAMES:
        taken = (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "intermediate_size",
        )
        sizes = {name: one for name, one in sizes.items() if name not in taken} | OWN_NAMES[family]
    config = CONFIG_MAPPING[family](**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config)
    model.eval()
    return model


def saved(model: PreTrainedModel, folder: Path, words: Words = WITH_START) -> Path:
    """A checkpoint in transformers' layout."""
    model.save_pretrained(folder)
    words.save(folder)
    return folder


def noised(model: PreTrainedModel, part: str, scale: float = 0.5) -> PreTrainedModel:
    """The model with noise on every parameter whose name has `part` in it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.add_(
                    scale * max(float(parameter.std()), 0.05) * torch.randn(parameter.shape, generator=generator)
                )
    return model


def pair(
    folder: Path,
    family: str = "llama",
    auto: Any = AutoModelForCausalLM,
    words: Words = WITH_START,
    part: str = "layers.1.",
    **changes: Any,
) -> dict[str, Any]:
    """A base and a copy of it with one block noised (the second), as a request on 64 texts."""
    base = saved(model_of(family, auto, **changes), folder / "base", words)
    tuned = saved(noised(model_of(family, auto, **changes), part), folder / "tuned", words)
    return request(base, tuned)


def request(base: Path, tuned: Path, texts: Sequence[str] | None = None, **changes: Any) -> dict[str, Any]:
    """A request on inline texts; `changes` are of the data set, `analysis` of the analysis."""
    analysis = {"sae": None, "probes": False, "grafts": False, **changes.pop("analysis", {})}
    data = changes or {"inline": {"texts": list(texts or make_texts(TEXTS, seed=3))}}
    return {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": data,
        "analysis": analysis,
    }


def classifiers(folder: Path, family: str = "llama", words: Words = WITH_START, **changes: Any) -> tuple[Path, Path]:
    """Two classifiers of two classes whose bodies differ in their second block."""
    made = [model_of(family, AutoModelForSequenceClassification, num_labels=2, **changes) for _ in range(2)]
    noised(made[1], "layers.1." if family != "bert" else "layer.1.")
    return saved(made[0], folder / "base", words), saved(made[1], folder / "tuned", words)


def own_answers(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[int]:
    """The class that a classifier gives each text, one text at a time, in its own files' words."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    answers = []
    for number, text in enumerate(texts):
        inputs = tokenizer(text, None if pairs is None else pairs[number], return_tensors="pt")
        with torch.no_grad():
            answers.append(
                int(model(**{key: inputs[key] for key in inputs if key != "token_type_ids" or pairs}).logits.argmax())
            )
    return answers


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None takes one away."""
    stored = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Writes the weights of a checkpoint anew."""
    path = folder / "model.safetensors"
    save_file(
        {name: one.contiguous() for name, one in change(load_file(path)).items()}, path, metadata={"format": "pt"}
    )


def adapter(base: Path, folder: Path, config: Any, auto: Any = AutoModelForCausalLM, rows: int | None = None) -> Path:
    """A PEFT adapter of a base, with weights drawn at random where training would have moved them."""
    model = auto.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT's advice on tied weights
        torch.manual_seed(1)
        wrapped = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name or "trainable_tokens" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape))
        wrapped.save_pretrained(str(folder))
    return folder


def zipped(folder: Path, target: Path, prefix: str = "", junk: bool = False) -> Path:
    """A folder as a zip, as the Finder makes it where `junk` is asked for."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"{prefix}{path.relative_to(folder)}")
        if junk:
            archive.writestr("__MACOSX/._config.json", b"\0")
            archive.writestr(f"{prefix}.DS_Store", b"\0")
    return target
