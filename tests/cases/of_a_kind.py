"""Inputs of the same kinds as the list's, which nobody reported: each was once wrong, refused, or a crash."""

from __future__ import annotations

from typing import Any

from peft import TrainableTokensConfig
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from layerdrift.contract.report import Report
from tests.builders.texts import make_texts
from tests.cases import builders as make
from tests.cases.builders import TEXTS, WITHOUT_START, Words
from tests.cases.case import Case, Ground, accuracy, drift_from, refused, report_with, silent, value, warns
from tests.cases.good_inputs import adapted, data_file, lora


def last_token_classifier(ground: Ground) -> dict[str, Any]:
    """XLNet's classifier reads the last position, which padding on the right would take."""
    folders = []
    for name in ("base", "tuned"):
        model = make.model_of("xlnet", AutoModelForSequenceClassification, num_labels=2)
        if name == "tuned":
            make.noised(model, "layer.1.")
        folders.append(make.saved(model, ground.folder / name))
    texts = make_texts(TEXTS, seed=3)
    return make.request(*folders, inline={"texts": texts, "labels": make.own_answers(folders[1], texts)})


def tokenizer_of_another_class(ground: Ground) -> dict[str, Any]:
    """A word-level tokenizer.json in a folder of a model type whose own tokenizers are of another kind."""
    return make.pair(ground.folder, "qwen2", num_key_value_heads=2)


def masked_without_mask_token(ground: Ground) -> dict[str, Any]:
    words = Words(added=("[MASK]",))
    asked = make.pair(ground.folder, "bert", AutoModelForMaskedLM, words, "layer.1.", vocab_size=make.VOCABULARY + 1)
    asked["analysis"]["grafts"] = True
    return asked


def adapter_without_head(ground: Ground) -> dict[str, Any]:
    """LoRA of a language model over a checkpoint that holds its body alone."""
    base = make.saved(make.model_of("llama", AutoModel), ground.folder / "base")
    adapter = make.adapter(base, ground.folder / "adapter", lora())
    make.edit_json(adapter / "adapter_config.json", base_model_name_or_path="base")
    return make.request(base, adapter)


def with_grafts(asked: dict[str, Any]) -> dict[str, Any]:
    asked["analysis"]["grafts"] = True
    return asked


def stray_quotes(ground: Ground, *rows: int) -> dict[str, Any]:
    """Texts of a CSV that begin with a quote which is no part of CSV's own."""
    texts = [f'"{text}' if number in rows else text for number, text in enumerate(make_texts(TEXTS, seed=3))]
    table = "label,text\n" + "".join(f"{number % 2},{text}\n" for number, text in enumerate(texts))
    return data_file(ground, "data.csv", table.encode())


def quoted_lines(ground: Ground) -> dict[str, Any]:
    """Cells in quotes with line ends and doubled quotes in them."""
    texts = [f'"{text}\nhe said ""{text}"""' for text in make_texts(TEXTS, seed=3)]
    return data_file(ground, "data.csv", ("text\n" + "".join(f"{text}\n" for text in texts)).encode())


def _drifts(report: Report) -> None:
    assert report.layers[-1].drift > 1e-4


def drifts_and_answers(report: Report) -> None:
    _drifts(report)
    assert report.outputs is not None
    assert report.outputs.perplexity_ratio is not None


CASES = [
    Case(
        "4.1",
        "heads",
        "XLNet's classifier, which reads the last position",
        "supported",
        last_token_classifier,
        report_with(accuracy(1.0), drift_from(2)),
        "texts of different lengths are read apart",
    ),
    Case(
        "4.2",
        "families",
        "XLM, Flaubert (parts of blocks in lists of their own)",
        "refused",
        lambda ground: make.pair(
            ground.folder,
            "xlm",
            AutoModel,
            part="ffns.1.",
            emb_dim=make.WIDTH,
            n_layers=make.BLOCKS,
            n_heads=make.HEADS,
        ),
        refused("/base/uri", "4 module lists", "not supported"),
    ),
    Case(
        "4.3",
        "tokenizers",
        "a tokenizer.json of another kind than the model type's own tokenizers",
        "supported",
        tokenizer_of_another_class,
        report_with(
            drift_from(2),
            silent("blank_texts"),
            value(lambda report: report.dataset.analysed_texts, TEXTS),
            value(
                lambda report: report.dataset.analysed_tokens + report.dataset.excluded_outliers,
                sum(len(text.split()) for text in make_texts(TEXTS, seed=3)),
            ),
        ),
        "tokenizer.json says how texts are split",
    ),
    Case(
        "4.4",
        "data sets",
        "CSV in which a text begins with a stray quote",
        "refused",
        lambda ground: stray_quotes(ground, 40),
        refused("/dataset/uri", "lines 42 to 65", "double each quote"),
    ),
    Case(
        "4.5",
        "data sets",
        "CSV in which two texts begin with a stray quote",
        "refused",
        lambda ground: stray_quotes(ground, 20, 40),
        refused("/dataset/uri", "lines 22 to 42", "double each quote"),
    ),
    Case(
        "4.6",
        "adapters",
        "LoRA on embeddings and head, tied",
        "converted",
        lambda ground: adapted(ground, lora(target_modules=["embed_tokens", "lm_head", "q_proj"])),
        report_with(drifts_and_answers),
    ),
    Case(
        "4.7",
        "adapters",
        "LoRA with `bias: all`",
        "converted",
        lambda ground: adapted(ground, lora(bias="all")),
        report_with(drifts_and_answers),
    ),
    Case(
        "4.8",
        "adapters",
        "LoRA with `lora_bias` on layers without a bias",
        "refused",
        lambda ground: adapted(ground, lora(lora_bias=True)),
        refused("/tuned/uri", "cannot be merged", "lora_bias", "full checkpoint"),
    ),
    Case(
        "4.9",
        "adapters",
        "trainable tokens",
        "converted",
        lambda ground: adapted(ground, TrainableTokensConfig(token_indices=[5, 6, 7], task_type="CAUSAL_LM")),
        report_with(drifts_and_answers),
    ),
    Case(
        "4.10b",
        "adapters",
        "an adapter for a head that neither it nor its base holds",
        "warned",
        adapter_without_head,
        report_with(
            _drifts,
            warns("answers_not_evaluated", "no head"),
            value(lambda report: report.outputs, None),
        ),
        "representations only",
    ),
    Case(
        "4.10",
        "heads",
        "a masked language model whose tokenizer names no mask token",
        "warned",
        masked_without_mask_token,
        report_with(drift_from(2), warns("no_mask_token"), warns("answers_not_evaluated", "mask token")),
        "representations only",
    ),
    *(
        Case(
            f"4.0 {family}",
            "families",
            what,
            "supported",
            lambda ground, family=family, changes=changes: with_grafts(  # type: ignore[misc]
                make.pair(ground.folder, family, **changes)
            ),
            report_with(drift_from(2), *checks),
            note,
        )
        for family, what, changes, checks, note in (
            (
                "llama4_text",
                "Llama 4, its text part alone",
                {
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "num_local_experts": 2,
                    "intermediate_size_mlp": 64,
                    "attention_chunk_size": 16,
                    "interleave_moe_layer_step": 2,
                },
                [],
                "",
            ),
            (
                "recurrent_gemma",
                "RecurrentGemma",
                {
                    "num_key_value_heads": 1,
                    "lru_width": make.WIDTH,
                    "attention_window_size": 16,
                    "block_types": ["recurrent", "attention", "recurrent"],
                },
                [warns("noise_floor_not_computed")],
                "without the numerical null",
            ),
            (
                "rwkv",
                "RWKV",
                {
                    "part": "blocks.1.",
                    "words": WITHOUT_START,
                    "attention_hidden_size": make.WIDTH,
                    "context_length": 64,
                },
                [warns("no_grafts")],
                "without grafts and advice",
            ),
            (
                "fnet",
                "FNet",
                {"part": "layer.1.", "auto": AutoModel},
                [warns("noise_floor_not_computed")],
                "without the numerical null; texts of different lengths are read apart",
            ),
        )
    ),
    Case(
        "4.11",
        "families",
        "encoder-decoders (BART, LongT5, …)",
        "refused",
        lambda ground: encoder_decoder(ground),
        refused("/base/uri", "encoder-decoder", "bart", "t5", at_post=True),
        "of T5, mT5, umT5 and T5Gemma the encoder is read",
    ),
    Case(
        "4.12",
        "data sets",
        "CSV whose quoted cells hold line ends and doubled quotes",
        "supported",
        quoted_lines,
        report_with(value(lambda report: report.dataset.analysed_texts, TEXTS)),
    ),
]


def encoder_decoder(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    for side in ("base", "tuned"):
        make.edit_json(ground.folder / side / "config.json", model_type="bart", is_encoder_decoder=True)
    return asked
