from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerdrift.contract.errors import InputError
from tests.builders.models import save_model, tiny_bert
from workers.models.loading import load_body, load_classifier, load_config

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tiny_bert(), tmp_path / "model")


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        key = next(key for key in weights if key.replace(".", "_").endswith(name))
        del weights[key]
        if value is not None:
            weights[key] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_checkpoint_loads_in_float32_and_evaluation_mode(folder: Path) -> None:
    model = load_body(folder, "/base/uri", CPU)
    assert model.dtype is torch.float32
    assert not model.training


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_that_are_not_finite_are_reported_by_name(folder: Path, value: float, message: str) -> None:
    edit_weights(folder, layer_1_output_dense_bias=torch.full((32,), value))
    with pytest.raises(InputError, match=rf"encoder.layer.1.output.dense.bias contains .*{message}"):
        load_body(folder, "/base/uri", CPU)


def test_missing_weights_are_not_drawn_at_random(folder: Path) -> None:
    edit_weights(folder, layer_2_output_dense_weight=None)
    with pytest.raises(InputError, match="the weights lack 1 tensors"):
        load_body(folder, "/base/uri", CPU)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    edit_weights(folder, layer_2_output_dense_weight=torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"the shape that config\.json requires: .*layer\.2\.output\.dense\.weight"):
        load_body(folder, "/base/uri", CPU)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="the weights could not be loaded"):
        load_body(folder, "/base/uri", CPU)


def test_a_size_is_limited_before_memory_is_taken(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12, "intermediate_size": 10**9}))
    with pytest.raises(InputError, match="the limit of this service is 1000000"):
        load_config(folder, "/base/uri", 1_000_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "could not be loaded"),
        ({"model_type": "no-such-model"}, "could not be loaded"),
        ({"hidden_size": 30}, "could not be loaded"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        load_config(folder, "/base/uri", 10**9)


def test_an_encoder_decoder_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bart"}))
    with pytest.raises(InputError, match="bart is an encoder-decoder"):
        load_config(folder, "/base/uri", 10**9)


def test_a_classifier_gets_a_new_head_on_the_same_body(folder: Path) -> None:
    model = load_classifier(folder, "/base/uri", CPU, ["a", "b", "c"])
    body = load_body(folder, "/base/uri", CPU)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    ours = dict(model.base_model.named_parameters())
    assert all(torch.equal(ours[name], parameter) for name, parameter in body.named_parameters())
