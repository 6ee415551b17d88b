"""Stacks to attack: one that anybody on the machine may use, and one with keys."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest

from deploy.embedded.stack import Stack

ADMIN = "the operator's own key, of this test"
SECRETS = '{"ci": "whsec_' + base64.b64encode(b"a secret of twenty-four by").decode() + '"}'


@pytest.fixture(scope="session")
def keyed(start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with an operator's key and a secret for webhooks, both from the environment."""
    home = tmp_path_factory.mktemp("keyed")
    with start_stack(home, LAYERDRIFT_ADMIN_KEY=ADMIN, LAYERDRIFT_WEBHOOK_SECRETS=SECRETS) as running:
        yield running
