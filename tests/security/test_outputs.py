"""What users wrote comes out as text, in every format; webhooks and buckets lead nowhere that nobody allowed."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from markdown_it import MarkdownIt
from pydantic import SecretStr, ValidationError

from backends import webhooks
from backends.deployment import Deployment
from backends.jobs.records import Delivery, JobRecord
from backends.observability import logs
from backends.webhooks import WebhookSender, is_public
from deploy.embedded.stack import Stack
from layerdrift.cli import tables
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError
from layerdrift.contract.key import KeyRequest
from layerdrift.contract.policy import Check, Verdict
from layerdrift.contract.request import AnalysisRequest, Webhook
from layerdrift.contract.upload import UploadRequest
from layerdrift.integrations import model_card
from layerdrift.integrations.comments import GitHubPull, GitLabMerge, comment
from layerdrift.render import escaping, markdown, verdict
from layerdrift.sdk import Client
from tests.builders.records import record
from tests.builders.reports import report
from tests.builders.texts import make_texts
from tests.builders.webhooks import SECRET, Receiver
from tests.code_hosts import TOKEN, code_host

ESCAPES = ("\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "a\nb", "a\rb", "\x00", "\u2028", "\u202etxt.exe", "\x7f")
HOSTILE = "\x1b[31m`</code>`\n| @someone #1 <script>alert(1)</script> [x](javascript:alert(1)) \u202e"


@pytest.mark.parametrize("text", ESCAPES)
def test_control_characters_are_refused_where_names_tags_and_uris_come_in(
    stack: Stack, base_folder: Path, text: str
) -> None:
    whole: dict[str, Any] = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": base_folder.as_uri()},
        "dataset": {"inline": {"texts": make_texts(40)}},
    }
    for changes in (
        {"name": text},
        {"tags": {text: "x"}},
        {"tags": {"x": text}},
        {"base": {"uri": f"file:///{text}"}},
        {"dataset": {"uri": f"file:///{text}.csv"}},
        {"dataset": {"uri": "file:///x.csv", "text_column": text}},
        {"webhook": {"url": f"https://example.org/{text}", "secret_ref": "ci"}},
    ):
        said = httpx.post(f"{stack.url}/v1/analyses", json=whole | changes)
        assert (said.status_code, "control characters are not allowed" in said.text) == (422, True), (
            changes,
            said.text,
        )
        assert not any(one in json.dumps(said.json(), ensure_ascii=False) for one in "\x1b\x9b\u202e\u2028\x00")
    for wrong in (lambda: KeyRequest(name=text), lambda: UploadRequest(filename=f"{text}.csv")):
        with pytest.raises(ValidationError):
            wrong()


def test_texts_may_hold_what_texts_hold(stack: Stack) -> None:
    asked = {"base": {"uri": "file:///b"}, "tuned": {"uri": "file:///t"}, "analysis": {"texts": ["a\n\tb"]}}
    AnalysisRequest.model_validate(asked | {"dataset": {"inline": {"texts": ["line\none", "\x1b[31m"]}}})


def old_record(deployment: Deployment) -> JobRecord:
    """One that an earlier version took, with everything in its name and tags."""
    made = record()
    request = made.request.model_copy(update={"name": HOSTILE, "tags": {"k\x1b": "v\nforged"}})
    stored = made.model_copy(update={"request": request})
    deployment.jobs.submit(stored)
    return stored


def test_a_record_of_before_is_read_and_shown_as_text(deployment: Deployment) -> None:
    found = deployment.jobs.get(old_record(deployment).id)
    assert found.request.name == HOSTILE
    shown = io.StringIO()
    with redirect_stdout(shown):
        tables.say(tables.analyses([found.analysis()]), *tables.analysis(found.analysis()), HOSTILE)
    for line in shown.getvalue().splitlines():
        assert line.isprintable(), line
    assert "\\x1b[31m" in shown.getvalue().replace("\n", "")


def test_every_table_of_the_command_line_shows_text_alone() -> None:
    check = Check(
        id=HOSTILE, decision="fail", severity="fail", path="x", matched=1, observed=HOSTILE, limit="= x",
        message=HOSTILE, detail=HOSTILE,
    )  # fmt: skip
    found = Verdict(analysis_id="an_x", decision="fail", checks=[check])
    shown = io.StringIO()
    with redirect_stdout(shown):
        tables.say(tables.verdict(found))
    assert all(line.isprintable() for line in shown.getvalue().splitlines())


@pytest.mark.parametrize("made", [markdown.render, lambda one: model_card.section(one, None)], ids=["report", "card"])
def test_markdown_makes_no_markup_of_what_a_user_wrote(made: Any) -> None:
    one = report(name=HOSTILE)
    for model in one.models.values():
        object.__setattr__(model, "uri", f"file:///{HOSTILE}")
    text = made(one)
    assert "\x1b" not in text
    assert "\u202e" not in text
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).enable("table").render(text)
    assert "<script>" not in page
    assert "javascript:" not in page.partition("href")[2]
    outside = _without_code(page)
    assert "@someone" not in outside
    assert "#1" not in outside


def _without_code(page: str) -> str:
    import re

    return re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)


def test_a_verdict_calls_nobody() -> None:
    check = Check(
        id=HOSTILE, decision="fail", severity="fail", path="x", matched=1, observed=1.0, limit="<= 0", message=HOSTILE,
        detail="@team look at #12",
    )  # fmt: skip
    found = Verdict(analysis_id="an_x", decision="fail", checks=[check])
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).enable("table").render(verdict.markdown(found))
    assert not [word for word in ("<script>", "@someone", "@team", "#12", "\x1b") if word in page]
    written = verdict.junit(found, HOSTILE, datetime.now(UTC))
    assert "\x1b" not in written
    assert [case.get("classname") for case in ET.fromstring(written).iter("testcase")] == ["layerdrift.policy"]


def test_escaping_leaves_what_is_harmless() -> None:
    assert escaping.markdown("plain words") == "plain words"
    assert escaping.lines("one\ntwo\x1b") == "one\ntwo\\x1b"
    assert escaping.terminal("[bold]x[/bold]") == r"\[bold]x\[/bold]"
    assert escaping.markdown_code("a`b\nc") == "`a'b c`"


def test_a_plain_log_has_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("plain")
        logging.getLogger("x").warning("the webhook to %s failed", "a\n2026-01-01 forged line\x1b[2J")
        said = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert said.count("\n") == 1
    assert "\x1b[2J" not in said
    assert "\\n2026-01-01 forged" in said


@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_a_comment_of_somebody_else_with_our_marker_is_not_ours(kind: str) -> None:
    with code_host(kind) as host:
        thread: GitHubPull | GitLabMerge
        if kind == "github":
            headers = {"Authorization": f"Bearer {TOKEN}"}
            thread = GitHubPull(httpx.Client(base_url=host.url, headers=headers), "o/r", 7, "https://github.com")
        else:
            thread = GitLabMerge(httpx.Client(base_url=host.url, headers={"PRIVATE-TOKEN": TOKEN}), "5", 7)
        forged = "<!-- layerdrift:review -->\nlooks good"
        host.comments[1], host.authors[1] = forged, "mallory"
        comment(thread, "review", "# fails\nwhy", None, "an_x")
        assert host.comments[1] == forged
        assert host.comments[2].endswith("why")
        comment(thread, "review", "# passes\nnow", None, "an_x")
        assert host.comments[2].endswith("now")
        assert len(host.comments) == 2


def test_the_report_has_a_policy_and_is_taken_for_what_it_says(
    stack: Stack, base_folder: Path, noised_folder: Path
) -> None:
    asked = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None, "grafts": False},
    }
    with Client(stack.url) as client:
        analysis = client.submit(AnalysisRequest.model_validate(asked))
        client.wait(analysis.id, timeout=120)
    path = f"{stack.url}/v1/analyses/{analysis.id}/report"
    for kind in ("text/html", "application/json", "text/markdown"):
        for _ in range(2):  # from the store, and from memory
            said = httpx.get(path, headers={"Accept": kind})
            assert said.headers["X-Content-Type-Options"] == "nosniff"
            if kind == "text/html":
                policy = said.headers["Content-Security-Policy"]
                assert "sandbox" in policy
                assert "default-src 'none'" in policy


@pytest.mark.parametrize(
    ("allowed", "uri", "read"),
    [
        ([], "s3://elsewhere/models/x/", False),
        (["elsewhere"], "s3://elsewhere/models/x/", True),
        (["elsewhere/models/"], "s3://elsewhere/models/x/", True),
        (["elsewhere/models/"], "s3://elsewhere/other/x/", False),
        (["else"], "s3://elsewhere/models/x/", False),
        (["*"], "s3://elsewhere/models/x/", True),
    ],
)
def test_other_buckets_are_read_where_the_operator_names_them(
    deployment: Deployment, allowed: list[str], uri: str, read: bool
) -> None:
    changed = Deployment.connect(deployment.settings.model_copy(update={"readable_buckets": allowed}))
    asked = {"base": {"uri": uri}, "tuned": {"uri": uri}, "dataset": {"inline": {"texts": make_texts(40)}}}
    with pytest.raises(InputError) as raised:
        changed.sources.pin(AnalysisRequest.model_validate(asked))
    assert ("LAYERDRIFT_READABLE_BUCKETS" in raised.value.detail) is not read


@pytest.mark.parametrize(
    "address",
    [
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "fec0::1",
        "fc00::1",
        "100::1",
        "2001:db8::1",
        "::",
    ],
)
def test_no_form_of_a_private_address_is_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::127.0.0.1]", "localhost.", "10.1"]
)
def test_no_form_of_a_private_address_is_taken_in_a_url(telling: Deployment, host: str) -> None:
    with pytest.raises(InputError, match="not a public address"):
        telling.webhooks.check(Webhook(url=f"https://{host}/hook", secret_ref="ci"))


@pytest.fixture
def telling(deployment: Deployment) -> Deployment:
    changes = {"webhook_hosts": ["127.0.0.1"], "webhook_secrets": {"ci": SecretStr(SECRET)}}
    return Deployment.connect(deployment.settings.model_copy(update=changes))


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server that answers a byte at a time and never comes to the end of a line."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def drip(there: socket.socket) -> None:
        with there:
            try:
                there.sendall(b"HTTP/1.1 200 ")
                while not stopped.wait(0.1):
                    there.sendall(b"x")
            except OSError:
                return

    def serve() -> None:
        while not stopped.is_set():
            try:
                there, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(there,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    stopped.set()
    listener.close()


def test_a_receiver_that_drips_holds_up_no_other(
    telling: Deployment, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "DEADLINE_SECONDS", 3.0)
    receiver = Receiver()
    try:
        urls = [dripping] * 4 + [receiver.url]
        jobs = []
        for url in urls:
            made = record().model_copy(update={"deliveries": [Delivery(webhook=Webhook(url=url, secret_ref="ci"))]})
            telling.jobs.submit(made)
            jobs.append(telling.jobs.update(made.id, lambda found: found.ended(Status.SUCCEEDED)))
        heard: list[float] = []
        started = time.monotonic()

        def listen() -> None:
            while not receiver.heard:
                time.sleep(0.05)
            heard.append(time.monotonic() - started)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        sender = WebhookSender(telling.jobs, telling.webhook_queue, telling.webhooks)
        assert sender.send_due(lambda: False) == 5
        listener.join(5)
    finally:
        receiver.close()
    assert heard[0] < 3
    held = [telling.jobs.get(job.id).deliveries[0] for job in jobs]
    assert [delivery.error for delivery in held] == ["no response within 3 s"] * 4 + [None]
