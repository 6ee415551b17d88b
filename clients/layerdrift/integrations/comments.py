"""One comment on a pull or merge request that always shows the last review, with the drift curve as a picture."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from layerdrift.contract.errors import InputError, LayerdriftError, TransportError

_SECONDS = 60.0
_ACTIONS = "github-actions[bot]"
CHARTS_BRANCH = "layerdrift-charts"
"""Branch of a GitHub repository that pictures are kept on: comments there cannot carry them."""


class RefusedError(LayerdriftError):
    """GitHub or GitLab did not take what was sent."""

    kind = "refused"
    title = "Refused by the code host"


class Thread(Protocol):
    """A pull or merge request."""

    def picture(self, name: str, png: bytes) -> str:
        """Keeps a picture; Markdown that shows it."""

    def say(self, marker: str, body: str) -> str:
        """Writes a comment, or changes the one with this marker; its URL."""


def comment(thread: Thread, name: str, body: str, png: bytes | None, subject: str) -> str:
    """Says a review on a thread.

    Args:
        name: of the review within this thread: a later one of the same name takes the comment's place.
        subject: what the picture belongs to, such as an analysis's id.

    Raises:
        RefusedError: the comment was not taken. Without permission for the picture, the comment says so instead.
    """
    picture = ""
    if png is not None:
        try:
            picture = thread.picture(f"{subject}.png", png) + "\n\n"
        except RefusedError as error:
            picture = f"_The drift curve could not be stored: {error.detail}_\n\n"
    marker = f"<!-- layerdrift:{name.replace('--', '')} -->"
    heading, _, rest = body.partition("\n")
    return thread.say(marker, f"{marker}\n{heading}\n\n{picture}{rest.lstrip()}")


@dataclass(frozen=True)
class GitHubPull:
    """A pull request, from the variables that GitHub Actions sets."""

    http: httpx.Client
    repository: str
    number: int
    server: str

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> GitHubPull:
        """InputError where this is no run for a pull request, or there is no GITHUB_TOKEN."""
        token, repository = environment.get("GITHUB_TOKEN"), environment.get("GITHUB_REPOSITORY")
        event = environment.get("GITHUB_EVENT_PATH")
        if not token or not repository or not event:
            raise InputError(
                "not running in GitHub Actions: GITHUB_TOKEN, GITHUB_REPOSITORY and GITHUB_EVENT_PATH must be set"
            )
        told = json.loads(Path(event).read_text(encoding="utf-8"))
        number = told.get("pull_request", {}).get("number") or told.get("number")
        if not number:
            raise InputError("this run does not belong to a pull request")
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
        http = _client(environment.get("GITHUB_API_URL", "https://api.github.com"), headers)
        return cls(http, repository, int(number), environment.get("GITHUB_SERVER_URL", "https://github.com"))

    def picture(self, name: str, png: bytes) -> str:
        """Onto a branch of its own: GitHub's API takes no pictures with a comment."""
        self._ensure_branch()
        path = f"pull-{self.number}/{name}"
        place = f"/repos/{self.repository}/contents/{quote(path)}"
        found = self.http.get(place, params={"ref": CHARTS_BRANCH})
        body: dict[str, Any] = {
            "message": f"Drift curve of {name.removesuffix('.png')}",
            "content": base64.b64encode(png).decode(),
            "branch": CHARTS_BRANCH,
        }
        if found.is_success:
            body["sha"] = found.json()["sha"]
        _taken(self.http.put(place, json=body))
        url = f"{self.server}/{self.repository}/blob/{CHARTS_BRANCH}/{quote(path)}?raw=true"
        return f"![Drift by layer]({url})"

    def say(self, marker: str, body: str) -> str:
        me = self._login()
        own = next((one for one in self._comments() if one["user"]["login"] == me and marker in one["body"]), None)
        if own is not None:
            place = f"/repos/{self.repository}/issues/comments/{own['id']}"
            return str(_taken(self.http.patch(place, json={"body": body}))["html_url"])
        place = f"/repos/{self.repository}/issues/{self.number}/comments"
        return str(_taken(self.http.post(place, json={"body": body}))["html_url"])

    def _login(self) -> str:
        """Whose token it is; anybody may write our marker into a comment. A run's own token may not ask."""
        answer = self.http.get("/user")
        return str(answer.json()["login"]) if answer.is_success else _ACTIONS

    def _comments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page = 1
        while True:
            params = {"per_page": 100, "page": page}
            place = f"/repos/{self.repository}/issues/{self.number}/comments"
            some: list[dict[str, Any]] = _taken(self.http.get(place, params=params))
            found += some
            if len(some) < 100:
                return found
            page += 1

    def _ensure_branch(self) -> None:
        """The branch, without a file of the repository's own on it."""
        git = f"/repos/{self.repository}/git"
        if self.http.get(f"{git}/ref/heads/{CHARTS_BRANCH}").is_success:
            return
        readme = "Drift curves that layerdrift shows in pull requests.\n"
        entry = {"path": "README.md", "mode": "100644", "type": "blob", "content": readme}
        tree = _taken(self.http.post(f"{git}/trees", json={"tree": [entry]}))["sha"]
        body = {"message": "Add a branch for drift curves", "tree": tree, "parents": []}
        commit = _taken(self.http.post(f"{git}/commits", json=body))["sha"]
        made = self.http.post(f"{git}/refs", json={"ref": f"refs/heads/{CHARTS_BRANCH}", "sha": commit})
        if made.status_code != 422:  # another run was faster
            _taken(made)


@dataclass(frozen=True)
class GitLabMerge:
    """A merge request, from the variables that GitLab CI sets; LAYERDRIFT_GITLAB_TOKEN may write notes (scope api)."""

    http: httpx.Client
    project: str
    number: int

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> GitLabMerge:
        """InputError where this is no pipeline of a merge request, or there is no token."""
        url, project = environment.get("CI_API_V4_URL"), environment.get("CI_PROJECT_ID")
        number, token = environment.get("CI_MERGE_REQUEST_IID"), environment.get("LAYERDRIFT_GITLAB_TOKEN")
        if not url or not project:
            raise InputError("not running in GitLab CI: CI_API_V4_URL and CI_PROJECT_ID must be set")
        if not number:
            raise InputError("this pipeline does not belong to a merge request")
        if not token:
            raise InputError("LAYERDRIFT_GITLAB_TOKEN must be set to an access token with the api scope")
        http = _client(url, {"PRIVATE-TOKEN": token})
        return cls(http, project, int(number))

    def picture(self, name: str, png: bytes) -> str:
        """As an upload of the project."""
        files = {"file": (name, png, "image/png")}
        return str(_taken(self.http.post(f"/projects/{self.project}/uploads", files=files))["markdown"])

    def say(self, marker: str, body: str) -> str:
        place = f"/projects/{self.project}/merge_requests/{self.number}/notes"
        me = _taken(self.http.get("/user"))["id"]
        page: str | None = "1"
        while page:
            answer = self.http.get(place, params={"per_page": 100, "page": page})
            own = next((note for note in _taken(answer) if note["author"]["id"] == me and marker in note["body"]), None)
            if own is not None:
                _taken(self.http.put(f"{place}/{own['id']}", json={"body": body}))
                return f"note {own['id']}"
            page = answer.headers.get("X-Next-Page")
        return f"note {_taken(self.http.post(place, json={'body': body}))['id']}"


class _Reached(httpx.BaseTransport):
    """Says of a host that cannot be reached what others of its kind say."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._inner.handle_request(request)
        except httpx.TransportError as error:
            raise TransportError(f"{request.url.host} could not be reached: {error}") from error

    def close(self) -> None:
        self._inner.close()


def _client(url: str, headers: dict[str, str]) -> httpx.Client:
    return httpx.Client(base_url=url, headers=headers, timeout=_SECONDS, transport=_Reached())


def _taken(answer: httpx.Response) -> Any:
    """What an answer holds; RefusedError where it says no."""
    if answer.is_success:
        return answer.json()
    raise RefusedError(
        f"{answer.request.method} {answer.request.url.path} returned {answer.status_code}: {answer.text[:300]}"
    )
