"""layerdrift: which layers of a fine-tuned transformer changed, how much, and whether it matters.

`Client`, `AsyncClient` and the errors they raise are loaded when they are first named: the service, which imports this
package too, does without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from layerdrift.contract.errors import LayerdriftError
    from layerdrift.contract.request import AnalysisRequest
    from layerdrift.contract.study import StudyRequest
    from layerdrift.sdk import AnalysisFailed, AsyncClient, Client, Event, Retries, StudyFailed

__version__: Final = "0.1.0"

_HOMES: Final = {
    **dict.fromkeys(("AnalysisFailed", "AsyncClient", "Client", "Event", "Retries", "StudyFailed"), "layerdrift.sdk"),
    "AnalysisRequest": "layerdrift.contract.request",
    "LayerdriftError": "layerdrift.contract.errors",
    "StudyRequest": "layerdrift.contract.study",
}

__all__ = [
    "AnalysisFailed",
    "AnalysisRequest",
    "AsyncClient",
    "Client",
    "Event",
    "LayerdriftError",
    "Retries",
    "StudyFailed",
    "StudyRequest",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
