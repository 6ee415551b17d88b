from __future__ import annotations

from typing import Any

import pytest

from backends.sources.checkpoint_configs import (
    MAX_BLOCKS,
    Shape,
    check_adapter_config,
    check_config,
    check_files,
    parameters_of,
    shape_of,
    text_part,
)
from layerdrift.contract.errors import InputError

BERT: dict[str, Any] = {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384, "vocab_size": 30522}
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 8, "target_modules": ["query", "value"]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BERT, Shape(6, 384)),
        ({"model_type": "gpt2", "n_layer": 12, "n_embd": 768}, Shape(12, 768)),
        ({"model_type": "x", "text_config": {"num_hidden_layers": 3, "hidden_size": 8}}, Shape(3, 8)),
        ({"model_type": "x"}, Shape(None, None)),
    ],
)
def test_depth_and_width_are_read_by_the_names_that_families_give_them(config: dict[str, Any], expected: Shape) -> None:
    assert shape_of(config) == expected


def test_the_language_model_inside_another_is_found_however_deep_it_lies() -> None:
    inner = {"num_hidden_layers": 2, "hidden_size": 8}
    assert text_part({"text_config": {"text_config": inner}}) == inner
    assert text_part(BERT) is BERT


def test_parameters_are_those_of_the_blocks_and_of_the_embeddings() -> None:
    own, whole = parameters_of(BERT)
    assert own == 6 * (4 * 384**2 + 2 * 384 * 4 * 384)
    assert whole == own + 384 * 30522
    assert parameters_of({"model_type": "x"}) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "has no model_type"),
        ({"num_hidden_layers": 0}, "blocks is 0"),
        ({"num_hidden_layers": MAX_BLOCKS + 1}, f"must be 1 to {MAX_BLOCKS}"),
        ({"hidden_size": "wide"}, "hidden width is 'wide'"),
        ({"vocab_size": 10**30}, "a number with more than 20 digits"),
        ({"is_encoder_decoder": True, "model_type": "bart"}, "encoder-decoder (bart)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with GPTQ"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised with bitsandbytes"),
    ],
)
def test_what_a_configuration_shows_to_be_unreadable_is_refused_with_the_reason(
    changes: dict[str, Any], message: str
) -> None:
    check_config(BERT, "/base/uri", "file:///m")
    with pytest.raises(InputError) as raised:
        check_config(BERT | changes, "/base/uri", "file:///m")
    assert message in raised.value.detail
    assert [one.pointer for one in raised.value.errors] == ["/base/uri"]


def test_a_configuration_without_end_is_refused() -> None:
    nested: Any = 1
    for _ in range(100):
        nested = {"x": nested}
    with pytest.raises(InputError, match="levels deep"):
        check_config(BERT | {"more": nested}, "/base/uri", "file:///m")


def test_a_file_may_tell_of_a_quantisation_that_the_configuration_hides() -> None:
    check_files({"config.json", "model.safetensors"}, "/base/uri", "file:///m")
    with pytest.raises(InputError, match=r"see quantize_config\.json"):
        check_files({"config.json", "quantize_config.json"}, "/base/uri", "file:///m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": None}, "has no peft_type"),
        ({"peft_type": "PROMPT_TUNING"}, "prepends learned states"),
        ({"peft_type": "UNHEARD_OF"}, "which is not supported"),
        ({"r": 10**6}, "r is 1000000"),
        ({"target_modules": "(a+)+$"}, "may never finish"),
        ({"layer_replication": [[0, 10**6]]}, "layer_replication is 1000000"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    check_adapter_config(LORA, "/tuned/uri", "file:///a")
    with pytest.raises(InputError) as raised:
        check_adapter_config(LORA | changes, "/tuned/uri", "file:///a")
    assert message in raised.value.detail
