"""What the configurations of a request's models tell before anything is fetched: whether they can be compared."""

from __future__ import annotations

from backends.sources.checkpoint_configs import Shape
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest

BENIGN = "/analysis/learned/benign/uri"
"""Where a request names a benign fine-tune."""

BENIGN_IS_TUNED = "the benign fine-tune is the tuned model: nothing could ever exceed it"


def check_shapes(base: Shape, tuned: Shape, pointer: str) -> None:
    """InputError for a pair whose configurations tell of another depth or width."""
    for what, one, other in zip(("blocks", "hidden width"), base, tuned, strict=True):
        if one is not None and other is not None and one != other:
            raise shape_error(what, one, other, pointer)


def shape_error(what: str, base: object, other: object, pointer: str) -> InputError:
    """Two models that cannot be a pair; the second is that of the pointer."""
    name = pointer.split("/")[-2]
    detail = f"the models differ in {what}: base {base}, {name} {other}; both must have the same shape"
    return InputError.at(pointer, detail)


def check_layers(request: AnalysisRequest, base: Shape) -> None:
    """InputError for layers and blocks that the model does not have, and for more active latents than there are."""
    _check_layers(request, base)
    learned = request.analysis.learned
    autoencoder = learned.autoencoder if learned is not None else None
    if autoencoder is None or not isinstance(base.width, int):
        return
    latents = autoencoder.width * base.width
    if autoencoder.k > latents:
        detail = f"k = {autoencoder.k} exceeds the number of latents ({latents})"
        raise InputError.at("/analysis/learned/autoencoder/k", detail)


def _check_layers(request: AnalysisRequest, base: Shape) -> None:
    if not isinstance(base.blocks, int):
        return
    adapters = request.finetune.lora if request.finetune is not None else None
    if adapters is not None and adapters.layers is not None and adapters.layers[-1] > base.blocks:
        detail = f"there is no block {adapters.layers[-1]}; the model's blocks are 1 to {base.blocks}"
        raise InputError.at("/finetune/lora/layers", detail)
    sae, learned = request.analysis.sae, request.analysis.learned
    autoencoder = learned.autoencoder if learned is not None else None
    for pointer, asked in (("/analysis/sae/layers", sae), ("/analysis/learned/autoencoder/layers", autoencoder)):
        try:
            if asked is not None:
                asked.layers_of(base.blocks + 1)
        except ValueError as error:
            raise InputError.at(pointer, str(error)) from error
