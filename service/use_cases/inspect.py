"""Inspecting texts: the one door from the service to the workers, which is opened where torch is installed.

`workers.inspector` is imported when it is first asked for: it takes seconds, and the API has no need of torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backends.deployment import Deployment
from backends.settings import Settings
from layerdrift.contract.errors import LayerdriftError, UnsupportedError
from layerdrift.contract.inspection import Inspection, InspectionRequest

if TYPE_CHECKING:
    from workers.inspector import Inspector


class Inspections:
    """Answers questions about the pairs of finished analyses; holds the models of the last ones in memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._inspector: Inspector | None = None

    def answer(self, questions: Sequence[tuple[str, InspectionRequest]]) -> list[Inspection | LayerdriftError]:
        """Of each tenant's request, in order; an error of one does not reach the others.

        Raises:
            UnsupportedError: torch is not installed here.
        """
        if importlib.util.find_spec("torch") is None:
            raise UnsupportedError("texts can only be inspected where torch is: install layerdrift-server[worker]")
        from workers.inspector import Asked

        asked = [Asked(tenant, one.analysis_id, one.texts, one.completion_tokens) for tenant, one in questions]
        return self._loaded().answer(asked)

    def _loaded(self) -> Inspector:
        from workers.inspector import Inspector

        if self._inspector is None:
            folder, limit = self._settings.home.resolve() / "inspect", self._settings.inspect_memory_bytes
            self._inspector = Inspector(Deployment.connect(self._settings), folder, limit)
        return self._inspector
