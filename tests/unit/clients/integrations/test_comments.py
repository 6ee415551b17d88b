"""The comment on a pull or merge request, against the calls of GitHub and GitLab that it makes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from layerdrift.contract.errors import InputError, TransportError
from layerdrift.integrations.comments import CHARTS_BRANCH, GitHubPull, GitLabMerge, RefusedError, comment
from tests.builders.http_service import HttpService

REPOSITORY = "/repos/o/r"
ISSUE = f"{REPOSITORY}/issues/7/comments"
NOTES = "/projects/5/merge_requests/7/notes"
MARKER = "<!-- layerdrift:review -->"


def answer(status: int, body: Any, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json=body, headers={key.replace("_", "-"): headers[key] for key in headers})


def github(host: HttpService) -> GitHubPull:
    http = httpx.Client(base_url="http://host", transport=httpx.MockTransport(host))
    return GitHubPull(http, "o/r", 7, "https://github.com")


def gitlab(host: HttpService) -> GitLabMerge:
    return GitLabMerge(httpx.Client(base_url="http://host", transport=httpx.MockTransport(host)), "5", 7)


def said(number: int, login: str, body: str) -> dict[str, Any]:
    return {"id": number, "user": {"login": login}, "body": body, "html_url": f"https://github.com/c/{number}"}


def noted(number: int, author: int, body: str) -> dict[str, Any]:
    return {"id": number, "author": {"id": author}, "body": body}


class Thread:
    """A thread that keeps what is said; `refused`: it takes no pictures."""

    def __init__(self, refused: str = "") -> None:
        self.refused, self.marker, self.body, self.pictures = refused, "", "", list[str]()

    def picture(self, name: str, png: bytes) -> str:
        if self.refused:
            raise RefusedError(self.refused)
        self.pictures.append(f"{name} {png!r}")
        return "![drift](url)"

    def say(self, marker: str, body: str) -> str:
        self.marker, self.body = marker, body
        return "https://url"


def test_the_picture_stands_between_the_decision_and_its_reasons() -> None:
    thread = Thread()
    assert comment(thread, "review", "## Passed\n\nwhy\n", b"png", "an_x") == "https://url"
    assert thread.body == f"{MARKER}\n## Passed\n\n![drift](url)\n\nwhy\n"
    assert thread.pictures == ["an_x.png b'png'"]


def test_without_a_picture_none_is_stored() -> None:
    thread = Thread()
    comment(thread, "review", "## Passed\nwhy", None, "an_x")
    assert (thread.body, thread.pictures) == (f"{MARKER}\n## Passed\n\nwhy", [])


def test_a_picture_that_is_refused_is_no_reason_to_say_nothing() -> None:
    thread = Thread(refused="no permission")
    comment(thread, "review", "## Passed\nwhy", b"png", "an_x")
    assert "\n\n_The drift curve could not be stored: no permission_\n\nwhy" in thread.body


@pytest.mark.parametrize("name", ["a --> b", "a----> b", "--"])
def test_no_name_ends_the_marker_early(name: str) -> None:
    thread = Thread()
    comment(thread, name, "## Passed", None, "an_x")
    assert "--" not in thread.marker.removeprefix("<!--").removesuffix("-->")


def test_on_github_the_first_comment_is_written_and_the_next_one_changes_it() -> None:
    host = HttpService({f"GET {ISSUE}": answer(200, []), f"POST {ISSUE}": answer(201, said(3, "bot", ""))})
    assert github(host).say(MARKER, f"{MARKER}\nfirst") == "https://github.com/c/3"
    assert host.sent() == {"body": f"{MARKER}\nfirst"}
    host.answers |= {
        "GET /user": answer(200, {"login": "bot"}),
        f"GET {ISSUE}": answer(200, [said(2, "bot", "another"), said(3, "bot", f"{MARKER}\nfirst")]),
        f"PATCH {REPOSITORY}/issues/comments/3": answer(200, said(3, "bot", "")),
    }
    assert github(host).say(MARKER, "second") == "https://github.com/c/3"
    assert host.asked[-1] == f"PATCH {REPOSITORY}/issues/comments/3"


def test_on_github_a_marker_in_a_comment_of_somebody_else_is_not_ours() -> None:
    host = HttpService(
        {
            "GET /user": answer(200, {"login": "bot"}),
            f"GET {ISSUE}": answer(200, [said(2, "mallory", MARKER)]),
            f"POST {ISSUE}": answer(201, said(4, "bot", "")),
        }
    )
    assert github(host).say(MARKER, "x") == "https://github.com/c/4"


def test_on_github_the_token_of_a_run_which_may_not_ask_who_it_is_finds_its_comment() -> None:
    host = HttpService(
        {
            "GET /user": answer(403, {"message": "Resource not accessible by integration"}),
            f"GET {ISSUE}": answer(200, [said(9, "github-actions[bot]", MARKER)]),
            f"PATCH {REPOSITORY}/issues/comments/9": answer(200, said(9, "github-actions[bot]", "")),
        }
    )
    assert github(host).say(MARKER, "x") == "https://github.com/c/9"


def test_on_github_a_comment_on_the_second_page_is_found() -> None:
    pages = [[said(number, "somebody", "x") for number in range(100)], [said(200, "github-actions[bot]", MARKER)]]
    host = HttpService(
        {
            f"GET {ISSUE}": [answer(200, page) for page in pages],
            f"PATCH {REPOSITORY}/issues/comments/200": answer(200, said(200, "bot", "")),
        }
    )
    assert github(host).say(MARKER, "x") == "https://github.com/c/200"
    assert [dict(request.url.params) for request in host.seen[1:3]] == [
        {"per_page": "100", "page": "1"},
        {"per_page": "100", "page": "2"},
    ]


CONTENTS = f"{REPOSITORY}/contents/pull-7/an_x.png"
BRANCH = f"GET {REPOSITORY}/git/ref/heads/{CHARTS_BRANCH}"


def test_on_github_a_picture_goes_onto_its_branch() -> None:
    host = HttpService({BRANCH: answer(200, {}), f"PUT {CONTENTS}": answer(201, {})})
    shown = github(host).picture("an_x.png", b"png")
    assert shown == (f"![Drift by layer](https://github.com/o/r/blob/{CHARTS_BRANCH}/pull-7/an_x.png?raw=true)")
    assert host.sent() == {
        "message": "Drift curve of an_x",
        "content": base64.b64encode(b"png").decode(),
        "branch": CHARTS_BRANCH,
    }


def test_on_github_a_picture_that_is_there_is_replaced_by_its_sha() -> None:
    host = HttpService(
        {BRANCH: answer(200, {}), f"GET {CONTENTS}": answer(200, {"sha": "b" * 40}), f"PUT {CONTENTS}": answer(200, {})}
    )
    github(host).picture("an_x.png", b"png")
    assert host.sent()["sha"] == "b" * 40


@pytest.mark.parametrize("status", [201, 422], ids=["made", "another run was faster"])
def test_on_github_the_branch_is_made_once_and_holds_no_file_of_the_repository(status: int) -> None:
    git = f"POST {REPOSITORY}/git"
    host = HttpService(
        {
            f"{git}/trees": answer(201, {"sha": "t" * 40}),
            f"{git}/commits": answer(201, {"sha": "c" * 40}),
            f"{git}/refs": answer(status, {}),
            f"PUT {CONTENTS}": answer(201, {}),
        }
    )
    github(host).picture("an_x.png", b"png")
    tree, commit, ref = (json.loads(request.content) for request in host.seen[1:4])
    assert [entry["path"] for entry in tree["tree"]] == ["README.md"]
    assert "base_tree" not in tree
    assert (commit["tree"], commit["parents"]) == ("t" * 40, [])
    assert ref == {"ref": f"refs/heads/{CHARTS_BRANCH}", "sha": "c" * 40}


def test_what_a_host_refuses_is_told_with_its_reason() -> None:
    host = HttpService({BRANCH: answer(200, {}), f"PUT {CONTENTS}": answer(403, {"message": "read-only token"})})
    with pytest.raises(RefusedError, match=f"PUT {CONTENTS} returned 403: .*read-only token"):
        github(host).picture("an_x.png", b"png")


def test_on_gitlab_a_note_of_ours_is_found_on_any_page_and_changed() -> None:
    host = HttpService(
        {
            "GET /user": answer(200, {"id": 1}),
            f"GET {NOTES}": [
                answer(200, [noted(3, 2, MARKER), noted(4, 1, "another")], X_Next_Page="2"),
                answer(200, [noted(5, 1, f"{MARKER}\nfirst")], X_Next_Page=""),
            ],
            f"PUT {NOTES}/5": answer(200, {}),
        }
    )
    assert gitlab(host).say(MARKER, "second") == "note 5"
    assert host.sent() == {"body": "second"}
    assert [request.url.params["page"] for request in host.seen[1:3]] == ["1", "2"]


def test_on_gitlab_a_note_is_written_where_there_is_none_of_ours() -> None:
    host = HttpService(
        {
            "GET /user": answer(200, {"id": 1}),
            f"GET {NOTES}": answer(200, [noted(3, 2, MARKER)], X_Next_Page=""),
            f"POST {NOTES}": answer(201, {"id": 8}),
        }
    )
    assert gitlab(host).say(MARKER, "x") == "note 8"


def test_on_gitlab_a_picture_is_an_upload_of_the_project() -> None:
    host = HttpService({"POST /projects/5/uploads": answer(201, {"markdown": "![drift](/uploads/1)"})})
    assert gitlab(host).picture("an_x.png", b"png") == "![drift](/uploads/1)"
    assert b'filename="an_x.png"' in host.seen[0].content


@pytest.fixture
def actions(tmp_path: Path) -> dict[str, str]:
    """The variables of a GitHub Actions run for a pull request."""
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"pull_request": {"number": 7}}))
    return {"GITHUB_TOKEN": "t", "GITHUB_REPOSITORY": "o/r", "GITHUB_EVENT_PATH": str(event)}


def test_a_run_of_github_actions_knows_its_pull_request(actions: dict[str, str]) -> None:
    with GitHubPull.here(actions).http as http:
        assert (str(http.base_url), http.headers["Authorization"]) == ("https://api.github.com", "Bearer t")
    pull = GitHubPull.here(actions | {"GITHUB_API_URL": "https://ghe/api/v3", "GITHUB_SERVER_URL": "https://ghe"})
    with pull.http as http:
        assert (pull.repository, pull.number, pull.server) == ("o/r", 7, "https://ghe")
        assert str(http.base_url) == "https://ghe/api/v3/"


@pytest.mark.parametrize("missing", ["GITHUB_TOKEN", "GITHUB_REPOSITORY", "GITHUB_EVENT_PATH"])
def test_elsewhere_than_in_github_actions_that_is_said(actions: dict[str, str], missing: str) -> None:
    with pytest.raises(InputError, match="not running in GitHub Actions"):
        GitHubPull.here(actions | {missing: ""})


def test_a_run_for_a_push_has_no_pull_request(actions: dict[str, str]) -> None:
    Path(actions["GITHUB_EVENT_PATH"]).write_text(json.dumps({"ref": "refs/heads/main"}))
    with pytest.raises(InputError, match="does not belong to a pull request"):
        GitHubPull.here(actions)


PIPELINE = {
    "CI_API_V4_URL": "https://gitlab/api/v4",
    "CI_PROJECT_ID": "5",
    "CI_MERGE_REQUEST_IID": "7",
    "LAYERDRIFT_GITLAB_TOKEN": "t",
}


def test_a_pipeline_of_gitlab_knows_its_merge_request() -> None:
    merge = GitLabMerge.here(PIPELINE)
    with merge.http as http:
        assert (merge.project, merge.number, http.headers["PRIVATE-TOKEN"]) == ("5", 7, "t")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("CI_API_V4_URL", "not running in GitLab CI"),
        ("CI_PROJECT_ID", "not running in GitLab CI"),
        ("CI_MERGE_REQUEST_IID", "does not belong to a merge request"),
        ("LAYERDRIFT_GITLAB_TOKEN", "LAYERDRIFT_GITLAB_TOKEN must be set"),
    ],
)
def test_what_a_pipeline_lacks_is_said(missing: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        GitLabMerge.here({name: value for name, value in PIPELINE.items() if name != missing})


def test_a_host_that_nobody_answers_at_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", refused)
    merge = GitLabMerge.here(PIPELINE)
    with merge.http, pytest.raises(TransportError, match="gitlab could not be reached: refused"):
        merge.say(MARKER, "x")
