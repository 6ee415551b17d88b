"""One contender of `make bench-sae` in a process of its own: `python sae_contenders.py NAME ROWS OUT`.

It must run where only torch and one peer are installed, so it imports nothing of ours but for our own trainers. All
see the same batches, scaled alike, with the same width, k, batch and learning rate; what is measured is theirs.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

LATENTS, K, BATCH, STEPS = 3072, 32, 2048, 100
WARMUP_STEPS, DECAY_FROM = 5, 80
RATE = 3e-3
"""Peak, of all; ours is the one that its own rule gives for so many steps (see `SaeConfig.learning_rate`)."""
HELDOUT_BATCHES = 4
TRIAL_STEPS = 8


class Weights(NamedTuple):
    """Of a trained autoencoder: relu((x - b_in) W_enc + b_enc), largest k for a row on average, W_dec + b_dec.

    b_in, b_dec: [D]; W_enc: [D, F]; b_enc: [F]; W_dec: [F, D].
    """

    b_in: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


Trainer = Callable[[Tensor], None]
"""One step on a batch [B, D], or [S, B, D] for a stack."""


def fvu(weights: Weights, rows: Tensor) -> float:
    """Of held-out rows [N, D], with exactly k latents for a row on average: the same number for every contender."""
    residual = 0.0
    for x in rows.split(BATCH):
        pre = ((x - weights.b_in) @ weights.W_enc + weights.b_enc).relu().flatten()
        top = pre.topk(K * len(x))
        latents = torch.zeros_like(pre).scatter_(0, top.indices, top.values).reshape(len(x), -1)
        residual += float((latents @ weights.W_dec + weights.b_dec - x).square().sum())
    return residual / float((rows - rows.mean(0)).square().sum())


def batches(rows: Tensor, steps: int) -> list[Tensor]:
    """The places of each step's rows, the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(rows.shape[-2], (BATCH,), generator=generator) for _ in range(steps)]


def dictionary_learning(width: int, autocast: bool, steps: int) -> tuple[Trainer, Callable[[], Weights]]:
    """BatchTopKTrainer."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=steps,
        activation_dim=width,
        dict_size=LATENTS,
        k=K,
        layer=0,
        lm_name="MiniLM",
        lr=RATE,
        warmup_steps=WARMUP_STEPS,
        decay_start=DECAY_FROM if steps == STEPS else None,
        seed=0,
        device="cpu",
    )
    done = iter(range(steps))

    def step(batch: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            trainer.update(next(done), batch)

    def weights() -> Weights:
        ae = trainer.ae
        return Weights(ae.b_dec, ae.encoder.weight.T, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec)

    return step, weights


def sae_lens(width: int, autocast: bool, steps: int) -> tuple[Trainer, Callable[[], Weights]]:
    """BatchTopKTrainingSAE under SAETrainer."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=width, d_sae=LATENTS, k=K, device="cpu"))
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=RATE,
        lr_end=0.0,
        lr_warm_up_steps=WARMUP_STEPS,
        lr_decay_steps=STEPS - DECAY_FROM if steps == STEPS else 0,
        autocast=autocast,
    )
    trainer: Any = SAETrainer(cfg=config, sae=sae, data_provider=iter([]))

    def step(batch: Tensor) -> None:
        trainer.step(batch)
        trainer.n_training_steps += 1

    def weights() -> Weights:
        sae.fold_W_dec_norm()
        b_in = sae.b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros_like(sae.b_dec)
        return Weights(b_in, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)

    return step, weights


PEERS = {"dictionary_learning": dictionary_learning, "sae_lens": sae_lens}


def run_peer(name: str, rows: Tensor, heldout: Tensor) -> tuple[float, list[float]]:
    """One autoencoder after another; tokens a second and held-out FVU of each."""
    make = PEERS[name]
    seconds = {}
    for autocast in (False, True):
        trial = make(rows.shape[2], autocast, TRIAL_STEPS)[0]
        seconds[autocast] = _train(trial, rows[0], TRIAL_STEPS)
    faster = min(seconds, key=lambda autocast: seconds[autocast])
    print(f"{name}: {'bfloat16 autocast' if faster else 'float32'} is the faster ({seconds})", file=sys.stderr)
    total, found = 0.0, []
    for site in range(len(rows)):
        step, weights = make(rows.shape[2], faster, STEPS)
        total += _train(step, rows[site], STEPS)
        with torch.no_grad():
            found.append(fvu(weights(), heldout[site]))
    return len(rows) * STEPS * BATCH / total, found


def run_ours(rows: Tensor, heldout: Tensor, stacked: bool) -> tuple[float, list[float]]:
    """Ours, all sites in one stack, or each by itself."""
    from workers.analysis.sae import Normalisation, SaeConfig, SaeStack
    from workers.analysis.sae_training import StackTrainer
    from workers.models.device import fast_dtype

    total, found = 0.0, []
    for sites in [range(len(rows))] if stacked else [[site] for site in range(len(rows))]:
        part = rows[list(sites)]
        stack = SaeStack.initial(Normalisation.of(part[:, :8192]), LATENTS, torch.Generator().manual_seed(0))
        config = SaeConfig(latents=LATENTS, k=K, steps=STEPS, batch=BATCH)
        if not math.isclose(config.learning_rate, RATE):
            raise ValueError(f"ours would run at {config.learning_rate}, the peers at {RATE}")
        trainer = StackTrainer(stack, config, fast_dtype(torch.device("cpu")))
        total += _train(trainer.step, part, STEPS)
        for place, site in enumerate(sites):
            scale = stack.scale[place]
            b_dec = stack.b_dec[place] * scale
            weights = Weights(
                b_dec, stack.W_enc[place].T / scale, stack.b_enc[place], stack.W_dec[place] * scale, b_dec
            )
            found.append(fvu(weights, heldout[site]))
    return len(rows) * STEPS * BATCH / total, found


def _train(step: Trainer, rows: Tensor, steps: int) -> float:
    """Seconds for so many steps on rows [N, D] or [S, N, D]."""
    seconds = 0.0
    for places in batches(rows, steps):
        batch = rows[..., places, :].float()
        started = time.perf_counter()
        step(batch)
        seconds += time.perf_counter() - started
    return seconds


def peak_mb() -> int:
    """Of this process alone; what getrusage tells is never less than the parent had when it forked."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise OSError("/proc/self/status has no VmHWM")
    return int(found[1]) // 1024


def main() -> None:
    """Trains, and writes {"tokens_per_s", "fvu", "peak_mb"}; tokens are counted for each autoencoder."""
    name, source, out = sys.argv[1:]
    tensors = load_file(source)
    if name in PEERS:
        rate, found = run_peer(name, tensors["rows"], tensors["heldout"].float())
    else:
        rate, found = run_ours(tensors["rows"], tensors["heldout"].float(), stacked=name == "layerdrift_stacked")
    figures = {"tokens_per_s": round(rate), "fvu": round(sum(found) / len(found), 4), "peak_mb": peak_mb()}
    Path(out).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
