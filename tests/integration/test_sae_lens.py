"""What is written for sae-lens, read by the real one: an interpreter of its own, since it needs other packages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.analysis.sae import Architecture, Normalisation, SaeConfig, SaeStack
from workers.analysis.sae_training import StackTrainer
from workers.stages.sae.files import save_sae

PEERS = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
pytestmark = pytest.mark.slow  # imports sae-lens in an environment of its own

ARCHITECTURES: tuple[Architecture, ...] = ("batch_topk", "topk", "jumprelu", "relu_l1")
READ = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE

for folder in map(Path, sys.argv[1:]):
    sae = SAE.load_from_disk(folder / "sae")
    rows = load_file(folder / "rows.safetensors")["rows"]
    with torch.no_grad():
        latents = sae.encode(rows)
        rebuilt = sae.decode(latents)
    save_file({"latents": latents.contiguous(), "rebuilt": rebuilt.contiguous()}, folder / "read.safetensors")
    print(sae.cfg.metadata.layerdrift["layer"])
"""


class Written(NamedTuple):
    """Autoencoders of two sites; the second one's is in `folder`, with the rows of its site."""

    stack: SaeStack
    rows: Tensor
    folder: Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[Architecture, Written]:
    """One of each architecture, after sae-lens has read them all."""
    made = {one: _write(one, tmp_path_factory.mktemp(one)) for one in ARCHITECTURES}
    command = [str(PEERS), "-c", READ, *(str(one.folder) for one in made.values())]
    read = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [json.loads(line) for line in read.splitlines()] == [1] * len(made)
    return made


def _write(architecture: Architecture, folder: Path) -> Written:
    """Rows of two sites with a mean and a scale of their own."""
    generator = torch.Generator().manual_seed(0)
    rows = 7 * torch.randn(2, 512, 24, generator=generator) + 3
    config = SaeConfig(latents=64, k=4, steps=30, batch=64, architecture=architecture)
    row_k = config.k if architecture == "topk" else 0
    stack = SaeStack.initial(Normalisation.of(rows), 64, generator, row_k)
    trainer = StackTrainer(stack, config, torch.float32)
    for _ in range(30):
        trainer.step(rows[:, torch.randint(512, (64,), generator=generator)])
    save_sae(stack, 1, folder / "sae", {"layerdrift": {"layer": 1}})
    save_file({"rows": rows[1].contiguous()}, folder / "rows.safetensors")
    return Written(stack, rows, folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sae_lens_rebuilds_the_same(architecture: Architecture, written: dict[Architecture, Written]) -> None:
    stack, rows, folder = written[architecture]
    found = load_file(folder / "read.safetensors")
    latents = stack.encode(1, rows[1])
    assert 0 < float((latents > 0).float().mean()) < 1
    torch.testing.assert_close(found["latents"], latents * stack.scale[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["rebuilt"], stack.decode(1, latents), atol=1e-4, rtol=1e-4)
