"""Texts through a pair in memory: what is answered, and which pairs stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from backends.jobs.records import JobRecord
from backends.storage import key_names
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import ConflictError, InputError, LayerdriftError, NotFoundError
from layerdrift.contract.inspection import STRONGEST, Inspection
from tests.builders.latents import side
from tests.builders.models import BLOCKS, HIDDEN, tiny_bert, tiny_tokenizer
from tests.builders.records import record
from tests.builders.stores import MemoryDeployment
from workers.analysis.sae import Normalisation, SaeStack
from workers.inspector import Asked, Inspector, LoadedPair, inspected, load_saved_sae
from workers.models.states import StateReader
from workers.models.texts import batches
from workers.stages.common.model_pair import Pair
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.sae.files import save_sae

LAYERS = BLOCKS + 1


def loaded(folder: Path, **changes: Any) -> LoadedPair:
    """A pair without autoencoders whose centres are zero."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenization = TokenizationSpec(tiny_tokenizer(folder), 8, False, StateReader(LAYERS, HIDDEN))
    centres = torch.zeros(2, LAYERS, HIDDEN)
    fields: dict[str, Any] = {
        "pair": Pair(tiny_bert(0), tiny_bert(1), tokenization),
        "centres": (centres[0], centres[1]),
        "spreads": (torch.full((LAYERS,), 2.0), torch.full((LAYERS,), 6.0)),
        "base_saes": {},
        "tuned_saes": {},
    }
    return LoadedPair(**fields | changes)


@pytest.mark.parametrize("row_k", [0, 3], ids=["threshold", "topk"])
def test_a_saved_autoencoder_encodes_raw_rows_as_the_trained_one_does(tmp_path: Path, row_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 5 + 3 * torch.randn(2, 200, 8, generator=generator)
    stack = SaeStack.initial(Normalisation.of(rows), 24, generator, row_k)
    stack.b_enc += 0.1 * torch.randn(2, 24, generator=generator)
    stack.threshold += 0.05
    save_sae(stack, 1, tmp_path / "sae", {})
    found = load_saved_sae(tmp_path / "sae")
    trained, saved = stack.encode(1, rows[1]), found.encode(0, rows[1])
    assert torch.equal(saved > 0, trained > 0)
    torch.testing.assert_close(saved, trained * stack.scale[1], rtol=1e-4, atol=1e-5)
    assert bool((saved > 0).any())


def test_texts_come_back_in_their_order_token_by_token(tmp_path: Path) -> None:
    texts = ["the film was good and the plot was bad", "bad", "the good film"]
    found = inspected(loaded(tmp_path), texts)
    assert [text.text for text in found] == texts
    assert found[1].tokens == ["[CLS]", "bad", "[SEP]"]
    assert found[1].special == [True, False, True]
    assert [text.truncated for text in found] == [True, False, False]
    assert len(found[0].tokens) == 8
    for text in found:
        assert len(text.layers) == LAYERS
        for layer in text.layers:
            assert len(layer.base_norm) == len(layer.tuned_norm) == len(layer.drift) == len(text.tokens)
            assert [drift is None for drift in layer.drift] == text.special
            assert (layer.base_latents, layer.tuned_latents) == (None, None)


def test_drift_is_the_squared_way_over_the_spread_of_both_models(tmp_path: Path) -> None:
    given = loaded(tmp_path)
    assert isinstance(given.pair, Pair)
    (found,) = inspected(given, ["good"])
    ids = torch.tensor([given.pair.tokenization.tokenizer("good")["input_ids"]])
    for index, layer in enumerate(found.layers):
        with torch.no_grad():
            one, other = (
                model(ids, output_hidden_states=True).hidden_states[index][0, 1]
                for model in (given.pair.base, given.pair.tuned)
            )
        assert layer.drift[1] == pytest.approx(float((other - one).square().sum()) / 8.0, abs=1e-3)
        assert layer.base_norm[1] == pytest.approx(float(one.norm()), abs=1e-3)


def test_an_analysis_without_spreads_tells_the_angle_and_equal_models_do_not_drift(tmp_path: Path) -> None:
    same = Pair(tiny_bert(0), tiny_bert(0), loaded(tmp_path).pair.tokenization)
    for spreads in (None, loaded(tmp_path).spreads):
        (found,) = inspected(loaded(tmp_path, pair=same, spreads=spreads), ["good"])
        assert [layer.drift[1] for layer in found.layers] == [0.0] * LAYERS
    (moved,) = inspected(loaded(tmp_path, spreads=None), ["good"])
    assert all(layer.drift[1] is not None and 0 < layer.drift[1] <= 2 for layer in moved.layers)


def test_the_strongest_latents_of_each_token_are_told_where_there_are_autoencoders(tmp_path: Path) -> None:
    stack = side(HIDDEN, 0).stack  # a latent for each feature, which few tokens have so strongly
    stack.threshold[:] = 1.0
    given = loaded(tmp_path, base_saes=dict.fromkeys(range(LAYERS - 1), stack))
    (found,) = inspected(given, ["good"])
    states = given.states(next(batches(given.pair.tokenization.tokenizer, ["good"], 1, 8)))[0]
    counts: list[int] = []
    assert found.layers[-1].base_latents is None  # a layer without an autoencoder
    for layer, state in zip(found.layers[:-1], states[:-1], strict=True):
        assert layer.tuned_latents is None
        assert layer.base_latents is not None
        for token, latents in enumerate(layer.base_latents):
            values = state[0, token]
            active = [int(index) for index in values.argsort(descending=True) if float(values[index]) > 1.0]
            assert [latent.latent for latent in latents] == active[:STRONGEST]
            counts.append(len(active))
    assert 0 < min(counts) < STRONGEST < max(counts)


class CountedInspector(Inspector):
    """Makes pairs instead of fetching them."""

    def __init__(self, made: MemoryDeployment, folder: Path, max_bytes: int) -> None:
        super().__init__(made.given, folder / "inspect", max_bytes)
        self.loads: list[str] = []
        self.in_layers: list[bool] = []
        self._root = folder
        self.fails: Exception | None = None

    def _load(self, record: JobRecord, folder: Path, in_layers: bool) -> LoadedPair:
        self.loads.append(record.id)
        self.in_layers.append(in_layers)
        assert folder.is_dir()
        (folder / "weights").touch()
        if self.fails is not None:
            raise self.fails
        return loaded(self._root / "tokenizer")


IDS = ["an_1", "an_2", "an_3"]


@pytest.fixture
def made(tmp_path: Path) -> MemoryDeployment:
    done = [record(analysis_id=one).model_copy(update={"status": Status.SUCCEEDED}) for one in IDS]
    return MemoryDeployment(tmp_path, *done)


@pytest.fixture
def pair_bytes(tmp_path: Path) -> int:
    return loaded(tmp_path / "sizes").bytes


def asked(analysis_id: str, *texts: str, tenant: str = "default") -> Asked:
    return Asked(tenant, analysis_id, texts or ("good",))


def answered(found: Inspection | LayerdriftError) -> list[str]:
    assert isinstance(found, Inspection), found
    return [text.text for text in found.texts]


def test_what_a_pair_takes_is_the_bytes_of_both_models_and_its_autoencoders(tmp_path: Path, pair_bytes: int) -> None:
    parameters = sum(parameter.numel() for parameter in tiny_bert().parameters())
    assert pair_bytes == 2 * 4 * parameters
    stack = side(HIDDEN, 0).stack
    of_stack = sum(tensor.nbytes for tensor in stack.tensors().values())
    assert loaded(tmp_path, tuned_saes={0: stack}).bytes == pair_bytes + of_stack


def test_requests_of_one_analysis_are_read_together_and_answered_apart(
    made: MemoryDeployment, tmp_path: Path, pair_bytes: int
) -> None:
    inspector = CountedInspector(made, tmp_path, 3 * pair_bytes)
    found = inspector.answer([asked("an_1", "good", "bad"), asked("an_2", "sad"), asked("an_1", "dull")])
    assert [answered(one) for one in found] == [["good", "bad"], ["sad"], ["dull"]]
    assert inspector.loads == ["an_1", "an_2"]


def test_a_request_that_may_not_be_answered_spoils_no_other(
    made: MemoryDeployment, tmp_path: Path, pair_bytes: int
) -> None:
    made.jobs.update("an_2", lambda found: found.model_copy(update={"status": Status.RUNNING}))
    inspector = CountedInspector(made, tmp_path, 3 * pair_bytes)
    strangers, own, running, unknown = inspector.answer(
        [asked("an_1", tenant="other"), asked("an_1", "bad"), asked("an_2"), asked("an_9")]
    )
    assert isinstance(strangers, NotFoundError)
    assert answered(own) == ["bad"]
    assert isinstance(running, ConflictError)
    assert isinstance(unknown, NotFoundError)
    assert inspector.loads == ["an_1"]


def test_the_least_recently_used_pair_makes_room(made: MemoryDeployment, tmp_path: Path, pair_bytes: int) -> None:
    inspector = CountedInspector(made, tmp_path, 2 * pair_bytes)
    for one in ("an_1", "an_2", "an_1", "an_3"):
        inspector.answer([asked(one)])
    assert inspector.kept == ["an_1", "an_3"]
    assert inspector.loads == ["an_1", "an_2", "an_3"]


def test_a_pair_larger_than_all_memory_is_read_in_layers_and_refused_only_where_that_is_too_large(
    made: MemoryDeployment, tmp_path: Path, pair_bytes: int
) -> None:
    inspector = CountedInspector(made, tmp_path, 2 * pair_bytes)
    inspector.answer([asked("an_1")])
    key = key_names.sae_prefix(made.jobs.get("an_2").owned) + "base/layer-00/sae_weights.safetensors"
    made.blobs.objects[key] = bytes(2 * pair_bytes + 1)
    answered(inspector.answer([asked("an_2")])[0])
    assert inspector.in_layers == [False, True]
    assert inspector.kept == ["an_1", "an_2"]
    assert [path.name for path in (tmp_path / "inspect").iterdir()] == ["an_2"]
    small = CountedInspector(made, tmp_path / "small", pair_bytes - 1)
    (found,) = small.answer([asked("an_2")])
    assert isinstance(found, InputError)
    assert small.kept == []
    assert list((tmp_path / "small" / "inspect").iterdir()) == []


@pytest.mark.parametrize("fails", [None, ConflictError("analysed before inspection existed")])
def test_files_that_a_pair_was_loaded_from_are_removed_whatever_happens(
    made: MemoryDeployment, tmp_path: Path, pair_bytes: int, fails: Exception | None
) -> None:
    inspector = CountedInspector(made, tmp_path, pair_bytes)
    inspector.fails = fails
    (found,) = inspector.answer([asked("an_1")])
    assert isinstance(found, LayerdriftError) is (fails is not None)
    assert list((tmp_path / "inspect").iterdir()) == []
    assert inspector.kept == ([] if fails else ["an_1"])
