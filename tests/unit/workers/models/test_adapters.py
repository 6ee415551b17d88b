from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from layerdrift.contract.errors import InputError
from tests.builders.models import save_model, tiny_bert
from workers.models.adapters import merge_adapter, other_base, read_adapter
from workers.models.loading import load_body, load_headed


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tiny_bert(), tmp_path / "base")


def adapter(base: Path, folder: Path, labels: int = 0) -> torch.nn.Module:
    """Saves an adapter with weights drawn at random; the model that it belongs to."""
    torch.manual_seed(1)
    if labels:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
        config = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    else:
        model = tiny_bert()
        config = LoraConfig(r=2, target_modules=["query", "value"])
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "classifier" in name:
                parameter.normal_(std=0.2)
    wrapped.eval()
    wrapped.save_pretrained(str(folder))
    assert isinstance(wrapped, PeftModel)
    return wrapped


IDS = torch.tensor([[2, 7, 9, 12, 3]])


def test_a_merged_adapter_computes_what_the_adapter_does(base: Path, tmp_path: Path) -> None:
    wrapped = adapter(base, tmp_path / "adapter")
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", "/tuned/uri")
    merged = load_body(tmp_path / "merged", "/tuned/uri", torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).last_hidden_state, wrapped(IDS).last_hidden_state, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(merged(IDS).last_hidden_state, tiny_bert()(IDS).last_hidden_state, atol=1e-2)


def test_an_adapter_brings_its_head(base: Path, tmp_path: Path) -> None:
    wrapped = adapter(base, tmp_path / "adapter", labels=3)
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", "/tuned/uri")
    found = load_headed(tmp_path / "merged", "/tuned/uri", torch.device("cpu"))
    assert found is not None
    assert found.kind == "classifier"
    with torch.no_grad():
        torch.testing.assert_close(found.model(IDS).logits, wrapped(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("harm", ["nan", "truncated", "shape", "config", "missing"])
def test_broken_adapters_are_refused_with_what_is_wrong(base: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "adapter"
    adapter(base, folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    first = sorted(tensors)[0]
    if harm == "nan":
        save_file(tensors | {first: torch.full_like(tensors[first], torch.nan)}, weights)
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "shape":
        save_file({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()}, weights)
    elif harm == "missing":
        save_file({name: tensor for name, tensor in tensors.items() if name != first}, weights)
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "NOTHING"}))
    with pytest.raises(InputError) as raised:
        merge_adapter(base, folder, tmp_path / "merged", "/tuned/uri")
    assert raised.value.errors[0].pointer == "/tuned/uri"
    assert not (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("named", "uri", "own", "told"),
    [
        ("org/base", "hf://org/base@main", "", False),
        ("org/base", "file:///models/base/", "", False),
        ("org/base", "s3://models/v6/", "elsewhere/Base", False),
        ("/cache/models--org--base/snapshots/0123abc", "hf://org/base", "", False),
        ("org/base", "upload://up_1", "", False),
        ("org/base", "upload://up_1", "org/other", True),
        ("org/base", "file:///models/other", "", True),
    ],
    ids=["hub", "folder", "its configuration", "cache of the hub", "upload without a name", "named upload", "another"],
)
def test_an_adapter_that_names_another_base_is_told(
    base: Path, tmp_path: Path, named: str, uri: str, own: str, told: bool
) -> None:
    adapter(base, tmp_path / "adapter")
    found = read_adapter(tmp_path / "adapter", "/tuned/uri")
    found.stored["base_model_name_or_path"] = named
    config = json.loads((base / "config.json").read_text()) | {"_name_or_path": own}
    (base / "config.json").write_text(json.dumps(config))
    assert [one.code for one in other_base(found, base, uri)] == (["adapter_base"] if told else [])
