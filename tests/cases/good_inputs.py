"""Section 2: good inputs that were once refused, or crashed."""

from __future__ import annotations

import bz2
import gzip
import json
import shutil
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import LoraConfig, PromptTuningConfig
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from layerdrift.contract.report import Report
from tests.builders.texts import make_texts
from tests.cases import builders as make
from tests.cases.builders import TEXTS, VOCABULARY, Words
from tests.cases.case import Case, Ground, accuracy, drift_from, refused, report_with, value, warns

TEXT = {**make.SIZES, "num_key_value_heads": 2, "head_dim": 8}
VISION: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | {"sliding_window": 16},
        "vision_config": VISION | {"image_size": 16, "patch_size": 8},
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "image_size": 16, "patch_size": 8, "head_dim": 8},
        "image_token_index": 5,
        "spatial_merge_size": 1,
    },
    "qwen2_5_vl": {
        "text_config": TEXT
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 4,
            "intermediate_size": 64,
            "out_hidden_size": 32,
        },
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 7,
        "vision_end_token_id": 8,
    },
}


def multimodal(ground: Ground, family: str) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    config = CONFIG_MAPPING[family](**MULTIMODAL[family])
    folders = []
    for name in ("base", "tuned"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(config)
        if name == "tuned":
            make.noised(model, "language_model.layers.1.")
        folders.append(make.saved(model, ground.folder / name))
    return make.request(*folders)


def grown(ground: Ground, added: tuple[str, ...], in_texts: bool = False) -> dict[str, Any]:
    """The tuned tokenizer has tokens of its own at the end, and its embeddings have rows for them."""
    base = make.saved(make.model_of("llama"), ground.folder / "base")
    tuned = make.noised(make.model_of("llama"), "layers.1.")
    tuned.resize_token_embeddings(VOCABULARY + len(added), mean_resizing=False)
    asked = make.request(base, make.saved(tuned, ground.folder / "tuned", Words(added=added)))
    if in_texts:
        asked["dataset"] = {"inline": {"texts": [f"{text} {added[0]}" for text in make_texts(TEXTS, seed=3)]}}
    return asked


def adapted(
    ground: Ground, config: Any, auto: Any = AutoModelForCausalLM, rows: int | None = None, **stored: Any
) -> dict[str, Any]:
    base = make.saved(make.model_of("llama", tie_word_embeddings=True), ground.folder / "base")
    adapter = make.adapter(base, ground.folder / "adapter", config, auto, rows)
    make.edit_json(adapter / "adapter_config.json", base_model_name_or_path="base", **stored)
    return make.request(base, adapter)


def renamed_reserved(ground: Ground) -> dict[str, Any]:
    """A reserved token of the base has a name in the tuned tokenizer; no text holds either."""
    asked = make.pair(ground.folder, words=Words(added=("<|reserved_1|>",)), vocab_size=VOCABULARY + 1)
    Words(added=("<|im_start|>",)).save(ground.folder / "tuned")
    return asked


def masked_adapter(ground: Ground) -> dict[str, Any]:
    base = make.saved(make.model_of("bert", AutoModelForMaskedLM), ground.folder / "base", Words(added=("[MASK]",)))
    config = LoraConfig(r=2, target_modules=["query", "value"])
    adapter = make.adapter(base, ground.folder / "adapter", config, AutoModelForMaskedLM)
    make.edit_json(adapter / "adapter_config.json", base_model_name_or_path="base")
    return make.request(base, adapter)


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **changes})


def zipped(ground: Ground, prefix: str = "", junk: bool = False, folders: tuple[str, ...] = ()) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    tuned = ground.folder / "tuned"
    for name in folders:
        (tuned / name).mkdir()
        (tuned / name / "config.json").write_text('{"word_embedding_dimension": 32}')
    target = ground.folder.parent / f"{ground.folder.name}-{prefix.strip('/') or 'flat'}{junk}.zip"
    asked["tuned"] = {"uri": ground.client.upload(make.zipped(tuned, target, prefix, junk)).uri}
    return asked


def nested_folder(ground: Ground) -> dict[str, Any]:
    """As early versions of sentence-transformers wrote it."""
    asked = make.pair(ground.folder, "bert", AutoModel, part="layer.1.")
    for side in ("base", "tuned"):
        folder = ground.folder / side
        inner = ground.folder / f"{side}-st"
        shutil.move(folder, inner / "0_Transformer")
        (inner / "1_Pooling").mkdir()
        (inner / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32}')
        (inner / "modules.json").write_text(
            json.dumps([{"idx": 0, "path": "0_Transformer", "type": "models.Transformer"}])
        )
        asked[side] = {"uri": inner.as_uri()}
    return asked


def edited(ground: Ground, **changes: Any) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    for side in ("base", "tuned"):
        make.edit_json(ground.folder / side / "config.json", **changes)
    return asked


def renamed(ground: Ground, name: Callable[[str], str]) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    for side in ("base", "tuned"):
        make.edit_weights(ground.folder / side, lambda weights: {name(key): one for key, one in weights.items()})
    return asked


def sentencepiece_only(ground: Ground, family: str, file: str) -> dict[str, Any]:
    """A checkpoint whose only vocabulary is a sentencepiece model, trained here on the texts' words."""
    import io

    import sentencepiece

    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts(400)),
        model_writer=buffer,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    sizes: dict[str, Any] = {"vocab_size": 200, "pad_token_id": 0}
    if family == "mt5":
        sizes |= {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    asked: dict[str, Any] = {}
    for side in ("base", "tuned"):
        model = _spm_model(family, sizes)
        if side == "tuned":
            make.noised(model, "encoder.layer.1." if family != "mt5" else "encoder.block.1.")
        folder = ground.folder / side
        model.save_pretrained(folder)
        (folder / file).write_bytes(buffer.getvalue())
        kind = {"mt5": "T5Tokenizer", "deberta-v2": "DebertaV2Tokenizer"}[family]
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "model_max_length": 64}))
    return make.request(ground.folder / "base", ground.folder / "tuned") | asked


def _spm_model(family: str, sizes: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, DebertaV2Model, MT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "mt5":
            return MT5EncoderModel(CONFIG_MAPPING[family](**sizes))
        kept = {name: one for name, one in make.SIZES.items() if not name.endswith("_token_id")}
        return DebertaV2Model(CONFIG_MAPPING[family](**{**kept, **sizes, "type_vocab_size": 0}))


def quantised_config(ground: Ground, **config: Any) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    make.edit_json(ground.folder / "tuned" / "config.json", quantization_config=config)
    return asked


def numbered_names(ground: Ground) -> dict[str, Any]:
    base, tuned = make.classifiers(ground.folder)
    for folder in (base, tuned):
        make.edit_json(folder / "config.json", id2label={"0": 0, "1": 1}, label2id={"0": 0, "1": 1})
    texts = make_texts(TEXTS, seed=3)
    return make.request(base, tuned, inline={"texts": texts, "labels": make.own_answers(tuned, texts)})


def headed(ground: Ground, auto: Any, **changes: Any) -> dict[str, Any]:
    folders = []
    for name in ("base", "tuned"):
        model = make.model_of("bert", auto, **changes)
        if name == "tuned":
            make.noised(model, "layer.1.")
        folders.append(make.saved(model, ground.folder / name))
    texts = make_texts(TEXTS, seed=3)
    return make.request(*folders, inline={"texts": texts, "labels": [number % 2 for number in range(TEXTS)]})


def data_file(ground: Ground, name: str, body: bytes, **columns: Any) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    path = ground.folder / name
    path.write_bytes(body)
    asked["dataset"] = {"uri": path.as_uri(), **columns}
    return asked


def parquet(ground: Ground, **columns: Any) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    path = ground.folder / "data.parquet"
    pq.write_table(pa.table(columns), path)
    asked["dataset"] = {"uri": path.as_uri()}
    return asked


def mlflow_peft(ground: Ground) -> dict[str, Any]:
    """The folder that mlflow.transformers logs for a PEFT model."""
    asked = adapted(ground, lora())
    root = ground.folder / "logged"
    shutil.copytree(ground.folder / "adapter", root / "peft")
    make.WITH_START.save(root / "components" / "tokenizer")
    asked["tuned"] = {"uri": root.as_uri()}
    return asked


def mlflow_sentence_transformers(ground: Ground) -> dict[str, Any]:
    """The folder that mlflow.sentence_transformers logs."""
    asked = nested_folder(ground)
    for side in ("base", "tuned"):
        root = ground.folder / f"{side}-logged"
        shutil.move(ground.folder / f"{side}-st", root / "model.sentence_transformer")
        (root / "MLmodel").write_text("flavors: {}\n")
        asked[side] = {"uri": root.as_uri()}
    return asked


LINES = "\n".join(json.dumps({"text": text}) for text in make_texts(TEXTS, seed=3)).encode()
CSV = "text;label\n" + "".join(f"{text};{number % 2}\n" for number, text in enumerate(make_texts(TEXTS, seed=3)))
NESTED = "\n".join(json.dumps({"data": {"text": text}}) for text in make_texts(TEXTS, seed=3)).encode()
ARRAY = json.dumps([{"text": text} for text in make_texts(TEXTS, seed=3)]).encode()
NULLS = LINES + b'\n{"text": null}\n{"text": null}'
MEMBERS = b"".join(gzip.compress(part) for part in (b"", LINES[:500], LINES[500:]))


def all_texts(report: Report) -> None:
    assert report.dataset.analysed_texts == TEXTS


DRIFTS = report_with(drift_from(2))
READ = report_with(all_texts)

CASES = [
    *(
        Case(
            f"2.1 {family}",
            "families",
            f"multimodal: {family}",
            "supported",
            lambda ground, family=family: multimodal(ground, family),  # type: ignore[misc]
            report_with(drift_from(2), lambda report: _has_perplexity(report)),
            "its language model is compared",
        )
        for family in MULTIMODAL
    ),
    Case(
        "2.2",
        "tokenizers",
        "the tuned tokenizer has an extra [PAD], embeddings resized",
        "warned",
        lambda ground: grown(ground, ("[PAD]",)),
        report_with(drift_from(2), warns("added_tokens", "[PAD]")),
    ),
    Case(
        "2.2b",
        "tokenizers",
        "the tuned tokenizer has chat tokens more, and texts hold them",
        "warned",
        lambda ground: grown(ground, ("<|im_start|>", "<|im_end|>"), in_texts=True),
        report_with(drift_from(2), warns("added_tokens", "<|im_start|>", f"{TEXTS} of {TEXTS}")),
    ),
    Case(
        "2.3",
        "adapters",
        "`modules_to_save` with tied embeddings",
        "converted",
        lambda ground: adapted(ground, lora(modules_to_save=["embed_tokens", "lm_head"])),
        report_with(lambda report: _drifts(report), lambda report: _has_perplexity(report)),
    ),
    Case(
        "2.3b",
        "adapters",
        "a key in adapter_config.json that this PEFT does not know",
        "converted",
        lambda ground: adapted(ground, lora(), invented_by_a_later_version=7),
        report_with(lambda report: _drifts(report), lambda report: _has_perplexity(report)),
    ),
    Case(
        "2.4",
        "adapters",
        "`task_type` null",
        "converted",
        lambda ground: adapted(ground, lora(task_type=None)),
        report_with(lambda report: _drifts(report), lambda report: _has_perplexity(report)),
    ),
    Case(
        "2.4b",
        "adapters",
        "`task_type` TOKEN_CLS",
        "converted",
        lambda ground: adapted(ground, lora(task_type="TOKEN_CLS"), AutoModelForTokenClassification),
        report_with(lambda report: _drifts(report), warns("answers_not_evaluated", "TokenClassification")),
    ),
    Case(
        "2.4c",
        "adapters",
        "`task_type` that does not fit the keys",
        "converted",
        lambda ground: adapted(ground, lora(), task_type="SEQ_CLS"),
        report_with(lambda report: _drifts(report)),
    ),
    Case(
        "2.2c",
        "tokenizers",
        "a reserved token that has another name in the tuned tokenizer",
        "warned",
        renamed_reserved,
        report_with(drift_from(2), warns("added_tokens", "<|im_start|>")),
    ),
    Case(
        "2.4d",
        "adapters",
        "LoRA on a masked language model, `task_type` null",
        "converted",
        masked_adapter,
        report_with(lambda report: _drifts(report), warns("answers_not_evaluated", "mask token")),
    ),
    Case(
        "2.5",
        "adapters",
        "adapter trained after the vocabulary grew",
        "converted",
        lambda ground: adapted(ground, lora(modules_to_save=["embed_tokens", "lm_head"]), rows=VOCABULARY + 3),
        report_with(lambda report: _drifts(report), lambda report: _has_perplexity(report)),
        "the base gets as many rows",
    ),
    Case(
        "2.6",
        "adapters",
        "prompt tuning, prefix tuning, p-tuning",
        "refused",
        lambda ground: adapted(ground, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
        refused("/tuned/uri", "PROMPT_TUNING", "nothing to merge", at_post=True),
    ),
    Case(
        "2.7",
        "checkpoints",
        "zip made by the Finder",
        "supported",
        lambda ground: zipped(ground, "model/", junk=True),
        DRIFTS,
    ),
    Case(
        "2.7b",
        "checkpoints",
        "zip with subfolders (`1_Pooling/`, `runs/`)",
        "supported",
        lambda ground: zipped(ground, folders=("1_Pooling", "runs")),
        DRIFTS,
    ),
    Case(
        "2.8", "checkpoints", "sentence-transformers folder with `0_Transformer/`", "supported", nested_folder, DRIFTS
    ),
    Case(
        "2.9",
        "tokenizers",
        "only `spm.model` (DeBERTa-v3)",
        "supported",
        lambda ground: sentencepiece_only(ground, "deberta-v2", "spm.model"),
        DRIFTS,
    ),
    Case(
        "2.9b",
        "tokenizers",
        "only `spiece.model` (mT5)",
        "supported",
        lambda ground: sentencepiece_only(ground, "mt5", "spiece.model"),
        DRIFTS,
    ),
    Case(
        "2.10",
        "checkpoints",
        "`auto_map` of a model type that transformers has itself (Phi-3)",
        "supported",
        lambda ground: edited(ground, auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
        DRIFTS,
        "its code never runs",
    ),
    Case(
        "2.10b",
        "checkpoints",
        "`auto_map` of a model type that transformers does not have",
        "refused",
        lambda ground: edited(ground, model_type="invented", auto_map={"AutoModel": "modeling_x.X"}),
        refused("/base/uri", "invented", "auto_map"),
    ),
    *(
        Case(
            f"2.11 {name}",
            "quantisation",
            f"{name} checkpoints",
            "refused",
            lambda ground, config=config: quantised_config(ground, **config),  # type: ignore[misc]
            refused("/tuned/uri", name, "dequantize", at_post=True),
        )
        for name, config in {
            "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "GPTQ": {"quant_method": "gptq", "bits": 4},
            "AWQ": {"quant_method": "awq", "bits": 4},
            "compressed-tensors": {"quant_method": "compressed-tensors"},
            "HQQ": {"quant_method": "hqq"},
        }.items()
    ),
    Case(
        "2.12",
        "checkpoints",
        "names prefixed `_orig_mod.` (torch.compile)",
        "converted",
        lambda ground: renamed(ground, lambda name: f"_orig_mod.{name}"),
        report_with(drift_from(2), warns("wrapped_weights")),
    ),
    Case(
        "2.12b",
        "checkpoints",
        "names prefixed `module.` (DataParallel)",
        "converted",
        lambda ground: renamed(ground, lambda name: f"module.{name}"),
        report_with(drift_from(2), warns("wrapped_weights")),
    ),
    Case(
        "2.12c",
        "checkpoints",
        "names with `_fsdp_wrapped_module` inside (FSDP)",
        "converted",
        lambda ground: renamed(ground, lambda name: name.replace("layers.", "layers._fsdp_wrapped_module.")),
        report_with(drift_from(2), warns("wrapped_weights")),
    ),
    Case(
        "2.13",
        "checkpoints",
        "`attn_implementation: flash_attention_2` in config.json",
        "supported",
        lambda ground: edited(
            ground, attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2"
        ),
        DRIFTS,
        "the service runs what it has",
    ),
    Case(
        "2.14",
        "families",
        "ALBERT (one block used several times)",
        "supported",
        lambda ground: make.pair(
            ground.folder, "albert", AutoModel, part="full_layer_layer_norm.weight", embedding_size=16
        ),
        report_with(lambda report: _layers(report), lambda report: _drifts(report)),
        "layers are the calls of the block",
    ),
    Case(
        "2.15",
        "heads",
        "`id2label` with integer values",
        "supported",
        numbered_names,
        report_with(accuracy(1.0), value(lambda report: report.outputs and report.outputs.labels, ["0", "1"])),
    ),
    Case(
        "2.16",
        "heads",
        "regression",
        "warned",
        lambda ground: headed(ground, AutoModelForSequenceClassification, num_labels=1),
        report_with(drift_from(2), warns("answers_not_evaluated", "regression")),
        "representations only",
    ),
    Case(
        "2.16b",
        "heads",
        "several labels for a text",
        "warned",
        lambda ground: headed(
            ground, AutoModelForSequenceClassification, num_labels=3, problem_type="multi_label_classification"
        ),
        report_with(drift_from(2), warns("answers_not_evaluated", "multi-label")),
        "representations only",
    ),
    Case(
        "2.16c",
        "heads",
        "token classification",
        "warned",
        lambda ground: headed(ground, AutoModelForTokenClassification),
        report_with(drift_from(2), warns("answers_not_evaluated", "TokenClassification")),
        "representations only",
    ),
    Case(
        "2.17",
        "data sets",
        '`{"text": null}`',
        "warned",
        lambda ground: data_file(ground, "data.jsonl", NULLS),
        report_with(all_texts, warns("blank_texts", "2 of")),
    ),
    Case(
        "2.17b",
        "data sets",
        "null texts in Parquet",
        "warned",
        lambda ground: parquet(ground, text=[*make_texts(TEXTS, seed=3), None]),
        report_with(all_texts, warns("blank_texts", "1 of")),
    ),
    Case(
        "2.18",
        "data sets",
        "gzip of several members",
        "supported",
        lambda ground: data_file(ground, "data.jsonl.gz", MEMBERS),
        READ,
    ),
    Case(
        "2.18b",
        "data sets",
        "bzip2 of several streams",
        "supported",
        lambda ground: data_file(ground, "data.jsonl.bz2", bz2.compress(LINES[:500]) + bz2.compress(LINES[500:])),
        READ,
    ),
    Case(
        "2.19",
        "data sets",
        "CSV with semicolons",
        "supported",
        lambda ground: data_file(ground, "data.csv", CSV.encode()),
        READ,
    ),
    Case(
        "2.19b",
        "data sets",
        "CSV in UTF-16 with a byte order mark",
        "supported",
        lambda ground: data_file(ground, "data.csv", CSV.encode("utf-16")),
        READ,
    ),
    Case("2.19c", "data sets", "a JSON array", "supported", lambda ground: data_file(ground, "data.json", ARRAY), READ),
    Case(
        "2.19d",
        "data sets",
        "nested keys (`data.text`)",
        "supported",
        lambda ground: data_file(ground, "data.jsonl", NESTED, text_column="data.text"),
        READ,
    ),
    Case(
        "2.19e",
        "data sets",
        "Windows-1252",
        "refused",
        lambda ground: data_file(ground, "data.csv", b"text\n" + "caf\u00e9\n".encode("cp1252") * 30),
        refused("/dataset/uri", "UTF-8", at_post=True),
    ),
    Case(
        "2.20",
        "data sets",
        "a Parquet text column of bytes",
        "supported",
        lambda ground: parquet(ground, text=[text.encode() for text in make_texts(TEXTS, seed=3)]),
        READ,
    ),
    Case(
        "2.20b",
        "data sets",
        "a Parquet text column of numbers",
        "refused",
        lambda ground: parquet(ground, text=list(range(TEXTS))),
        refused("/dataset/text_column", "text", "int64"),
    ),
    Case(
        "2.22",
        "checkpoints",
        "MLflow's PEFT flavour",
        "converted",
        mlflow_peft,
        report_with(lambda report: _drifts(report)),
    ),
    Case(
        "2.22b",
        "checkpoints",
        "MLflow's sentence-transformers flavour",
        "supported",
        mlflow_sentence_transformers,
        DRIFTS,
    ),
]


def _has_perplexity(report: Report) -> None:
    assert report.outputs is not None
    assert report.outputs.perplexity_ratio is not None


def _drifts(report: Report) -> None:
    assert report.layers[-1].drift > 1e-4
    assert all(layer.similarity["token"].cka.value is not None for layer in report.layers[1:])


def _layers(report: Report) -> None:
    assert len(report.layers) == make.BLOCKS + 1
    assert report.layers[0].drift == 0.0
