"""Fine-tunes of tiny language models, as stage `finetune` makes them: they learn, and do so again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from tests.builders.chats import language_model, resolved_chats
from tests.builders.models import save_model, tiny_bert
from tests.builders.stages import fine_tuned, request, resolved
from workers.models.device import best_device
from workers.models.loading import load_headed
from workers.models.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


def asking(**changes: Any) -> AnalysisRequest:
    settings = {"objective": "sft", "epochs": 4, "learning_rate": 5e-3, "precision": "float32", **changes}
    return AnalysisRequest.model_validate(request().model_dump() | {"tuned": None, "finetune": settings})


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "lora", "learning_rate": 2e-2}, {"objective": "dpo"}, {"method": "lora", "lora": {"dora": True}}],
    ids=["full", "lora", "dpo", "dora"],
)
def test_a_language_model_learns_and_the_same_request_gives_the_same_weights(
    base: Path, changes: dict[str, Any], tmp_path: Path
) -> None:
    given = resolved_chats(base, preferences=changes.get("objective") == "dpo")
    one, other = (fine_tuned(asking(**changes), given, tmp_path / name) for name in ("one", "other"))
    assert one.checkpoint.fingerprint == other.checkpoint.fingerprint
    run = one.run
    assert run.objective == changes.get("objective", "sft")
    assert (run.rows, run.steps) == (64, 32)
    assert min(found.loss for found in run.held_out) < run.losses[0].loss - 0.05
    assert run.kept_step == min(run.held_out, key=lambda found: (found.loss, found.step)).step
    assert load_headed(one.checkpoint.folder, "/tuned/uri", best_device()) is not None
    assert load_tokenizer(one.checkpoint.folder, "/tuned/uri").chat_template


def test_frozen_blocks_and_embeddings_stay(base: Path, tmp_path: Path) -> None:
    tuned = fine_tuned(asking(freeze_first=2, epochs=1), resolved_chats(base), tmp_path / "tuned")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned.checkpoint.folder))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert not any("embed_tokens" in name or "layers.0." in name or "layers.1." in name for name in moved)
    assert any("layers.2." in name for name in moved)


def test_adapters_go_where_they_are_asked_for(base: Path, tmp_path: Path) -> None:
    asked = asking(method="lora", lora={"targets": ["q_proj"]}, epochs=1)
    tuned = fine_tuned(asked, resolved_chats(base), tmp_path / "tuned")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned.checkpoint.folder))
    assert {name.split(".")[-2] for name in before if not before[name].equal(after[name])} == {"q_proj"}
    wrong = asking(method="lora", lora={"targets": ["query"]})
    with pytest.raises(InputError, match="they are down_proj, gate_proj, k_proj"):
        fine_tuned(wrong, resolved_chats(base), tmp_path / "wrong")


def test_accumulated_batches_train_as_one_batch_does(base: Path, tmp_path: Path) -> None:
    given = resolved_chats(base, train=8, held_out=0)
    whole = fine_tuned(asking(batch_size=8), given, tmp_path / "whole").run
    parts = fine_tuned(asking(batch_size=2, gradient_accumulation=4), given, tmp_path / "parts").run
    assert [one.loss for one in parts.losses] == pytest.approx([one.loss for one in whole.losses], abs=2e-3)


def test_checkpointed_activations_change_nothing(base: Path, tmp_path: Path) -> None:
    given = resolved_chats(base, train=16, held_out=0)
    one = fine_tuned(asking(epochs=1), given, tmp_path / "one").run
    other = fine_tuned(asking(epochs=1, gradient_checkpointing=True), given, tmp_path / "other").run
    assert [found.loss for found in other.losses] == pytest.approx([found.loss for found in one.losses], abs=1e-5)


def test_other_seeds_are_made_for_the_noise_floor(base: Path, tmp_path: Path) -> None:
    asked = asking(epochs=1)
    body = asked.model_dump() | {"analysis": {"sae": None, "noise_floors": ["reseed"]}}
    tuned = fine_tuned(AnalysisRequest.model_validate(body), resolved_chats(base), tmp_path / "tuned")
    prints = {one.fingerprint for one in (tuned.checkpoint, *tuned.reseeds)}
    assert len(prints) == 3


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    base = save_model(tiny_bert(0), tmp_path / "base")
    with pytest.raises(InputError, match="the base has no such head") as raised:
        fine_tuned(asking(), resolved(base, train=30), tmp_path / "tuned")
    assert raised.value.errors[0].pointer == "/finetune/objective"


def test_rows_that_do_not_fit_are_told(base: Path, tmp_path: Path) -> None:
    tuned = fine_tuned(asking(epochs=1, max_length=14), resolved_chats(base), tmp_path / "tuned")
    assert {warning.code for warning in tuned.warnings} == {"truncated_answers"}
    assert 0 < (tuned.run.rows or 0) < 64
