"""A benign fine-tune beside the pair: one more model that learned nothing of interest."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from backends.sources.pair_checks import BENIGN
from layerdrift.contract.errors import InputError
from workers.models.adapter_blocks import AdapterBlocks
from workers.models.blockwise import BlockFiles, BlockwiseModel
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.compare.head_outputs import head_alone


class Benign(NamedTuple):
    """Its blocks, read from its files or made of the base model's, and its head."""

    blocks: BlockwiseModel
    head: PreTrainedModel


def benign_of(checkpoint: Checkpoint, pair: LayeredPair, base_head: PreTrainedModel) -> Benign:
    """The benign fine-tune of a pair, in the pair's precision.

    Raises:
        NotBlockwise: its blocks cannot run one at a time, or its head cannot be read alone.
        InputError: it is broken, or not of the base model's class and depth.
    """
    if checkpoint.adapter is not None:
        return Benign(AdapterBlocks(pair.base, checkpoint.adapter.folder, BENIGN), base_head)
    blocks = BlockFiles(checkpoint.folder, BENIGN, pair.base.device, pair.base.dtype)
    if type(blocks.model) is not type(pair.base.model) or blocks.depth != pair.base.depth:
        raise InputError.at(
            BENIGN, f"a {type(blocks.model).__name__} cannot stand beside a {type(pair.base.model).__name__}"
        )
    return Benign(blocks, head_alone(checkpoint.folder, BENIGN, pair.base.dtype))
