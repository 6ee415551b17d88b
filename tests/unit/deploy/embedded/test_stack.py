"""Which programs a stack starts and what they are told; the programs themselves: tests/e2e and tests/faults."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.storage.blobs import BlobStore
from deploy.embedded import stack
from deploy.embedded.credentials import Credentials
from deploy.embedded.ports import LOOPBACK
from deploy.embedded.stack import Stack
from deploy.embedded.supervisor import Program, StartError, Supervisor
from layerdrift.contract.errors import DeniedError
from tests.builders.stores import MemoryBlobs


class Recorded(Supervisor):
    """Starts nothing, and remembers what was to be started. `fails`: the program that does not become ready."""

    last: Recorded
    fails = ""

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}
        self.watched = 0
        self.stops = 0
        Recorded.last = self

    def start(self, program: Program, timeout: float) -> None:
        if program.name == self.fails:
            raise StartError(f"{program.name} was not ready")
        self.programs[program.name] = program

    def watch(self) -> None:
        self.watched += 1

    def pids(self) -> dict[str, int]:
        return dict.fromkeys(self.programs, 1)

    def stop(self) -> None:
        self.stops += 1


class Bucket(MemoryBlobs):
    """A bucket that cannot be made where `refused`."""

    refused = False

    def ensure_bucket(self) -> None:
        if self.refused:
            raise DeniedError("s3://layerdrift/ cannot be read with the service's credentials")


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "Supervisor", Recorded)
    monkeypatch.setattr(Recorded, "fails", "")
    monkeypatch.setattr(BlobStore, "connect", lambda settings: Bucket())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def started(home: Path, **variables: str) -> dict[str, Program]:
    """The programs of a stack with these variables."""
    with Stack({"PATH": os.environ["PATH"], "LAYERDRIFT_HOME": str(home), **variables}):
        return Recorded.last.programs


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        held.listen()
        yield int(held.getsockname()[1])


def test_servers_come_first_then_the_api_then_the_worker(home: Path) -> None:
    assert list(started(home)) == ["valkey", "seaweedfs", "api", "worker"]
    assert (Recorded.last.watched, Recorded.last.stops) == (1, 1)


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"LAYERDRIFT_REDIS_URL": "redis://x/3"}, ["seaweedfs", "api", "worker"]),
        ({"LAYERDRIFT_S3_ENDPOINT": "https://s3.test"}, ["valkey", "api", "worker"]),
        ({"LAYERDRIFT_S3_BUCKET": "mine-at-aws"}, ["valkey", "api", "worker"]),
        ({"LAYERDRIFT_REDIS_URL": "redis://x/3", "LAYERDRIFT_S3_ENDPOINT": "https://s3.test"}, ["api", "worker"]),
    ],
    ids=["redis", "endpoint", "bucket", "both"],
)
def test_servers_that_the_environment_names_are_used_and_not_started(
    home: Path, variables: dict[str, str], names: list[str]
) -> None:
    programs = started(home, **variables)
    assert list(programs) == names
    assert {name: programs["worker"].env[name] for name in variables} == variables
    if "valkey" in names:
        own = {"LAYERDRIFT_S3_ACCESS_KEY", "LAYERDRIFT_S3_SECRET_KEY"} & set(programs["worker"].env)
        assert own == set()  # those of a SeaweedFS that does not run


def test_every_program_is_told_the_servers_that_were_started(home: Path) -> None:
    programs, shown = started(home), Credentials.of_home(home)
    for name in ("api", "worker"):
        env = programs[name].env
        port = env["LAYERDRIFT_REDIS_URL"].removesuffix("/0").rpartition(":")[2]
        assert env["LAYERDRIFT_REDIS_URL"] == f"redis://:{shown.redis_password}@{LOOPBACK}:{port}/0"
        assert f"port {port}\n" in (home / "valkey" / "valkey.conf").read_text()
        assert f"-s3.port={env['LAYERDRIFT_S3_ENDPOINT'].rpartition(':')[2]}" in programs["seaweedfs"].argv
        assert env["LAYERDRIFT_S3_SECRET_KEY"] == shown.secret_key
    assert programs["api"].env["LAYERDRIFT_INSTANCE"]
    assert "LAYERDRIFT_INSTANCE" not in programs["worker"].env


def test_what_the_environment_says_otherwise_counts(home: Path) -> None:
    worker = started(home, HF_HUB_OFFLINE="0", LAYERDRIFT_WORKERS="3", MALLOC_ARENA_MAX="8")["worker"]
    assert (worker.env["HF_HUB_OFFLINE"], worker.env["MALLOC_ARENA_MAX"]) == ("0", "8")
    assert worker.env["TOKENIZERS_PARALLELISM"] == "false"
    assert "--concurrency=3" in worker.argv


def test_no_secret_stands_in_an_argument(home: Path) -> None:
    programs, shown = started(home), Credentials.of_home(home)
    told = " ".join(word for program in programs.values() for word in program.argv)
    keys = [value for name, value in shown.seaweedfs.items() if "JWT" in name]
    assert [
        secret for secret in (shown.access_key, shown.secret_key, shown.redis_password, *keys) if secret in told
    ] == []
    assert stat.S_IMODE((home / "valkey" / "valkey.conf").stat().st_mode) == 0o600


def test_the_secrets_of_the_store_are_told_to_it_alone(home: Path) -> None:
    programs = started(home)
    knowing = {name for name, program in programs.items() if any("JWT" in variable for variable in program.env)}
    assert knowing == {"seaweedfs"}


@pytest.mark.parametrize("name", ["home", "with a blank", "naïve"])
def test_a_home_of_any_name_is_closed_to_others(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir(mode=0o755)
    started(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert f'dir "{home / "valkey"}"\n' in (home / "valkey" / "valkey.conf").read_text()


def test_a_relative_home_is_the_same_folder_for_every_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = started(Path("some/where"))
    assert {program.env["LAYERDRIFT_HOME"] for program in programs.values()} == {str(tmp_path / "some" / "where")}


def test_counters_of_an_earlier_run_are_gone(home: Path) -> None:
    folder = Path(started(home)["api"].env["PROMETHEUS_MULTIPROC_DIR"])
    (folder / "counter_1.db").touch()
    programs = started(home)
    assert list(folder.iterdir()) == []
    assert programs["worker"].env["PROMETHEUS_MULTIPROC_DIR"] != str(folder)


def test_the_worker_hands_its_job_back_and_lets_the_api_go_first(home: Path) -> None:
    programs = started(home)
    assert programs["worker"].stop_signal is signal.SIGQUIT
    assert programs["worker"].niceness > programs["api"].niceness == 0


@pytest.mark.parametrize("name", ["valkey", "seaweedfs", "api", "worker"])
def test_a_program_that_does_not_start_stops_the_others_and_frees_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Recorded, "fails", name)
    with pytest.raises(StartError, match=f"{name} was not ready"):
        started(home)
    assert Recorded.last.stops == 1
    monkeypatch.setattr(Recorded, "fails", "")
    started(home)


def test_an_object_store_that_refuses_is_said_before_the_api_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "refused", True)
    with pytest.raises(StartError, match="the object store cannot be used: s3://layerdrift/ cannot be read"):
        started(home, LAYERDRIFT_S3_ENDPOINT="https://s3.test")
    assert "api" not in Recorded.last.programs


def test_two_stacks_do_not_share_a_home(home: Path, tmp_path: Path) -> None:
    given = {"LAYERDRIFT_HOME": str(home)}
    with Stack(given):
        with pytest.raises(StartError, match=f"another stack is running on {home}"), Stack(given):
            pytest.fail("it has started")
        started(tmp_path / "other")
    started(home)


def test_a_port_that_is_asked_for_is_used(home: Path) -> None:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    with Stack({"LAYERDRIFT_HOME": str(home), "LAYERDRIFT_PORT": str(port)}) as running:
        assert (running.url, running.settings.port) == (f"http://{LOOPBACK}:{port}", port)


def test_a_port_that_is_asked_for_and_taken_is_an_error(home: Path, taken: int) -> None:
    with pytest.raises(StartError, match=rf"port {taken} \(LAYERDRIFT_PORT\) is taken"):
        started(home, LAYERDRIFT_PORT=str(taken))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("LAYERDRIFT_PORT", "80", "LAYERDRIFT_PORT: Input should be greater than or equal to 1024"),
        ("LAYERDRIFT_PORT", "", "LAYERDRIFT_PORT: Input should be a valid integer"),
        ("LAYERDRIFT_WORKERS", "0", "LAYERDRIFT_WORKERS: Input should be greater than or equal to 1"),
        ("LAYERDRIFT_ALLOWED_HOSTS", "http://x", "LAYERDRIFT_ALLOWED_HOSTS: .* is not a host name"),
        ("LAYERDRIFT_WEBHOOK_SECRETS", "whsec_x", "webhook_secrets.*: it must be JSON"),
        ("LAYERDRIFT_WEBHOOK_SECRETS", '{"ci": "%"}', "LAYERDRIFT_WEBHOOK_SECRETS: .*'ci' is not base64"),
    ],
)
def test_a_setting_that_is_wrong_is_named_and_nothing_started(home: Path, name: str, value: str, reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        started(home, **{name: value})
    assert Recorded.last.programs == {}


def test_the_settings_are_those_of_the_stack_and_not_of_this_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERDRIFT_S3_BUCKET", "of-this-process")
    with Stack({"LAYERDRIFT_HOME": str(home)}) as running:
        assert running.settings.s3_bucket == "layerdrift"
