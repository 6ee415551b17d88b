"""A real MLflow tracking server and registry on loopback, from the interpreter that `make test` installs it into."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.supervisor import Program, Supervisor

PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
START_SECONDS = 120.0
_TOKENIZER = ("tokenizer", "vocab", "special_tokens")


class MlflowServer:
    """The server, with the calls that tests prepare it by."""

    def __init__(self, home: Path) -> None:
        self.url = f"http://{LOOPBACK}:{choose({'mlflow': 0})['mlflow']}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self._home = home
        self._supervisor = Supervisor()

    def __enter__(self) -> Self:
        argv = [str(PYTHON), "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(urlsplit(self.url).port)]
        argv += ["--backend-store-uri", f"sqlite:///{self._home}/mlflow.db", "--workers", "1"]
        argv += ["--artifacts-destination", str(self._home / "artifacts")]
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
        env["MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"], env["MLFLOW_WEBHOOK_ALLOWED_SCHEMES"] = "true", "http"
        env["MLFLOW_WEBHOOK_CACHE_TTL"] = "1"  # a webhook is heard of at once, not after a minute
        env["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its own background jobs, which nothing here asks for
        self._supervisor.start(Program("mlflow", argv, env, self._home / "mlflow.log", self._ready), START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._supervisor.stop()

    def register(self, name: str, folder: Path) -> str:
        """A new version with a folder's files, served by the server; its number."""
        return self._register(name, {path.name: path for path in folder.iterdir()})

    def register_as_mlflow_logs(self, name: str, folder: Path) -> str:
        """A new version laid out as mlflow.transformers.log_model does it."""
        placed = {"MLmodel": folder / "config.json"}
        for path in folder.iterdir():
            inside = "components/tokenizer" if path.name.startswith(_TOKENIZER) else "model"
            placed[f"{inside}/{path.name}"] = path
        return self._register(name, placed)

    def register_tree(self, name: str, folder: Path) -> str:
        """A new version with all that lies in a folder and below it, served by the server; its number."""
        files = (path for path in folder.rglob("*") if path.is_file())
        return self._register(name, {path.relative_to(folder).as_posix(): path for path in files})

    def register_beside(self, name: str, folder: Path, place: Path) -> str:
        """A new version whose files lie below `place`, which the server does not serve."""
        experiment = {"name": name, "artifact_location": place.as_uri()}
        made = self.post("experiments/create", experiment)["experiment_id"]
        run = self.post("runs/create", {"experiment_id": made})["run"]["info"]
        target = Path(urlsplit(run["artifact_uri"]).path) / "model"
        target.mkdir(parents=True)
        for path in folder.iterdir():
            if path.is_file():
                shutil.copy(path, target)
        return self._version(name, run)

    def alias(self, name: str, alias: str, version: str) -> None:
        """Gives a version an alias, or moves it there."""
        self.post("registered-models/alias", {"name": name, "alias": alias, "version": version})

    def version(self, name: str, version: str) -> dict[str, Any]:
        """What the registry says of a version."""
        answer = self.client.get("/api/2.0/mlflow/model-versions/get", params={"name": name, "version": version})
        found: dict[str, Any] = answer.raise_for_status().json()["model_version"]
        return found

    def has(self, name: str) -> bool:
        """Whether there is such a model."""
        return self.client.get("/api/2.0/mlflow/registered-models/get", params={"name": name}).is_success

    def post(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """A call of MLflow's REST API."""
        answer = self.client.post(f"/api/2.0/mlflow/{call}", json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _register(self, name: str, files: dict[str, Path]) -> str:
        run = self.post("runs/create", {"experiment_id": "0"})["run"]["info"]
        root = urlsplit(run["artifact_uri"]).path.strip("/")
        for inside, path in files.items():
            put = self.client.put(
                f"/api/2.0/mlflow-artifacts/artifacts/{root}/model/{inside}", content=path.read_bytes()
            )
            assert put.is_success, put.text
        return self._version(name, run)

    def _version(self, name: str, run: dict[str, Any]) -> str:
        if not self.has(name):
            self.post("registered-models/create", {"name": name})
        source = {"name": name, "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
        return str(self.post("model-versions/create", source)["model_version"]["version"])

    def _ready(self) -> bool:
        try:
            return self.client.get("/health").is_success
        except httpx.TransportError:
            return False
