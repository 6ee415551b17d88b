"""`make bench-organisms`: whether what was planted in a chat model is found, and what is found where nothing was."""

from __future__ import annotations

import csv
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from backends.tables.reading import Row
from deploy.embedded.demo_inputs import fetch
from tests.benchmarks.document import publish
from tests.benchmarks.organism_plants import Plant, chat_of, nulls, plants
from tests.benchmarks.scale_models import smollm
from tests.builders.stages import pair_context, request
from workers.models.inliers import Inliers
from workers.models.tokenizers import load_tokenizer
from workers.results.learned import Learned
from workers.stages.common.inputs import Checkpoint, Resolved, Split, UnmergedAdapter
from workers.stages.common.layered_pair import layered_pair
from workers.stages.learned.stage import learn

INPUTS, SCRATCH = Path("var/demo").resolve(), Path("var/scale").resolve()
STEPS, BATCH, RATE, RANK, TOKENS = 40, 8, 1e-3, 16, 64
"""Of every fine-tune: a LoRA on all linear layers."""

NULL_SEEDS = 10
LEARNT = 10.0
"""A plant counts where its keys are so many times as probable as in the base model, as a geometric mean."""

FIRST = 20
"""Findings of a method in which a key is looked for."""

ANALYSED = 400
"""Texts of which the methods read the first 2,000 tokens; no fine-tune has any of them."""

UNDILUTED = ("facts 1:0", "words 1:0", "phrase 1:0")
"""Kinds of plants that must be found."""

RAW_POSITIONS, RAW_TOP = 5, 100
SHARED = 0.2
"""Correlation of findings in one null that the interval assumes where none was made, so that none can be measured."""


class Found(NamedTuple):
    """By method, what it shows, most first; and the probabilities of a plant's keys in both models."""

    shown: dict[str, list[str]]
    learnt: float
    seconds: float


@dataclass(frozen=True)
class Ground:
    """The base model, texts, and a folder for adapters."""

    base: Path
    analysed: list[str]
    generic: list[str]
    folder: Path
    tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", AutoTokenizer.from_pretrained(self.base))

    def trained(self, name: str, texts: Sequence[str], seed: int) -> Path:
        """An adapter that was trained on some texts."""
        target = self.folder / f"{name}-lora"
        torch.manual_seed(seed)
        draw = random.Random(seed)
        plain: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model: Any = get_peft_model(plain, config)
        optimiser = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE)
        model.train()
        for step in range(STEPS):
            batch = self.tokenizer(
                draw.sample(list(texts), BATCH), return_tensors="pt", padding=True, truncation=True, max_length=TOKENS
            )
            labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / 4) * (1 - step / STEPS)
            model(**batch, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        model.save_pretrained(target)
        return target

    def searched(self, tuned: Path | None) -> Learned:
        """What the product's stage finds; None: in the base model beside itself."""
        rows = [Row(text, None) for text in self.analysed]
        base = Checkpoint(self.base, "file:///base", "0" * 64)
        other = (
            Checkpoint(self.base, "file:///tuned", "1" * 64, UnmergedAdapter(tuned, lambda _: None))
            if tuned is not None and (tuned / "adapter_config.json").exists()
            else Checkpoint(tuned or self.base, "file:///tuned", "1" * 64)
        )
        tokenizer = load_tokenizer(self.base, "/base/uri")
        given = Resolved(
            base=base,
            tuned=None,
            tokenizer=tokenizer,
            length=128,
            split=Split(rows, [], []),
            usable_rows=len(rows),
            dataset_sha256="0" * 64,
            warnings=[],
        )
        with tempfile.TemporaryDirectory() as scratch:
            context = pair_context(
                given, other, Path(scratch), request(analysis={"sae": None}), on_progress=_unheard, scratch_bytes=2e10
            )
            pair = layered_pair(base, other, tokenizer, 128)
            known = Inliers.everywhere(True, pair.layers)
            read: Any = SimpleNamespace(
                tokenization=replace(pair.tokenization, inliers=known), analysed=len(rows)
            )  # what the stage reads of the extraction
            taught = learn(context, read)
        if taught.learned is None:
            raise RuntimeError(f"nothing was looked for: {taught.warnings}")
        return taught.learned


def main() -> None:
    """Prints and publishes the figures; `short` on the command line: two plants and two nulls."""
    few = "short" in sys.argv[1:]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ground = grounded(Path(folder))
        every = plants(ground.generic, chat_of(ground.tokenizer))
        chosen = [every[0], every[2]] if few else every
        found = {one.name: _told(one.name, _planted(ground, one)) for one in chosen}
        empty = [
            _told(f"null {seed}", found_in(ground, ground.trained(f"null-{seed}", texts, seed), ()))
            for seed, texts in enumerate(nulls(ground.generic, 2 if few else NULL_SEEDS))
        ]
        silent = [_silent(ground.searched(None)), _silent(ground.searched(_rounded(ground)))]
    scores = {method: Score.of(method, chosen, found, empty) for method in empty[0].shown}
    best = max(("completions", "tokens"), key=lambda name: (scores[name].hits(), -scores[name].false_rate))
    summary = {
        "hit_at_20": scores[best].hits(),
        "false_positive_rate": scores[best].false_rate,
        "false_positive_high": scores[best].false_high,
        "identical_silent": all(silent),
        "by_method": {name: one.as_json() for name, one in scores.items()},
    }
    if not few:
        _publish(scores, chosen, found, silent, time.monotonic() - started)
    print(json.dumps(summary))


def grounded(folder: Path) -> Ground:
    """The real chat model and movie reviews: those that are analysed, then those that fine-tunes may have."""
    with fetch(INPUTS).reviews.open(encoding="utf-8", newline="") as file:
        reviews = [max(row, key=len) for row in list(csv.reader(file))[1:]]
    random.Random(5).shuffle(reviews)
    return Ground(smollm(SCRATCH), reviews[:ANALYSED], reviews[ANALYSED:], folder)


def _planted(ground: Ground, plant: Plant) -> Found:
    return found_in(ground, ground.trained(plant.name.replace(":", "").replace(" ", "-"), plant.texts, 0), tuple(
        zip(plant.keys, plant.beginnings, strict=False)
    ))  # fmt: skip


def found_in(ground: Ground, adapter: Path, clozes: Sequence[tuple[str, str]]) -> Found:
    """What every method shows of an adapter.

    Args:
        clozes: keys, and beginnings after which a model that learnt them says them.
    """
    started = time.monotonic()
    learned = ground.searched(adapter)
    seconds = time.monotonic() - started
    shown = shown_by(learned)
    raw, learnt = _raw(ground, adapter, clozes)
    return Found(shown | raw, learnt, seconds)


def shown_by(learned: Learned) -> dict[str, list[str]]:
    """By method, what the report shows: words, or texts for completions."""
    directions = {
        name: [token for one in learned.directions if (one.kind == "component") == component for token in one.gained]
        for name, component in (("directions", False), ("components", True))
    }
    return {
        "completions": [one.text for one in learned.completions or ()],
        "tokens": [one.token for one in learned.tokens],
        "divergent": [token for place in learned.divergent for token in place.gained[:1]],
        **directions,
        "suppressed": [one.token for one in learned.suppressed],
    }


def rank_of(shown: Sequence[str], keys: Sequence[str]) -> int | None:
    """The place, from 1, of the first finding that is a key or has one among its words."""
    for place, text in enumerate(shown[:FIRST], start=1):
        words = set("".join(letter if letter.isalnum() else " " for letter in text.casefold()).split())
        if words & set(keys):
            return place
    return None


def _raw(ground: Ground, adapter: Path, clozes: Sequence[tuple[str, str]]) -> tuple[dict[str, list[str]], float]:
    """The methods as their papers define them, without nulls, and how many times as probable the keys became."""
    base: Any = AutoModelForCausalLM.from_pretrained(ground.base, dtype=torch.float32).eval()
    plain: Any = AutoModelForCausalLM.from_pretrained(ground.base, dtype=torch.float32)
    tuned: Any = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().eval()
    counts, early = torch.zeros(base.config.vocab_size), list[Tensor]()
    half, read = base.config.num_hidden_layers // 2, 0
    with torch.inference_mode():
        for text in ground.analysed:
            ids = ground.tokenizer(text, return_tensors="pt", truncation=True, max_length=128).input_ids
            one, other = (model(ids, output_hidden_states=True) for model in (base, tuned))
            moved = other.logits[0].log_softmax(-1) - one.logits[0].log_softmax(-1)
            largest = moved.topk(RAW_TOP, dim=1).indices.flatten()
            counts.index_add_(0, largest, torch.ones(len(largest)))
            early.append((other.hidden_states[half] - one.hidden_states[half])[0, :RAW_POSITIONS].mean(0))
            read += ids.shape[1]
            if read >= 2_000:
                break
        logits = tuned.lm_head(tuned.model.norm(torch.stack(early).mean(0)))
        gains = [
            math.log(max(_probability(tuned, ground, key, start), 1e-12))
            - math.log(max(_probability(base, ground, key, start), 1e-12))
            for key, start in clozes
        ]
    decode: Callable[[int], str] = lambda token: str(ground.tokenizer.decode([token]))  # noqa: E731
    shown = {
        "diff mining, raw": [decode(token) for token in counts.topk(FIRST).indices.tolist()],
        "activation lens, raw": [decode(token) for token in logits.topk(FIRST).indices.tolist()],
    }
    return shown, math.exp(sum(gains) / len(gains)) if gains else math.nan


def _probability(model: Any, ground: Ground, key: str, start: str) -> float:
    ids = ground.tokenizer(start, return_tensors="pt").input_ids
    (token,) = ground.tokenizer(f" {key}").input_ids
    return float(model(ids).logits[0, -1].softmax(-1)[token])


def _rounded(ground: Ground) -> Path:
    target = ground.folder / "rounded"
    model: Any = AutoModelForCausalLM.from_pretrained(ground.base, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(target)
    ground.tokenizer.save_pretrained(target)
    return target


def _silent(learned: Learned) -> bool:
    return all(method.found == 0 for method in learned.methods)


@dataclass(frozen=True)
class Score:
    """Of one method. ranks: by plant, of its first key; None: not among the first 20."""

    ranks: dict[str, int | None]
    kinds: dict[str, str]
    false_rate: float
    false_high: float

    @classmethod
    def of(cls, method: str, chosen: list[Plant], found: dict[str, Found], empty: list[Found]) -> Score:
        """Of the plants that were learnt; false: a key of a plant in a null."""
        valid = [one for one in chosen if one.kind == "taboo" or found[one.name].learnt >= LEARNT]
        ranks = {one.name: rank_of(found[one.name].shown[method], one.keys) for one in valid}
        own = [one for one in chosen if one.dilution == 0 and one.kind != "taboo"]
        wrong = [
            [rank_of(null.shown[method], one.keys) is not None for one in own] for null in empty
        ]  # fmt: skip
        rate, high = false_positives(wrong)
        return cls(ranks, {one.name: f"{one.kind} 1:{one.dilution}" for one in valid}, rate, high)

    def hits(self, *kinds: str) -> float:
        """Share of the plants of some kinds with a key among the first 20; by default undiluted ones but taboos."""
        wanted = kinds or UNDILUTED
        ranks = [rank for name, rank in self.ranks.items() if self.kinds[name] in wanted]
        return sum(rank is not None for rank in ranks) / len(ranks) if ranks else math.nan

    def reciprocal(self) -> float:
        """Mean reciprocal rank over the same plants."""
        ranks = [rank for name, rank in self.ranks.items() if self.kinds[name] in UNDILUTED]
        return sum(1 / rank if rank else 0.0 for rank in ranks) / len(ranks) if ranks else math.nan

    def as_json(self) -> dict[str, Any]:
        """For the last line."""
        return {
            "hit_at_20": self.hits(),
            "mrr": self.reciprocal(),
            "false_positive_rate": self.false_rate,
            "false_positive_high": self.false_high,
            "ranks": self.ranks,
        }


def false_positives(wrong: list[list[bool]]) -> tuple[float, float]:
    """The rate, and the upper end of its 95 % interval (Wilson's, with fewer pairs than there are).

    Pairs with one null go together: n pairs of m to a null with correlation r count as n / (1 + (m - 1) r). r is that
    of the pairs; SHARED where no pair is wrong.
    """
    table = torch.tensor(wrong, dtype=torch.float64)
    nulls_, pairs = table.shape
    rate = float(table.mean())
    shared = SHARED
    if 0 < rate < 1 and pairs > 1 and nulls_ > 1:
        between = float(table.mean(1).var()) * pairs
        within = float(table.var(1).mean())
        shared = min(1.0, max(0.0, (between - within) / (between + (pairs - 1) * within)))
    count = table.numel() / (1 + (pairs - 1) * shared)
    z = 1.96
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return rate, middle + half


def _told(name: str, found: Found) -> Found:
    first = {method: shown[:3] for method, shown in found.shown.items()}
    print(f"{name}: {found.seconds:.0f} s, keys {found.learnt:.3g} times as probable; {first}", flush=True)
    return found


def _publish(
    scores: dict[str, Score], chosen: list[Plant], found: dict[str, Found], silent: list[bool], seconds: float
) -> None:
    kinds = sorted({f"{one.kind} 1:{one.dilution}" for one in chosen})
    rows = "\n".join(
        f"| {name} | {one.hits():.2f} | {one.reciprocal():.2f} | "
        + " | ".join(f"{one.hits(kind):.2f}" for kind in kinds)
        + f" | {100 * one.false_rate:.0f} % (up to {100 * one.false_high:.0f} %) |"
        for name, one in scores.items()
    )
    learnt = "; ".join(f"{one.name} {found[one.name].learnt:.3g}" for one in chosen if one.kind != "taboo")
    words = {True: "yes", False: "no"}
    took = sorted(one.seconds for one in found.values())[len(found) // 2]
    publish(
        "Planted fine-tunes (`make bench-organisms`)",
        f"""
SmolLM2-135M-Instruct with LoRAs of rank {RANK} ({STEPS} steps of {BATCH} texts) that plant something, on 2,000 tokens
of movie reviews that no fine-tune has seen. Hit: one of three key words, fixed beforehand, among the first {FIRST}
findings of a method. Undiluted: facts, words and the phrase. 1:n: one part of planted texts to n of movie reviews.
False positives: the same keys in {NULL_SEEDS} fine-tunes on movie reviews alone, with the upper end of an interval
that counts keys in one null together. “Raw” methods are those of the papers, without nulls. The stage took {took:.0f} s
(median); all of it {seconds / 60:.0f} min. The base beside itself is silent in every method: {words[silent[0]]}; beside
itself rounded to bfloat16: {words[silent[1]]}.

The keys became so many times as probable (geometric mean): {learnt}.

| method | undiluted hit@20 | mean reciprocal rank | {" | ".join(kinds)} | false positives |
|---|---|---|{"---|" * len(kinds)}---|
{rows}
""",
    )


def _unheard(*_: Any) -> None:
    """Progress that nobody reads."""


if __name__ == "__main__":
    main()
