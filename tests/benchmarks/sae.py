"""`make bench-sae`: our autoencoders beside dictionary-learning's and sae-lens's, on the same real activations.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.benchmarks.document import publish
from tests.benchmarks.measures import Setting
from tests.benchmarks.sae_contenders import BATCH, HELDOUT_BATCHES, LATENTS, PEERS, RATE, STEPS, K
from workers.models.states import hidden_states
from workers.stages.common.moment_accumulator import token_rows

TRAIN_ROWS = 60_000
HELDOUT_ROWS = HELDOUT_BATCHES * BATCH
CONTENDERS = (*PEERS, "layerdrift_single", "layerdrift_stacked")
SCRIPT = Path(__file__).with_name("sae_contenders.py")
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Prints and publishes the figures; the argument is the Python that has the peers."""
    peers_python = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        one, both = Path(folder) / "base.safetensors", Path(folder) / "pair.safetensors"
        sites = _activations(one, both)
        figures = {}
        for name in CONTENDERS:
            python = peers_python if name in PEERS else sys.executable
            rows = both if name == "layerdrift_stacked" else one
            out = Path(folder) / f"{name}.json"
            environment = {**os.environ, "PYTHONPATH": "" if name in PEERS else f"{ROOT}:{ROOT / 'clients'}"}
            subprocess.run([python, "-P", str(SCRIPT), name, str(rows), str(out)], check=True, env=environment)
            figures[name] = json.loads(out.read_text(encoding="utf-8"))
            print(name, figures[name], flush=True)
    _publish(figures, sites)
    print(json.dumps(figures))


def _activations(one: Path, both: Path) -> int:
    """Token rows of every layer of the base model, and of both models; how many layers there are."""
    setting = Setting(TRAIN_ROWS + HELDOUT_ROWS)
    parts: list[torch.Tensor] = []
    for _, batch in setting.tokenization.grouped(setting.texts):
        states = [token_rows(hidden_states(model, batch), batch) for model in (setting.base, setting.tuned)]
        parts.append(torch.cat(states).to(torch.bfloat16))
    rows = torch.cat(parts, 1)
    rows = rows[:, torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))]
    sites = len(rows) // 2
    for path, part in ((one, rows[:sites]), (both, rows)):
        heldout, train = part[:, :HELDOUT_ROWS].contiguous(), part[:, HELDOUT_ROWS:].contiguous()
        save_file({"rows": train, "heldout": heldout}, path)
    return sites


def _publish(figures: dict[str, dict[str, float]], sites: int) -> None:
    fastest = max(figures[name]["tokens_per_s"] for name in PEERS)
    lines = [
        f"| {name.replace('_', '-')} | {found['tokens_per_s']:,} | {found['tokens_per_s'] / fastest:.1f} | "
        f"{found['fvu']:.4f} | {found['peak_mb']:,} |"
        for name, found in figures.items()
    ]
    publish(
        "Sparse autoencoders (`make bench-sae`)",
        f"""
Activations of all-MiniLM-L6-v2 at layers 0 to {sites - 1} (384 wide) on {TRAIN_ROWS:,} tokens of movie reviews;
BatchTopK, {LATENTS:,} latents, k = {K}, batches of {BATCH:,}, {STEPS} steps, peak learning rate {RATE:g} with warm-up
and decay for all; each peer in float32 or under bfloat16 autocast, whichever is faster here. The peers and
`layerdrift-single` train {sites} autoencoders one after another, `layerdrift-stacked` those of both models together.
Tokens a second count each autoencoder's own; FVU is the mean over layers on {HELDOUT_ROWS:,} held-out tokens with
exactly k latents a token on average, computed by one function for all; memory is the process's peak, with the
activations in it (twice as many for the stack).

| | tokens/s | times the fastest peer | FVU | peak MB |
|---|---|---|---|---|
"""
        + "\n".join(lines),
    )


if __name__ == "__main__":
    main()
