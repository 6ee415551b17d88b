"""The work of a request grows with what it asks for, and rates turn it into seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from backends.estimates.workload import DataSizes, ModelSizes, Workload, workload
from backends.sources.checkpoint_configs import is_language_model, parameters_of
from layerdrift.contract.analysis import StageName
from layerdrift.contract.request import AnalysisRequest

MINILM = ModelSizes(blocks=6, width=384, block_parameters=10_616_832, parameters=22_337_280, bytes=91_000_000)
REVIEWS = DataSizes(rows=10_600, row_tokens=25.0, bytes=1_300_000)
PAIR = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/x.csv"}}
TUNING = {"base": {"uri": "s3://m/a"}, "finetune": {}, "dataset": {"uri": "s3://d/x.csv"}}


def request(body: Mapping[str, object]) -> AnalysisRequest:
    return AnalysisRequest.model_validate(body)


def test_parameters_are_read_off_the_configuration() -> None:
    bert = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "vocab_size": 30522}
    own, every = parameters_of(bert)
    assert own == pytest.approx(6 * 1_774_464, rel=0.01)  # what transformers counts in the six blocks
    assert every == pytest.approx(22_337_280, rel=0.01)
    llama = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}
    assert parameters_of({**llama, "hidden_act": "silu"})[1] == pytest.approx(134_515_008 + 30 * 576 * 384, rel=0.05)
    assert parameters_of({"model_type": "odd"}) == (0, 0)


def test_stages_that_are_not_asked_for_take_nothing() -> None:
    whole = workload(request(PAIR), MINILM, REVIEWS)
    assert StageName.FINETUNE not in whole.operations
    bare = workload(request(PAIR | {"analysis": {"sae": None, "grafts": False}}), MINILM, REVIEWS)
    assert StageName.SAE not in bare.operations
    assert bare.operations[StageName.CAUSAL] == 0
    assert bare.scratch < whole.scratch
    assert bare.memory <= whole.memory
    assert StageName.FINETUNE in workload(request(TUNING), MINILM, REVIEWS).operations


def test_rows_of_autoencoders_take_no_more_disk_than_the_data_have_tokens() -> None:
    many, more = (
        workload(request(PAIR | {"analysis": {"sae": {"tokens": tokens}}}), MINILM, REVIEWS).scratch
        for tokens in (2 * REVIEWS.rows * 25, 50_000_000)
    )
    few = workload(request(PAIR | {"analysis": {"sae": {"tokens": 20_000}}}), MINILM, REVIEWS).scratch
    assert few < many == more


def test_completions_take_a_whole_language_model_where_it_is_small() -> None:
    speaking = replace(MINILM, language=True, bytes=300 << 20)
    bare = {"sae": None, "grafts": False}
    asked, none = (
        workload(request(PAIR | {"analysis": bare | {"learned": {"completions": count}}}), speaking, REVIEWS)
        for count in (480, 0)
    )
    assert asked.operations[StageName.LEARNED] > 2 * none.operations[StageName.LEARNED]
    assert asked.scratch == none.scratch
    assert asked.scratch > workload(request(PAIR | {"analysis": bare | {"learned": None}}), speaking, REVIEWS).scratch
    large = replace(speaking, blocks=32, parameters=8_000_000_000, block_parameters=7_000_000_000, bytes=16 << 30)
    few, more = (
        workload(request(PAIR | {"analysis": bare | {"learned": {"completions": count}}}), large, REVIEWS)
        for count in (0, 480)
    )
    assert few.operations == more.operations  # too large to write
    assert few.memory == more.memory
    middle = replace(speaking, blocks=24, parameters=500_000_000, block_parameters=400_000_000, bytes=1 << 30)
    few, more = (
        workload(request(PAIR | {"analysis": bare | {"learned": {"completions": count}}}), middle, REVIEWS)
        for count in (0, 480)
    )
    assert more.memory > few.memory


def test_autoencoders_of_the_difference_take_time_and_disk_by_layer_and_width() -> None:
    speaking = replace(MINILM, language=True)
    works = [
        workload(request(PAIR | {"analysis": {"learned": {"autoencoder": asked}, "sae": None}}), speaking, REVIEWS)
        for asked in (None, {"layers": [2]}, {}, {"width": 4})
    ]
    times = [work.operations[StageName.LEARNED] for work in works]
    assert times == sorted(set(times))
    disks = [work.scratch for work in works]
    assert disks[0] < disks[1] < disks[2] == disks[3]


def test_language_models_alone_are_asked_what_they_learned() -> None:
    assert StageName.LEARNED not in workload(request(PAIR), MINILM, REVIEWS).operations
    speaking = replace(MINILM, language=True)
    assert workload(request(PAIR), speaking, REVIEWS).operations[StageName.LEARNED] > 0
    assert (
        StageName.LEARNED not in workload(request(PAIR | {"analysis": {"learned": None}}), speaking, REVIEWS).operations
    )
    for name, expected in (("LlamaForCausalLM", True), ("GPT2LMHeadModel", True), ("BertModel", False)):
        assert is_language_model({"architectures": [name]}) is expected
    assert not is_language_model({})


@pytest.mark.parametrize(
    ("changes", "stage", "factor"),
    [
        ({"analysis": {"sae": {"tokens": 1_000_000}}}, StageName.SAE, 1.8),
        ({"analysis": {"sae": {"width": 4}}}, StageName.SAE, 1.5),
        ({"finetune": {"epochs": 6}}, StageName.FINETUNE, 2.0),
        ({"analysis": {"noise_floors": ["numerical", "reseed"]}}, StageName.FINETUNE, 2.9),
    ],
)
def test_twice_the_work_is_counted_as_about_twice(changes: dict[str, object], stage: StageName, factor: float) -> None:
    plain = workload(request(TUNING), MINILM, REVIEWS).operations[stage]
    more = workload(request(TUNING | changes), MINILM, REVIEWS).operations[stage]
    assert more / plain == pytest.approx(factor, rel=0.15)


CHATTY = ModelSizes(
    blocks=30, width=576, block_parameters=106_000_000, parameters=134_500_000, bytes=269_000_000, language=True
)
ANSWERING: dict[str, Any] = TUNING | {"finetune": {"objective": "sft"}}


def test_training_a_language_model_counts_its_head_and_its_logits() -> None:
    def asked(**changes: Any) -> Workload:
        body = ANSWERING | {"finetune": {"objective": "sft", **changes}}
        return workload(request(body), CHATTY, REVIEWS)

    stage = StageName.FINETUNE
    plain = asked()
    assert plain.memory > workload(request(TUNING), CHATTY, REVIEWS).memory
    assert asked(batch_size=64).memory > plain.memory
    assert asked(method="lora").memory < plain.memory
    assert asked(gradient_checkpointing=True, batch_size=64).memory < asked(batch_size=64).memory
    assert asked(objective="dpo").operations[stage] > 2 * plain.operations[stage]
    assert asked(gradient_accumulation=4).operations[stage] < plain.operations[stage]
