"""Fetched checkpoints made plain: configurations, names that wrappers left, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backends.sources.checkpoint_files import INDEX
from layerdrift.contract.errors import InputError
from workers.models.staging import refuse_untaken, stage_checkpoint, tensor_names

PLAIN: dict[str, Any] = {"model_type": "bert", "hidden_size": 8}


def checkpoint(folder: Path, names: list[str], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or PLAIN))
    tensors: dict[str, Tensor] = {name: torch.full((2,), float(number)) for number, name in enumerate(names)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_a_plain_checkpoint_is_left_byte_by_byte(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, ["encoder.weight", "module_list.weight"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert stage_checkpoint(folder, "/base/uri") == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, {}),
        (
            {"_attn_implementation": "flash", "text_config": {"attn_implementation": "x", "a": 1}},
            {"text_config": {"a": 1}},
        ),
        ({"quantization_config": {"quant_method": "gguf"}}, {}),
        ({"quantization_config": {"quant_method": "awq"}}, {"quantization_config": {"quant_method": "awq"}}),
        ({"quantization_config": None}, {"quantization_config": None}),
        ({"id2label": {"0": 1, "1": None}}, {"id2label": {"0": "1", "1": "None"}}),
        ({"id2label": ["a"]}, {"id2label": ["a"]}),
    ],
)
def test_settings_that_change_no_weight_are_made_plain(
    tmp_path: Path, config: dict[str, Any], plain: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path, ["a"], PLAIN | config)
    stage_checkpoint(folder, "/base/uri")
    assert config_of(folder) == PLAIN | plain


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (json.dumps({"model_type": "mine", "auto_map": {}}), "'mine' needs code from its repository"),
        (json.dumps({"auto_map": {}}), "None needs code from its repository"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
    ids=["own code", "no type", "cut off", "nested without end"],
)
def test_a_configuration_that_cannot_be_used_is_refused_at_its_place(tmp_path: Path, config: str, message: str) -> None:
    folder = checkpoint(tmp_path, ["a"])
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match=message) as raised:
        stage_checkpoint(folder, "/tuned/uri")
    assert raised.value.errors[0].pointer == "/tuned/uri"


@pytest.mark.parametrize(
    "name",
    [
        "layer.0.query.lora_A.weight",
        "lora_embedding_B",
        "layer.0.query.base_layer.weight",
        "layer.ia3_l",
        "layer.lora_magnitude_vector.default.weight",
        "encoder.layer.0.query.hada_w1_a",
        "encoder.layer.0.query.hada_t2",
        "encoder.layer.0.query.lokr_w1",
        "encoder.layer.0.query.lokr_w2_b.default",
        "encoder.layer.0.query.vera_lambda_d",
        "encoder.layer.0.query.oft_R.weight",
    ],
)
def test_weights_with_tensors_of_an_adapter_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"contain 1 adapter tensors .* first {name};"):
        stage_checkpoint(checkpoint(tmp_path, ["encoder.weight", name]), "/base/uri")


def test_names_that_only_look_like_an_adapters_are_taken(tmp_path: Path) -> None:
    assert (
        stage_checkpoint(
            checkpoint(tmp_path, ["flora_Apple.weight", "base_layers.weight", "hada_wave.weight", "oft_Rows"]),
            "/base/uri",
        )
        == []
    )


@pytest.mark.parametrize(
    ("names", "plain", "prefix"),
    [
        (["module.a.w", "module.b"], ["a.w", "b"], "module."),
        (["_orig_mod.a.w", "_orig_mod.b"], ["a.w", "b"], "_orig_mod."),
        (["module._orig_mod.a", "module._orig_mod.module.b"], ["a", "b"], "module."),
        (["a._fsdp_wrapped_module.w", "b"], ["a.w", "b"], "_fsdp_wrapped_module."),
        (["a.module.w", "_orig_mod.b"], ["a.module.w", "b"], "_orig_mod."),
    ],
)
def test_what_wrappers_put_into_names_is_taken_out_and_said(
    tmp_path: Path, names: list[str], plain: list[str], prefix: str
) -> None:
    folder = checkpoint(tmp_path, names)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors"), "metadata": {}}))
    (warning,) = stage_checkpoint(folder, "/tuned/uri")
    assert warning.code == "wrapped_weights"
    assert f"the tuned model began with {prefix};" in warning.message
    tensors = load_file(folder / "model.safetensors")
    assert {name: tensors[name].tolist() for name in plain} == {
        name: [float(number)] * 2 for number, name in enumerate(plain)
    }
    assert len(tensors) == len(plain)
    assert json.loads((folder / INDEX).read_text())["weight_map"] == dict.fromkeys(plain, "model.safetensors")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_module_named_module_beside_others_is_no_wrapper(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, ["module.a", "b"])
    assert stage_checkpoint(folder, "/base/uri") == []
    assert set(load_file(folder / "model.safetensors")) == {"module.a", "b"}


def test_a_tensor_under_two_names_is_refused_also_across_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, ["_orig_mod.a", "_orig_mod.b"])
    save_file({"a": torch.zeros(1)}, folder / "more.safetensors")
    with pytest.raises(InputError, match="contain 1 tensors under several names, first a"):
        stage_checkpoint(folder, "/base/uri")


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"could not be loaded: broken\.safetensors"):
        tensor_names(path, "/base/uri")


PARTS = {"embeddings", "encoder"}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("embeddings.position_ids", ""),
        ("encoder.layer.0.attention.rotary_emb.inv_freq", ""),
        ("bert.embeddings.position_ids", "bert"),
        ("classifier.weight", "bert"),
        ("lm_head.bias", ""),
        ("encoders.0.weight", ""),
    ],
)
def test_tensors_outside_the_body_and_those_that_follow_from_it_may_be_left(name: str, prefix: str) -> None:
    refuse_untaken([name], PARTS, prefix, "/base/uri")


@pytest.mark.parametrize(
    ("names", "prefix", "message"),
    [
        (["encoder.layer.9.weight", "encoder.layer.10.weight"], "", r"2 tensors .* first encoder\.layer\.10\.weight;"),
        (["bert.encoder.layer.9.weight"], "bert", "it would be a different model"),
        (["head.weight_scale"], "", "scales of quantised weights"),
        (["encoder.layer.0.qweight", "encoder.layer.0.weight"], "", "scales of quantised weights"),
        (["x.SCB"], "bert", "scales of quantised weights"),
    ],
)
def test_weights_of_the_body_that_no_parameter_takes_up_are_refused(
    names: list[str], prefix: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        refuse_untaken(names, PARTS, prefix, "/base/uri")
