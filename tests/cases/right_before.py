"""Section 3: what was right before, and stays so."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import IA3Config, LoraConfig
from transformers import AutoModel

from layerdrift.contract.report import Report
from tests.builders.texts import make_texts
from tests.cases import builders as make
from tests.cases.builders import TEXTS
from tests.cases.case import Case, Ground, drift_from, refused, report_with


def without_tied_head(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder, tie_word_embeddings=True)
    for side in ("base", "tuned"):
        make.edit_weights(
            ground.folder / side, lambda weights: {n: w for n, w in weights.items() if n != "lm_head.weight"}
        )
    return asked


def in_dtype(ground: Ground, dtype: torch.dtype) -> dict[str, Any]:
    folders = []
    for name in ("base", "tuned"):
        model = make.model_of("llama")
        if name == "tuned":
            make.noised(model, "layers.1.")
        folders.append(make.saved(model.to(dtype), ground.folder / name))
    return make.request(*folders)


def gamma_and_beta(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder, "bert", AutoModel, part="layer.1.")
    for side in ("base", "tuned"):
        make.edit_weights(
            ground.folder / side,
            lambda weights: {
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): one
                for name, one in weights.items()
            },
        )
    return asked


def old_rope(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    for side in ("base", "tuned"):
        scaling = {"type": "linear", "factor": 2.0}
        make.edit_json(
            ground.folder / side / "config.json", rope_parameters=None, rope_theta=10000.0, rope_scaling=scaling
        )
    return asked


def native_fp8(ground: Ground) -> dict[str, Any]:
    """Weights in blocks of 128 x 128 with inverse scales, as DeepSeek-V3 and transformers' own quantiser write them."""
    asked = make.pair(ground.folder)

    def quantised(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scales = {}
        for name in [name for name in weights if name.endswith("proj.weight")]:
            scale = weights[name].abs().max() / 448
            scales[f"{name}_scale_inv"] = scale.reshape(1, 1).float()
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        return weights | scales

    for side in ("base", "tuned"):
        make.edit_weights(ground.folder / side, quantised)
        config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
        make.edit_json(ground.folder / side / "config.json", quantization_config=config)
    return asked


def zero_three(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    make.edit_weights(
        ground.folder / "tuned", lambda weights: {name: one.new_empty(0) for name, one in weights.items()}
    )
    return asked


def adapted(ground: Ground, config: Any) -> dict[str, Any]:
    base = make.saved(make.model_of("llama"), ground.folder / "base")
    adapter = make.adapter(base, ground.folder / "adapter", config)
    if config.peft_type == "IA3":
        path = adapter / "adapter_model.safetensors"
        from safetensors.torch import load_file, save_file

        save_file({name: 0.5 * one for name, one in load_file(path).items()}, path)
    make.edit_json(adapter / "adapter_config.json", base_model_name_or_path="base")
    return make.request(base, adapter)


def parquet(ground: Ground, kind: pa.DataType) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    path = ground.folder / "data.parquet"
    pq.write_table(pa.table({"text": pa.array(make_texts(TEXTS, seed=3)).cast(kind)}), path)
    asked["dataset"] = {"uri": path.as_uri()}
    return asked


def padded_vocabulary(ground: Ground) -> dict[str, Any]:
    return make.pair(ground.folder, vocab_size=128)


def trainer_folder(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (ground.folder / "tuned" / name).write_bytes(b"not to be read")
    return asked


def sharded(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    model = make.noised(make.model_of("llama"), "layers.1.")
    (ground.folder / "tuned" / "model.safetensors").unlink()
    model.save_pretrained(ground.folder / "tuned", max_shard_size="20KB")
    index = json.loads((ground.folder / "tuned" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    return asked


def read(report: Report) -> None:
    assert report.dataset.analysed_texts == TEXTS


def drifts(report: Report) -> None:
    assert report.layers[0].drift == 0.0
    assert report.layers[-1].drift > 1e-4


DRIFTS = report_with(drift_from(2))
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}

CASES = [
    Case("3.1", "checkpoints", "a tied head that the file leaves out", "supported", without_tied_head, DRIFTS),
    Case("3.2", "checkpoints", "float16", "supported", lambda ground: in_dtype(ground, torch.float16), DRIFTS),
    Case("3.2b", "checkpoints", "bfloat16", "supported", lambda ground: in_dtype(ground, torch.bfloat16), DRIFTS),
    Case("3.3", "checkpoints", "LayerNorm with `gamma` and `beta`", "supported", gamma_and_beta, DRIFTS),
    Case("3.4", "checkpoints", "`rope_scaling` of older versions", "supported", old_rope, DRIFTS),
    Case(
        "3.5",
        "quantisation",
        "transformers' own FP8 (`quant_method: fp8`)",
        "converted",
        native_fp8,
        report_with(drifts),
        "dequantised",
    ),
    Case(
        "3.6", "checkpoints", "empty tensors of DeepSpeed ZeRO-3", "refused", zero_three, refused("/tuned/uri", "shape")
    ),
    Case(
        "3.7", "adapters", "LoRA", "converted", lambda ground: adapted(ground, LoraConfig(**LORA)), report_with(drifts)
    ),
    Case(
        "3.7b",
        "adapters",
        "DoRA",
        "converted",
        lambda ground: adapted(ground, LoraConfig(**LORA, use_dora=True)),
        report_with(drifts),
    ),
    Case(
        "3.7c",
        "adapters",
        "IA3",
        "converted",
        lambda ground: adapted(
            ground, IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
        ),
        report_with(drifts),
    ),
    Case(
        "3.8",
        "data sets",
        "Parquet `large_string` columns",
        "supported",
        lambda ground: parquet(ground, pa.large_string()),
        report_with(read),
    ),
    Case(
        "3.8b",
        "data sets",
        "Parquet dictionary columns",
        "supported",
        lambda ground: parquet(ground, pa.dictionary(pa.int32(), pa.string())),
        report_with(read),
    ),
    Case("3.9", "checkpoints", "vocabularies padded beyond the tokenizer's", "supported", padded_vocabulary, DRIFTS),
    Case(
        "3.10",
        "checkpoints",
        "Trainer folders with optimizer.pt beside the weights",
        "supported",
        trainer_folder,
        DRIFTS,
    ),
    Case("3.11", "checkpoints", "sharded weights", "supported", sharded, DRIFTS),
]
