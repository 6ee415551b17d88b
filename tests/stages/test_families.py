"""Encoders and decoders of many families, as tiny random models with a tokenizer, through the stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTextEncoding, PreTrainedModel

from backends.sources.checkpoint_configs import READ_ENCODER_DECODERS
from layerdrift.contract.errors import InputError
from tests.builders.families import BLOCKS, DECODERS, FAMILIES, OF_FAMILIES, made
from tests.builders.models import tiny_tokenizer
from tests.builders.stages import pair_context, resolved
from workers.models.loading import load_classifier, load_config
from workers.models.structure import blocks_of
from workers.stages.causal.stage import measure_effects
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.stage import extract


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_a_pair_of_every_family_is_compared_and_grafted(family: str, tmp_path: Path) -> None:
    """Block 2 differs: nothing before it moves, and a graft of the base up to there undoes what it does."""
    base, tuned = made(family, 0), made(family, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in blocks_of(tuned)[1].parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    folders = saved(base, tmp_path / "base"), saved(tuned, tmp_path / "tuned")
    load_config(folders[0], "/base/uri", 10**9)
    context = pair_context(resolved(folders[0], texts=60), folders[1], tmp_path / "scratch")
    extracted = extract(context, None)
    compared = compare(context, extracted)
    assert extracted.models["tuned"].blocks == BLOCKS
    assert compared.drift[:2] == [0.0, 0.0]
    assert compared.drift[2] > 0
    assert [layer.drifted for layer in compared.layers[:3]] == [False, False, True]
    evaluated = evaluate_outputs(context, compared.drift, extracted)
    assert evaluated.outputs is None
    found = measure_effects(context, extracted, compared, evaluated, None)
    assert found.causal.graft is not None
    assert found.causal.graft.measure == "state_change"
    assert found.grafts is not None
    change = [layer.prefix.value for layer in found.grafts]
    assert change[0] == change[1] == 0.0
    assert change[2] is not None
    assert change[2] > 0
    block = [layer.block.value for layer in found.grafts]
    assert block[1] == 0.0
    assert block[2] == pytest.approx(change[2], rel=1e-5)


def test_a_decoder_is_one_by_its_behaviour() -> None:
    assert set(FAMILIES) > DECODERS


def test_the_encoder_of_t5_is_not_fine_tuned_and_says_so(tmp_path: Path) -> None:
    folder = saved(made("t5", 0), tmp_path / "t5")
    with pytest.raises(InputError, match="the encoder of t5 cannot be fine-tuned here"):
        load_classifier(folder, "/base/uri", torch.device("cpu"), ["a", "b"])


def test_the_post_knows_the_encoder_decoders_whose_encoder_is_read() -> None:
    names: dict[str, str] = AutoModelForTextEncoding._model_mapping._model_mapping
    assert set(READ_ENCODER_DECODERS) == {kind for kind, name in names.items() if name.endswith("EncoderModel")}
