"""Extraction block by block against extraction from whole models, which is its judge."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backends.estimates import execution
from layerdrift.contract.errors import InputError
from tests.builders.families import OF_FAMILIES, made
from tests.builders.models import save_model
from tests.builders.stages import labelled, pair_context, request, resolved
from tests.stages.test_families import saved
from workers.models import known_head
from workers.models.adapters import merge_adapter
from workers.models.structure import blocks_of
from workers.models.texts import Batch
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Checkpoint, ReferenceTexts, UnmergedAdapter
from workers.stages.common.layered_pair import layered_pair
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract import last_states, stage
from workers.stages.extract.by_layer import ByLayer, LayerMeasures
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.layered import extract_layered
from workers.stages.extract.merged_batches import Layout, MergedBatches
from workers.stages.extract.stage import extract
from workers.stages.extract.whole_models import extract_whole
from workers.stages.sae.rows import sae_rows

TOLERANCE = 1e-7
"""Sums of the same numbers in another order; the rows of cls and mean are few, and measured another way."""

MERGED_TOLERANCE = 1e-5
"""Texts beside others in a batch of another shape round otherwise."""


@pytest.fixture
def unmerged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are read in the batches that whole models read them in."""

    def as_they_come(originals: Sequence[Batch]) -> MergedBatches:
        shapes = [(len(one.indices), one.input_ids.shape[1]) for one in originals]
        places = [
            [(number, row, length) for row, length in enumerate(one.attention_mask.sum(1).tolist())]
            for number, one in enumerate(originals)
        ]
        return MergedBatches(list(originals), Layout(places, shapes))

    monkeypatch.setattr(MergedBatches, "of", staticmethod(as_they_come))


def noised(family: str, scale: float = 0.3) -> Any:
    model = made(family, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in blocks_of(model)[1].parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def context_of(family: str, folder: Path, base: Any = None, **more: Any) -> PairContext:
    folders = (
        saved(base or made(family, 0), folder / "base"),
        saved(more.pop("tuned", noised(family)), folder / "tuned"),
    )
    given = dataclasses.replace(resolved(folders[0], texts=90), **more)
    return pair_context(given, folders[1], folder / "scratch", request(seed=3))


def layered(context: PairContext) -> Extracted:
    given = context.resolved
    pair = layered_pair(given.base, context.tuned, given.tokenizer, given.length, given.units)
    return extract_layered(context, pair)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every number in a result, by where it stands."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: one for name, inner in value.items() for key, one in flat(inner, f"{path}.{name}").items()}
    if isinstance(value, list | tuple):
        return {key: one for number, inner in enumerate(value) for key, one in flat(inner, f"{path}[{number}]").items()}
    return {path: value}


def assert_same(one: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    left, right = flat(one), flat(other)
    assert left.keys() == right.keys()
    for path, value in left.items():
        if isinstance(value, float) and isinstance(right[path], float):
            assert math.isclose(value, right[path], rel_tol=tolerance, abs_tol=tolerance), path
        else:
            assert value == right[path], path


SAME = ("views", "frame", "counts", "tokens", "weights", "warnings", "models")


def assert_same_extracted(one: Extracted, other: Extracted, tolerance: float = TOLERANCE) -> None:
    for name in SAME:
        assert_same(getattr(one, name), getattr(other, name), tolerance)
    left, right = ([(site.cka, site.relative_l2) for site in found.all_tokens or ()] for found in (one, other))
    assert_same(left, right, tolerance)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_batches_of_like_length_round_otherwise_and_change_no_more(family: str, tmp_path: Path) -> None:
    context = context_of(family, tmp_path)
    assert_same_extracted(layered(context), extract_whole(context, None), MERGED_TOLERANCE)


@pytest.mark.usefixtures("unmerged")
@pytest.mark.parametrize("family", OF_FAMILIES)
def test_what_is_measured_block_by_block_is_what_whole_models_give(family: str, tmp_path: Path) -> None:
    reference = ReferenceTexts(labelled(60, seed=5), "file:///general.csv", "2" * 64)
    context = context_of(family, tmp_path, reference=reference)
    one, other = layered(context), extract_whole(context, None)
    assert_same_extracted(one, other)
    assert one.reference is not None
    assert other.reference is not None
    assert_same(one.reference.drift, other.reference.drift)
    assert one.reference.tokens == other.reference.tokens
    for side in (0, 1):
        torch.testing.assert_close(one.token_sample[side], other.token_sample[side])
        torch.testing.assert_close(one.text_sample.rows[side], other.text_sample.rows[side])
    assert one.text_sample.texts == other.text_sample.texts
    (twin,), (judge,) = one.nulls.measured, other.nulls.measured
    assert twin.null.tokens == judge.null.tokens
    for layer, site in enumerate(judge.similarity["token"]):
        found = twin.similarity["token"][layer].relative_l2
        assert found == pytest.approx(site.relative_l2, rel=0.3)  # other random numbers round the same weights
    for drift, expected in zip(one.nulls.random_weights_drift, other.nulls.random_weights_drift, strict=True):
        assert drift == pytest.approx(expected, abs=0.35)
    assert_same(compare(context, one).zones, compare(context, other).zones, 1e-4)


def test_a_large_model_is_read_block_by_block_and_a_small_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of("llama", tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(stage, "extract_layered", lambda *_: asked.append("layers"))
    monkeypatch.setattr(stage, "extract_whole", lambda *_: asked.append("whole"))
    extract(context, None)
    monkeypatch.setattr(execution, "LAYERED_BYTES", 0)
    extract(context, None)
    assert asked == ["whole", "layers"]


def with_late_outliers() -> Any:
    """A Llama whose second block makes one token of the vocabulary hundreds of times as long as the others."""
    model: Any = made("llama", 0)
    with torch.no_grad():
        model.embed_tokens.weight[:, 0] = 0.0
        model.embed_tokens.weight[7, 0] = 0.2
        blocks: list[Any] = list(blocks_of(model))
        for block in blocks:
            for writing in (block.self_attn.o_proj, block.mlp.down_proj):
                writing.weight[0] = 0.0
        second = blocks[1].mlp
        for reading in (second.gate_proj, second.up_proj):
            reading.weight[0] = 0.0
            reading.weight[0, 0] = 10.0
        second.down_proj.weight[1:, 0] = 30.0
    return model


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0), (0.0, 2)], ids=["states wait on disk", "no room for them"])
def test_outliers_that_a_later_layer_shows_are_left_out_of_the_earlier_ones(
    share: float, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = with_late_outliers()
    first: Any = blocks_of(tuned)[0]
    with torch.no_grad():
        first.mlp.up_proj.weight.mul_(1.5)
    context = context_of("llama", tmp_path, with_late_outliers(), tuned=tuned)
    redone: list[int] = []
    measured = LayerMeasures.measured

    def noted(self: LayerMeasures, *args: Any) -> ByLayer:
        found = measured(self, *args)
        redone.append(found.redone)
        return found

    monkeypatch.setattr(LayerMeasures, "measured", noted)
    monkeypatch.setattr("workers.stages.extract.layered.WAITING_SHARE", share)
    one, other = layered(context), extract_whole(context, None)
    assert redone == [expected]
    assert one.counts.outliers == other.counts.outliers > 0
    assert_same_extracted(one, other)


def test_activations_that_overflow_name_the_model_and_the_layer(tmp_path: Path) -> None:
    tuned = made("llama", 0)
    second: Any = blocks_of(tuned)[1]
    with torch.no_grad():
        second.mlp.up_proj.weight.mul_(1e4)
        second.mlp.down_proj.weight.fill_(3e38)
    context = context_of("llama", tmp_path, tuned=tuned)
    with pytest.raises(InputError, match="of the tuned model are NaN or infinite at layer 2") as raised:
        layered(context)
    assert raised.value.errors[0].pointer == "/tuned/uri"


def test_a_model_whose_blocks_share_their_weights_runs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=60, embedding_size=16, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    folder = save_model(AlbertModel(config), tmp_path / "albert")
    monkeypatch.setattr(execution, "LAYERED_BYTES", 0)
    extracted = extract(pair_context(resolved(folder, texts=60), folder, tmp_path / "scratch"), None)
    assert extracted.views["token"].sites[0].relative_l2 == 0.0
    assert extracted.execution.mode == "whole"
    assert "could not be found" in (extracted.execution.reason or "")
    assert [warning.code for warning in extracted.warnings] == ["ran_whole"]


@pytest.mark.usefixtures("unmerged")
def test_what_is_written_on_the_way_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.stages.common import moment_accumulator

    for name in ("TOKENS_IN_MEMORY", "TEXTS_IN_MEMORY"):
        monkeypatch.setattr(moment_accumulator, name, 0)
    context = context_of("bert", tmp_path)
    assert_same(layered(context).views, extract_whole(context, None).views)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_head_on_the_last_states_answers_as_the_whole_model(
    family: str, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_disk:
        monkeypatch.setattr(last_states, "KEPT_BYTES", 2000)
    monkeypatch.setattr(known_head, "LOGITS_BYTES", 60 * 4 * 9)  # so that a text is asked about in parts
    reference = ReferenceTexts(labelled(40, seed=5), "file:///general.csv", "2" * 64)
    context = context_of(
        family, tmp_path, with_head(made(family, 0)), tuned=with_head(noised(family)), reference=reference
    )
    one, other = layered(context), extract_whole(context, None)
    drift = [0.0, 0.1, 0.1, 0.1]
    found, expected = evaluate_outputs(context, drift, one), evaluate_outputs(context, drift, other)
    assert found.outputs is not None
    assert found.outputs.perplexity_ratio is not None
    assert_same(found, expected, 1e-5)


def with_head(body: Any) -> Any:
    """The language model around a body."""
    kind = AutoModelForCausalLM._model_mapping[type(body.config)]
    model: Any = kind(body.config)  # type: ignore[operator]
    getattr(model, model.base_model_prefix).load_state_dict(body.state_dict())
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight.copy_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)))
    return model


def lora(model: Any, targets: list[str], folder: Path, **more: Any) -> Path:
    """An adapter of a language model whose change is not nothing."""
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", **more)
    get_peft_model(copy.deepcopy(model), config).save_pretrained(str(folder))
    return folder


ADAPTERS = {
    "attention": ("llama", ["q_proj", "v_proj"], {}),
    "every projection": ("llama", ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"], {}),
    "dora": ("llama", ["q_proj", "v_proj"], {"use_dora": True}),
    "conv1d": ("gpt2", ["c_attn"], {"fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_an_adapter_that_is_not_merged_gives_what_the_merged_checkpoint_gives(name: str, tmp_path: Path) -> None:
    family, targets, more = ADAPTERS[name]
    model = with_head(made(family, 0))
    base, adapter = saved(model, tmp_path / "base"), lora(model, targets, tmp_path / "adapter", **more)
    merged = tmp_path / "merged"
    merge_adapter(base, adapter, merged, "/tuned/uri")
    light = tmp_path / "light"
    light.mkdir()
    shutil.copyfile(base / "config.json", light / "config.json")
    unmerged = Checkpoint(light, "file:///tuned", "1" * 64, UnmergedAdapter(adapter, never))
    given = resolved(base, texts=60)
    asked = request(seed=3)
    contexts = [
        pair_context(given, tuned, tmp_path / f"scratch-{number}", asked)
        for number, tuned in enumerate((unmerged, Checkpoint(merged, "file:///tuned", "1" * 64)))
    ]
    one, other = (layered(context) for context in contexts)
    for kind in (*SAME, "reference"):
        assert_same(getattr(one, kind), getattr(other, kind))
    assert max(compare(contexts[0], one).drift) > 1e-4
    drift = [0.0, 0.1, 0.1, 0.1]
    assert_same(evaluate_outputs(contexts[0], drift, one), evaluate_outputs(contexts[1], drift, other), 1e-5)


def never(_: Path) -> None:
    raise AssertionError("nothing asked for merged weights")


@pytest.mark.parametrize("more", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5, 6]}])
def test_an_adapter_that_changes_more_than_blocks_is_merged(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "LAYERED_BYTES", 0)
    model = with_head(made("llama", 0))
    base, adapter = saved(model, tmp_path / "base"), lora(model, ["q_proj"], tmp_path / "adapter", **more)
    light = tmp_path / "light"
    light.mkdir()
    asked: list[Path] = []

    def merge(into: Path) -> None:
        asked.append(into)
        merge_adapter(base, adapter, into, "/tuned/uri")

    tuned = Checkpoint(light, "file:///tuned", "1" * 64, UnmergedAdapter(adapter, merge))
    extracted = extract(pair_context(resolved(base, texts=60), tuned, tmp_path / "scratch"), None)
    assert asked == [light]
    assert extracted.execution.reason == "the adapter changes more than the weights of blocks"


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = saved(with_head(made("llama", 0)), tmp_path / "base")
    other = with_head(made("gpt2", 0))
    adapter = lora(other, ["c_attn"], tmp_path / "adapter", fan_in_fan_out=True)
    tuned = Checkpoint(tmp_path, "file:///tuned", "1" * 64, UnmergedAdapter(adapter, never))
    with pytest.raises(InputError, match="the adapter does not fit this base") as raised:
        layered(pair_context(resolved(base, texts=60), tuned, tmp_path / "scratch"))
    assert raised.value.errors[0].pointer == "/tuned/uri"


@pytest.mark.usefixtures("unmerged")
@pytest.mark.parametrize("share", [0.5, 0.0], ids=["states wait on disk", "no room for them"])
@pytest.mark.parametrize("family", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_rows_for_autoencoders_are_those_of_whole_models(
    family: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the compared texts exactly, of spare ones as `fast_states` has them: to about 1 %."""
    monkeypatch.setattr("workers.stages.extract.layered.WAITING_SHARE", share)
    monkeypatch.setattr("workers.stages.sae.layered_rows.CHUNK_BYTES", 1 << 18)  # several chunks
    spare = labelled(200, seed=8)
    asked = request(seed=3, analysis={"sae": {"tokens": 10_000, "layers": [0, 2]}})
    found = []
    for name, way in (("layers", layered), ("whole", lambda context: extract_whole(context, None))):
        context = context_of(family, tmp_path / name)
        given = dataclasses.replace(context.resolved, split=dataclasses.replace(context.resolved.split, spare=spare))
        context = dataclasses.replace(context, resolved=given, request=asked)
        extracted = way(context)
        assert extracted.heldout is not None
        heldout = torch.cat(list(extracted.heldout.rows.shards()), 1)
        rows = sae_rows(context, extracted.tokenization, extracted.heldout, layered=name == "layers")
        train = torch.cat(list(rows.train.shards()), 1)
        contexts = [rows.contexts.texts(40).tolist(), rows.contexts.labels(40)]
        found.append((heldout, train, contexts, (rows.texts, rows.from_trained_rows, rows.from_analysed_rows)))
    (heldout, train, *one), (judge, expected, *other) = found
    assert one == other
    assert torch.equal(heldout, judge)
    assert train.shape == expected.shape
    assert float((train.float() - expected.float()).norm() / expected.float().norm()) < 0.01


def test_rows_of_a_random_model_block_by_block_are_of_the_tokens_of_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other random weights than a whole copy has, at the same tokens: equal ones are equal before anything mixes."""
    monkeypatch.setattr("workers.stages.sae.layered_rows.CHUNK_BYTES", 1 << 16)  # several chunks
    spare = labelled(200, seed=8)
    asked = request(seed=3, analysis={"sae": {"tokens": 10_000, "layers": [0, 2], "random_weights": True}})
    shapes = []
    for name, way in (("layers", layered), ("whole", lambda context: extract_whole(context, None))):
        context = context_of("llama", tmp_path / name)
        given = dataclasses.replace(context.resolved, split=dataclasses.replace(context.resolved.split, spare=spare))
        context = dataclasses.replace(context, resolved=given, request=asked)
        extracted = way(context)
        assert extracted.heldout is not None
        rows = sae_rows(context, extracted.tokenization, extracted.heldout, layered=name == "layers")
        assert rows.control is not None
        train, heldout = (torch.cat(list(store.shards()), 1) for store in (rows.control.train, rows.control.heldout))
        shapes.append((train.shape, heldout.shape))
        assert heldout.shape[1] == rows.heldout.rows
        assert bool(train.isfinite().all())
        assert float(train[1].float().std()) > 0
        embedded = torch.cat([train[0], heldout[0]])  # Llama's layer 0: one row for each token of the vocabulary
        pair_rows = torch.cat([torch.cat(list(store.shards()), 1)[0] for store in (rows.train, rows.heldout)])
        kinds, kinds_of_pair = (torch.unique(one, dim=0, return_inverse=True)[1] for one in (embedded, pair_rows))
        assert len(kinds.unique()) == len(kinds_of_pair.unique())
        assert torch.equal(kinds[None] == kinds[:200, None], kinds_of_pair[None] == kinds_of_pair[:200, None])
    assert shapes[0] == shapes[1]
