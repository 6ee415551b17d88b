"""layerdrift: which layers of a fine-tuned transformer changed, how much, and whether it matters."""

from typing import Final

__version__: Final = "0.1.0"
