"""Section 1: inputs that once gave a wrong number and no error."""

from __future__ import annotations

import json
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from layerdrift.contract.report import Report
from tests.builders.texts import make_texts
from tests.cases import builders as make
from tests.cases.builders import TEXTS, WITHOUT_START, Words
from tests.cases.case import Case, Ground, accuracy, drift_from, refused, report_with, silent, warns

MOE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_key_value_heads": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_key_value_heads": 2,
    },
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "num_key_value_heads": 2,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
    "gpt_oss": {
        "num_local_experts": 4,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


def padded_decoders(ground: Ground) -> dict[str, Any]:
    """Texts of 2 to 30 words in batches; the labels are what the tuned model says of each text alone."""
    base, tuned = make.classifiers(ground.folder, words=Words(pad=False), pad_token_id=None)
    make.edit_json(tuned / "config.json", pad_token_id=0)
    texts = make_texts(TEXTS, seed=5, length=16)
    return make.request(base, tuned, inline={"texts": texts, "labels": make.own_answers(tuned, texts)})


def end_of_text_padding(ground: Ground) -> dict[str, Any]:
    """The padding token is the end of text, which also occurs in texts."""
    words = Words(pad=False)
    base, tuned = make.classifiers(ground.folder, words=words, pad_token_id=1)
    texts = [f"{text} </s>" if number % 2 else text for number, text in enumerate(make_texts(TEXTS, seed=5, length=16))]
    return make.request(base, tuned, inline={"texts": texts, "labels": make.own_answers(tuned, texts)})


def causal(report: Report) -> None:
    """The first token of every text was left out, as in a causal model."""
    assert report.dataset.excluded_first_tokens == report.dataset.analysed_texts


def projected_opt(ground: Ground) -> dict[str, Any]:
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 16}
    return make.pair(ground.folder, "opt", **sizes)


def unknown_quantiser(ground: Ground, said: bool) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    tuned = ground.folder / "tuned"

    def quantised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        scales = {}
        for name in [name for name in weights if name.endswith("proj.weight")]:
            scales[name.replace(".weight", ".weight_scale")] = torch.tensor(1 / 32)
            weights[name] = (weights[name] * 32).to(torch.float8_e4m3fn)
        return weights | scales

    make.edit_weights(tuned, quantised)
    if said:
        make.edit_json(tuned / "config.json", quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    return asked


def adapter_beside_weights(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    name = "model.layers.1.self_attn.q_proj.lora_{}.weight"
    more = {name.format("A"): torch.ones(4, make.WIDTH), name.format("B"): torch.ones(make.WIDTH, 4)}
    make.edit_weights(ground.folder / "tuned", lambda weights: weights | more)
    return asked


def more_blocks_than_said(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    for side in ("base", "tuned"):
        make.edit_json(ground.folder / side / "config.json", num_hidden_layers=2, layer_types=None)
    return asked


def sinking(model: PreTrainedModel) -> PreTrainedModel:
    """A huge state at position 0, which no block looks at much."""
    with torch.no_grad():
        dict(model.named_parameters())["transformer.wpe.weight"][0, 0] += 3000
    return model


def sink(ground: Ground) -> dict[str, Any]:
    base, tuned = (sinking(make.model_of("gpt2")) for _ in range(2))
    redrawn = make.model_of("gpt2", seed=9)
    tuned.transformer.h[1].load_state_dict(redrawn.transformer.h[1].state_dict())
    folders = [
        make.saved(model, ground.folder / name, WITHOUT_START) for model, name in ((base, "base"), (tuned, "tuned"))
    ]
    return make.request(*folders, analysis={"max_tokens": 100_000})


def sink_left_out(report: Report) -> None:
    """Drift is what the other positions show; with the sink it would be next to nothing."""
    last = report.layers[2]
    assert last.drift > 0.05
    assert last.all_tokens is not None
    assert last.all_tokens.drift < 0.02
    assert report.dataset.excluded_first_tokens == TEXTS


def massive_encoder(ground: Ground) -> dict[str, Any]:
    """An encoder in which one word's state is a thousand times as long as any other's."""
    base, tuned = (make.model_of("bert", AutoModelForSequenceClassification) for _ in range(2))
    make.noised(tuned, "layer.1.")
    for model in (base, tuned):
        with torch.no_grad():
            model.bert.encoder.layer[0].output.LayerNorm.weight[:] = 1.0
            model.bert.embeddings.LayerNorm = torch.nn.Identity()
    return make.request(make.saved(base, ground.folder / "base"), make.saved(tuned, ground.folder / "tuned"))


def table(ground: Ground, name: str, body: str, **columns: Any) -> dict[str, Any]:
    """Two classifiers and a data set file."""
    base, tuned = make.classifiers(ground.folder)
    path = ground.folder / name
    path.write_text(body, encoding="utf-8")
    return make.request(base, tuned, uri=path.as_uri(), **columns)


def labelled_lines(ground: Ground, label: str) -> dict[str, Any]:
    base, tuned = make.classifiers(ground.folder)
    texts = make_texts(TEXTS, seed=3)
    answers = make.own_answers(tuned, texts)
    lines = [
        f'{{"text": {json.dumps(text)}, "label": {label.format(answer)}}}'
        for text, answer in zip(texts, answers, strict=True)
    ]
    path = ground.folder / "data.jsonl"
    path.write_text("\n".join(lines))
    return make.request(base, tuned, uri=path.as_uri())


def partly_labelled(ground: Ground) -> dict[str, Any]:
    base, tuned = make.classifiers(ground.folder)
    texts = make_texts(TEXTS, seed=3)
    answers = make.own_answers(tuned, texts)
    path = ground.folder / "data.jsonl"
    rows = [{"text": text, "label": answers[n] if n % 2 else None} for n, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return make.request(base, tuned, uri=path.as_uri())


def stars(ground: Ground) -> dict[str, Any]:
    base, tuned = make.classifiers(ground.folder)
    texts = make_texts(TEXTS, seed=3)
    return make.request(base, tuned, inline={"texts": texts, "labels": [1 + n for n in make.own_answers(tuned, texts)]})


def seeing_ahead(ground: Ground) -> dict[str, Any]:
    """A head for the next token on a model that sees it."""
    return make.pair(ground.folder, "bert", AutoModelForCausalLM, part="layer.1.")


def long_texts(ground: Ground, length: int | None) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    asked["dataset"] = {
        "inline": {"texts": [" ".join(make_texts(4, seed=seed, length=12)[:4])[:200] for seed in range(TEXTS)]}
    }
    asked["analysis"]["max_length"] = length
    return asked


def rendered_chat(ground: Ground) -> dict[str, Any]:
    words = Words(added=("<|user|>", "<|end|>"))
    asked = make.pair(ground.folder, words=words, vocab_size=make.VOCABULARY + 2)
    texts = [f"<s> <|user|> {text} <|end|>" for text in make_texts(TEXTS, seed=3)]
    asked["dataset"] = {"inline": {"texts": texts}}
    return asked


def one_start(report: Report) -> None:
    text = report.tokens.texts[0]
    assert text.tokens.count("<s>") == 1
    special = [token for token, flag in zip(text.tokens, text.special, strict=True) if flag]
    assert {"<s>", "<|user|>", "<|end|>"} <= set(special)


def other_normaliser(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    Words(lower=True).save(ground.folder / "tuned")
    asked["dataset"] = {
        "inline": {"texts": [text.upper() if number % 2 else text for number, text in enumerate(make_texts(TEXTS))]}
    }
    return asked


def no_start_in_tuned(ground: Ground) -> dict[str, Any]:
    asked = make.pair(ground.folder)
    WITHOUT_START.save(ground.folder / "tuned")
    return asked


def other_base(ground: Ground) -> dict[str, Any]:
    base = make.saved(make.model_of("llama"), ground.folder / "wanted")
    other = make.saved(make.model_of("llama", seed=5), ground.folder / "trained-on")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return make.request(base, make.adapter(other, ground.folder / "adapter", config))


def pairs(ground: Ground, paired: bool) -> dict[str, Any]:
    words = Words(start="<s>", pairs=True)
    base, tuned = make.classifiers(ground.folder, "bert", words=words, id2label={0: "entailment", 1: "contradiction"})
    texts, seconds = make_texts(TEXTS, seed=3), make_texts(TEXTS, seed=4)
    answers = make.own_answers(tuned, texts, seconds)
    names = ["entailment", "contradiction"]
    path = ground.folder / "nli.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"premise": one, "hypothesis": other, "label": names[answer]})
            for one, other, answer in zip(texts, seconds, answers, strict=True)
        )
    )
    columns = {"text_column": "premise"} | ({"text_pair_column": "hypothesis"} if paired else {})
    return make.request(base, tuned, uri=path.as_uri(), **columns)


def numbered(ground: Ground) -> dict[str, Any]:
    base, tuned = make.classifiers(ground.folder, id2label={0: "negative", 1: "positive"})
    texts = make_texts(TEXTS, seed=3)
    return make.request(base, tuned, inline={"texts": texts, "labels": make.own_answers(tuned, texts)})


CSV = "text,sentiment\n" + "".join(f"{text},{number % 2}\n" for number, text in enumerate(make_texts(TEXTS)))

CASES = [
    Case(
        "1.1",
        "heads",
        "decoder classifier, no padding token in the tokenizer, `pad_token_id` in the tuned config",
        "supported",
        padded_decoders,
        report_with(accuracy(1.0)),
    ),
    Case(
        "1.1b",
        "heads",
        "decoder classifier that pads with the end of text, which also occurs in texts",
        "supported",
        end_of_text_padding,
        report_with(accuracy(1.0)),
    ),
    *(
        Case(
            f"1.2 {family}",
            "families",
            f"mixture of experts: {family}",
            "supported",
            lambda ground, family=family, sizes=sizes: make.pair(ground.folder, family, words=WITHOUT_START, **sizes),  # type: ignore[misc]
            report_with(causal, drift_from(2)),
        )
        for family, sizes in MOE.items()
    ),
    Case(
        "1.3",
        "families",
        "state space models: mamba",
        "supported",
        lambda ground: make.pair(ground.folder, "mamba", words=WITHOUT_START, state_size=4),
        report_with(drift_from(2), causal),
        "layers are what the blocks put out",
    ),
    Case(
        "1.3b",
        "families",
        "state space models: mamba2",
        "supported",
        lambda ground: make.pair(
            ground.folder,
            "mamba2",
            words=WITHOUT_START,
            state_size=4,
            num_heads=8,
            head_dim=8,
            n_groups=1,
            chunk_size=8,
        ),
        report_with(drift_from(2), causal),
        "layers are what the blocks put out",
    ),
    Case(
        "1.3c",
        "families",
        "state space models: falcon_mamba",
        "supported",
        lambda ground: make.pair(ground.folder, "falcon_mamba", words=WITHOUT_START, state_size=4),
        report_with(drift_from(2), causal),
        "layers are what the blocks put out",
    ),
    Case(
        "1.4",
        "families",
        "OPT with `word_embed_proj_dim` other than its hidden size (OPT-350m)",
        "refused",
        projected_opt,
        refused("/base/uri", "32", "16"),
        "its last layer has another width",
    ),
    Case(
        "1.5",
        "quantisation",
        "FP8 with scales of a quantiser that transformers does not know (ModelOpt)",
        "refused",
        lambda ground: unknown_quantiser(ground, said=True),
        refused("/tuned/uri", "ModelOpt", "dequantize", at_post=True),
    ),
    Case(
        "1.5b",
        "quantisation",
        "scales beside the weights that config.json does not mention",
        "refused",
        lambda ground: unknown_quantiser(ground, said=False),
        refused("/tuned/uri", "weight_scale", "dequantised"),
    ),
    Case(
        "1.6",
        "adapters",
        "`lora_A`/`lora_B` tensors beside plain weights",
        "refused",
        adapter_beside_weights,
        refused("/tuned/uri", "lora_A", "merge_and_unload"),
    ),
    Case(
        "1.6b",
        "checkpoints",
        "weights of more blocks than config.json says",
        "refused",
        more_blocks_than_said,
        refused("/base/uri", "layers.2.", "config.json"),
    ),
    Case(
        "1.7",
        "families",
        "attention sinks: a decoder without BOS whose first token has a huge state",
        "supported",
        sink,
        report_with(sink_left_out, warns("excluded_tokens", "first tokens")),
        "first tokens are not compared",
    ),
    Case(
        "1.8",
        "data sets",
        "a label column that is not there (CSV)",
        "refused",
        lambda ground: table(ground, "data.csv", CSV, label_column="sentimnt"),
        refused("/dataset/label_column", "sentimnt", "sentiment", at_post=True),
    ),
    Case(
        "1.8b",
        "data sets",
        "a label column that is not there (JSON Lines)",
        "refused",
        lambda ground: table(
            ground, "data.jsonl", "\n".join(json.dumps({"text": text}) for text in make_texts(TEXTS)), label_column="y"
        ),
        refused("/dataset/label_column", "'y'", at_post=True),
    ),
    Case(
        "1.8c",
        "data sets",
        "a label column named for plain text",
        "refused",
        lambda ground: table(ground, "data.txt", "\n".join(make_texts(TEXTS)), label_column="label"),
        refused("/dataset/label_column", at_post=True),
    ),
    Case(
        "1.9",
        "data sets",
        "labels 0.0 and 1.0 (JSON Lines)",
        "supported",
        lambda ground: labelled_lines(ground, "{}.0"),
        report_with(accuracy(1.0)),
    ),
    Case(
        "1.9b",
        "data sets",
        "labels as lists",
        "warned",
        lambda ground: labelled_lines(ground, "[{}]"),
        report_with(warns("unusable_labels", "list"), warns("answers_not_evaluated")),
    ),
    Case(
        "1.9c",
        "data sets",
        "labels of some rows only",
        "warned",
        partly_labelled,
        report_with(accuracy(1.0), warns("unlabelled_rows")),
        "accuracy is over the rows with a label",
    ),
    Case(
        "1.15b",
        "heads",
        "labels 1 to C where classes are 0 to C - 1",
        "warned",
        stars,
        report_with(warns("answers_not_evaluated", "no label"), warns("unknown_labels", "not classes")),
    ),
    Case(
        "1.2b",
        "heads",
        "a head for the next token on a model that sees it (`BertLMHeadModel`, XLNet)",
        "warned",
        seeing_ahead,
        report_with(drift_from(2), warns("answers_not_evaluated", "next token")),
        "representations only",
    ),
    Case(
        "1.10",
        "data sets",
        "texts longer than `max_length`",
        "warned",
        lambda ground: long_texts(ground, 8),
        report_with(warns("texts_cut", "8 tokens"), lambda report: _more(report.dataset.truncated_share, 0.5)),
    ),
    Case(
        "1.10b",
        "data sets",
        "texts of any length, `max_length` left out",
        "supported",
        lambda ground: long_texts(ground, None),
        report_with(
            lambda report: _less(report.dataset.truncated_share, 0.05),
            lambda report: _more(report.dataset.max_length, 20),
        ),
        "the default fits 95 % of the texts, up to 512 tokens",
    ),
    Case(
        "1.11",
        "data sets",
        "texts that hold special tokens already (a rendered chat)",
        "supported",
        rendered_chat,
        report_with(one_start),
        "one BOS; special tokens are not compared",
    ),
    Case(
        "1.12",
        "tokenizers",
        "same vocabulary, other normaliser",
        "refused",
        other_normaliser,
        refused("/tuned/uri", "tokenizers", "split"),
    ),
    Case(
        "1.12b",
        "tokenizers",
        "same vocabulary, but only one of the two puts a BOS first",
        "refused",
        no_start_in_tuned,
        refused("/tuned/uri", "tokenizers", "<s>"),
    ),
    Case(
        "1.13",
        "adapters",
        "LoRA trained on another base of the same shape",
        "warned",
        other_base,
        report_with(warns("adapter_base", "trained-on", "wanted")),
    ),
    Case(
        "1.14",
        "data sets",
        "sentence pairs (NLI, rerankers) with `text_pair_column`",
        "supported",
        lambda ground: pairs(ground, paired=True),
        report_with(accuracy(1.0), silent("single_texts_of_pairs")),
    ),
    Case(
        "1.14b",
        "data sets",
        "a model of pairs that is given single texts",
        "warned",
        lambda ground: pairs(ground, paired=False),
        report_with(warns("single_texts_of_pairs", "text_pair_column", "hypothesis")),
    ),
    Case(
        "1.15",
        "heads",
        "labels that are the numbers of classes with names",
        "warned",
        numbered,
        report_with(accuracy(1.0), warns("labels_as_numbers", "0 = negative")),
    ),
]


def _more(found: float | None, bound: float) -> None:
    assert found is not None
    assert found > bound


def _less(found: float | None, bound: float) -> None:
    assert found is not None
    assert found < bound
