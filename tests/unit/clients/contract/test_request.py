from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from layerdrift.contract.request import AnalysisRequest, FineTune, SaeSettings

PAIR: dict[str, Any] = {
    "base": {"uri": "file:///models/a"},
    "tuned": {"uri": "file:///models/b"},
    "dataset": {"uri": "s3://data/reviews.csv"},
}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in PAIR.items() if name not in names}


def test_a_pair_needs_nothing_but_two_models_and_a_dataset() -> None:
    request = AnalysisRequest.model_validate(PAIR)
    assert request.analysis.sae is not None
    assert (request.seed, request.dataset.text_column) == (0, "text")


@pytest.mark.parametrize(
    ("body", "part_of_message"),
    [
        (PAIR | {"tunned": 1}, "Extra inputs are not permitted"),
        (PAIR | {"dataset": {"uri": "s3://d/x.csv", "sep": ";"}}, "Extra inputs are not permitted"),
        (PAIR | {"finetune": {}}, "exactly one of tuned"),
        (without("tuned"), "exactly one of tuned"),
        (PAIR | {"dataset": {}}, "exactly one of uri and inline"),
        (PAIR | {"dataset": {"uri": "s3://d/x.csv", "inline": {"texts": ["a"]}}}, "exactly one of uri and inline"),
        (PAIR | {"dataset": {"inline": {"texts": []}}}, "at least 1 item"),
        (PAIR | {"dataset": {"inline": {"texts": ["a", "b"], "labels": ["x"]}}}, "2 texts but 1 labels"),
        (PAIR | {"dataset": {"inline": {"texts": ["a", "b"], "pairs": ["x"]}}}, "2 texts but 1 pairs"),
        (without("tuned") | {"finetune": {}, "dataset": {"inline": {"texts": ["a"]}}}, "needs dataset.inline.labels"),
        (without("tuned") | {"finetune": {"learning_rate": float("nan")}}, "greater than 0|finite number"),
        (PAIR | {"name": "\ud83d"}, "half a surrogate pair"),
        (PAIR | {"tags": {"\ud83d": "x"}}, "half a surrogate pair"),
        (PAIR | {"dataset": {"inline": {"texts": ["a \udc00"]}}}, "half a surrogate pair"),
        (PAIR | {"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(body: dict[str, Any], part_of_message: str) -> None:
    with pytest.raises(ValidationError, match=part_of_message):
        AnalysisRequest.model_validate(body)


@pytest.mark.parametrize(
    ("field", "default"), [("text_column", "text"), ("text_pair_column", None), ("label_column", None)]
)
def test_a_column_named_beside_inline_data_is_refused_at_its_field(field: str, default: str | None) -> None:
    inline = {"inline": {"texts": ["a"]}}
    with pytest.raises(ValidationError) as error:
        AnalysisRequest.model_validate(PAIR | {"dataset": {**inline, field: "other"}})
    (problem,) = error.value.errors()
    assert problem["loc"] == ("dataset", field)
    assert f"omit {field}" in problem["msg"]
    AnalysisRequest.model_validate(PAIR | {"dataset": {**inline, field: default}})
    AnalysisRequest.model_validate(PAIR | {"dataset": {"uri": "s3://d/x.csv", field: "other"}})


def test_every_field_of_the_request_is_described() -> None:
    schema = AnalysisRequest.model_json_schema()
    definitions = [schema, *schema["$defs"].values()]
    undescribed = [
        (definition["title"], name)
        for definition in definitions
        for name, field in definition.get("properties", {}).items()
        if "description" not in field
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (2, [0, 1]),
        (13, list(range(13))),
        (14, [1, 4, 7, 10, 13]),
        (31, [5, 10, 15, 20, 25, 30]),
        (33, [2, 8, 14, 20, 26, 32]),
        (81, [10, 24, 38, 52, 66, 80]),
    ],
)
def test_deep_models_have_autoencoders_at_evenly_spaced_layers_down_from_the_last(
    layers: int, expected: list[int]
) -> None:
    assert SaeSettings().layers_of(layers) == expected


def test_chosen_layers_are_in_order_and_must_be_there() -> None:
    settings = SaeSettings(layers=[3, 1, 3])
    assert settings.layers_of(4) == [1, 3]
    with pytest.raises(ValueError, match="there is no layer 3; the model's layers are 0 to 2"):
        settings.layers_of(3)


def test_chats_are_read_from_files_alone() -> None:
    body = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}}
    inline = {"inline": {"texts": ["a"] * 40}, "format": "messages"}
    with pytest.raises(ValueError, match="inline data are texts; for format messages give the uri of a file"):
        AnalysisRequest.model_validate(body | {"dataset": inline})
    of_file = {"uri": "s3://d/chats.jsonl", "format": "messages"}
    assert AnalysisRequest.model_validate(body | {"dataset": of_file}).dataset.format == "messages"


FINETUNE = {"base": {"uri": "s3://m/a"}, "dataset": {"uri": "s3://d/x.jsonl"}}


def asked_finetune(**settings: Any) -> FineTune:
    found = AnalysisRequest.model_validate(FINETUNE | {"finetune": settings}).finetune
    assert found is not None
    return found


def test_language_models_have_the_defaults_of_trl() -> None:
    sft, dpo = asked_finetune(objective="sft", method="lora"), asked_finetune(objective="dpo")
    assert (sft.batch_size, sft.learning_rate, sft.weight_decay, sft.warmup) == (8, 2e-5, 0.0, 0.0)
    assert sft.lora is not None
    assert (sft.lora.rank, sft.lora.alpha, sft.lora.dropout) == (16, 32, 0.05)
    assert (dpo.batch_size, dpo.learning_rate, dpo.beta) == (8, 1e-6, 0.1)
    named = asked_finetune(objective="sft", batch_size=4, method="lora", lora={"rank": 2})
    assert (named.batch_size, named.lora and named.lora.rank, named.lora and named.lora.alpha) == (4, 2, 32)
    plain = asked_finetune()
    assert (plain.batch_size, plain.learning_rate, plain.weight_decay, plain.warmup) == (32, 5e-5, 0.01, 0.1)


def test_a_stored_request_for_a_language_model_is_read_as_it_was() -> None:
    given = AnalysisRequest.model_validate(FINETUNE | {"finetune": {"objective": "sft", "method": "lora"}})
    assert AnalysisRequest.model_validate(given.model_dump(mode="json")) == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"objective": "sft", "method": "head"}}, "method head trains a new classification head"),
        ({"finetune": {"objective": "sft", "beta": 0.5}}, "beta is of objective dpo"),
        ({"finetune": {"loss_on": "all"}}, "loss_on is of objective sft"),
        ({"finetune": {"objective": ["sft"]}}, "objective"),
        ({"finetune": {"objective": {}}}, "objective"),
        ({"finetune": {"objective": "sft", "method": "lora", "lora": [1]}}, "lora"),
        ({"finetune": {"objective": "dpo"}, "dataset": {"inline": {"texts": ["a"]}}}, "needs preferences"),
        (
            {"finetune": {"objective": "sft"}, "dataset": {"uri": "s3://d/a", "text_pair_column": "b"}},
            "one text of a row",
        ),
        ({"finetune": {"objective": "dpo", "method": "lora", "lora": {"dropout": 0.1}}}, "dpo trains without dropout"),
        ({"finetune": {"method": "lora", "lora": {"layers": [1, 2]}, "freeze_first": 2}}, "names frozen blocks alone"),
        ({"finetune": {"objective": "sft"}, "analysis": {"noise_floors": ["label_shuffle"]}}, "label_shuffle requires"),
        ({"finetune": {"objective": "sft"}, "analysis": {"freeze_sweep": {}}}, "measures accuracy"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AnalysisRequest.model_validate(FINETUNE | changes)
