"""The Helm chart: rendered by Helm, held against the schemas of what it writes and against the product's code."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from backends.settings import Settings
from service.app import build_server
from service.routes import health
from tests.builders.service import ServiceDeployment, api
from workers.main import COLD_SHUTDOWN_SECONDS

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "layerdrift"
PYTHON = ROOT / ".venv-chart" / "bin" / "python"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())

OUTSIDE: dict[str, Any] = {
    "redis": {"existingSecret": {"name": "stores"}},
    "s3": {"bucket": "layerdrift", "existingSecret": {"name": "stores"}},
    "adminKey": {"existingSecret": {"name": "key"}},
}
EVERYTHING: dict[str, Any] = {
    "redis": {"url": "redis://redis.example:6379/0"},
    "s3": {
        "bucket": "layerdrift",
        "endpoint": "https://s3.example",
        "publicEndpoint": "https://s3.example.com",
        "workloadIdentity": True,
    },
    "adminKey": {"existingSecret": {"name": "key"}},
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/layerdrift"}},
    "images": {"registry": "registry.example/team", "pullSecrets": ["pull"], "service": {"tag": "1.2.3"}},
    "models": {"existingClaim": "models"},
    "settings": {"LEASE_SECONDS": 60, "READABLE_BUCKETS": "models,public/data/"},
    "extraEnv": [{"name": "LAYERDRIFT_HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "api": {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "tolerations": [{"operator": "Exists"}]},
    "cpuWorkers": {"scaling": {"enabled": True}, "scratch": {"storageClass": "fast"}},
    "gpuWorkers": {"enabled": True, "device": {"class": "gpu.nvidia.com"}},
    "ingress": {"enabled": True, "className": "nginx", "host": "layerdrift.example", "tls": {"secretName": "tls"}},
    "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}, "runbookUrl": "https://docs.example/runbook"},
}
PLUGIN = OUTSIDE | {"gpuWorkers": {"enabled": True, "device": {"resource": "nvidia.com/gpu", "count": 2}}}
SETS = {
    "outside": OUTSIDE,
    "everything": EVERYTHING,
    "trial": {"trial": {"enabled": True}},
    "device plugin": PLUGIN,
    "fixed gpu workers": PLUGIN | {"gpuWorkers": PLUGIN["gpuWorkers"] | {"scaling": {"enabled": False}}},
    "one api, no inspect": OUTSIDE | {"api": {"replicas": 1}, "inspect": {"enabled": False}},
}


def asked(*questions: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers of deploy/helm/chart.py."""
    assert PYTHON.exists(), "Helm is not installed: make .venv-chart/.installed"
    done = subprocess.run(
        [PYTHON, ROOT / "deploy" / "helm" / "chart.py"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    return dict(zip(SETS, asked(*({"values": values} for values in SETS.values())), strict=True))


def objects(rendered: dict[str, dict[str, Any]], name: str, *kinds: str) -> list[dict[str, Any]]:
    return [one for one in rendered[name]["documents"] if not kinds or one["kind"] in kinds]


def pods(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of the workload, and its pod's template."""
    for one in found:
        template = one.get("spec", {}).get("jobTargetRef", one.get("spec", {})).get("template")
        if template:
            yield one["metadata"]["name"], template


@pytest.mark.parametrize("name", SETS)
def test_what_is_rendered_is_what_kubernetes_keda_and_prometheus_take(
    rendered: dict[str, dict[str, Any]], name: str
) -> None:
    assert "refusal" not in rendered[name], rendered[name]
    assert rendered[name]["errors"] == []
    assert len(objects(rendered, name)) >= 9


def test_every_template_is_rendered_by_one_of_these(rendered: dict[str, dict[str, Any]]) -> None:
    there = {file.name for file in (CHART / "templates").iterdir()} - {"_helpers.tpl", "validate.yaml"}
    made = {Path(file).name for one in rendered.values() for file, text in one["files"].items() if text.strip()}
    assert made == there


def test_a_field_that_a_kind_does_not_have_is_found(rendered: dict[str, dict[str, Any]]) -> None:
    (worker,) = [one for one in objects(rendered, "everything", "ScaledJob") if "gpu" in one["metadata"]["name"]]
    (service,) = objects(rendered, "trial", "ConfigMap")
    (monitor,) = objects(rendered, "everything", "ServiceMonitor")
    worker = worker | {"spec": worker["spec"] | {"maxReplicas": 3}}
    service = service | {"datum": {}}
    monitor = monitor | {"spec": monitor["spec"] | {"endpoints": [{"prot": "http"}]}}
    errors = asked({"documents": [worker, service, monitor]})[0]["errors"]
    assert [error.split(" ")[0] for error in errors] == ["ScaledJob", "ConfigMap", "ServiceMonitor"]
    assert "maxReplicas" in errors[0]


REFUSED = {
    "no Redis: set redis.url": {},
    "no S3: set s3.bucket": OUTSIDE | {"s3": {}},
    "no credentials for S3": OUTSIDE | {"s3": {"bucket": "layerdrift"}},
    "no API key: set adminKey.existingSecret.name": OUTSIDE | {"adminKey": {}},
    "needs serviceAccount.annotations": OUTSIDE | {"s3": {"bucket": "layerdrift", "workloadIdentity": True}},
    "s3.workloadIdentity and s3.existingSecret.name are both set": OUTSIDE
    | {"s3": OUTSIDE["s3"] | {"workloadIdentity": True}, "serviceAccount": {"annotations": {"a": "b"}}},
    "redis.url and redis.existingSecret.name are both set": OUTSIDE
    | {"redis": OUTSIDE["redis"] | {"url": "redis://redis:6379/0"}},
    "redis.url has a password": OUTSIDE | {"redis": {"url": "rediss://:secret@redis:6379/0"}},
    "trial.enabled brings its own Redis and S3": OUTSIDE | {"trial": {"enabled": True}},
    "no workers: enable cpuWorkers or gpuWorkers": OUTSIDE | {"cpuWorkers": {"enabled": False}},
    "gpuWorkers have no device: set gpuWorkers.device.resource": OUTSIDE | {"gpuWorkers": {"enabled": True}},
    "gpuWorkers.device.resource and gpuWorkers.device.class are both set": OUTSIDE
    | {"gpuWorkers": {"enabled": True, "device": {"resource": "nvidia.com/gpu", "class": "gpu.nvidia.com"}}},
    "ingress.enabled needs ingress.host": OUTSIDE | {"ingress": {"enabled": True}},
    "ingress.tls needs secretName": OUTSIDE | {"ingress": {"enabled": True, "host": "layerdrift.example"}},
    "additional properties 'gpuWorker' not allowed": OUTSIDE | {"gpuWorker": {}},
    "invalid propertyName 'LEASE'": OUTSIDE | {"settings": {"LEASE": 60}},
    "invalid propertyName 'HF_TOKEN'": OUTSIDE | {"settings": {"HF_TOKEN": "hf_secret"}},
    "'/api/replicas': minimum": OUTSIDE | {"api": {"replicas": 0}},
}


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    answers = asked(*({"values": values} for values in REFUSED.values()))
    return {said: answer.get("refusal", "") for said, answer in zip(REFUSED, answers, strict=True)}


@pytest.mark.parametrize("said", REFUSED)
def test_values_that_cannot_work_are_refused_with_a_sentence(refusals: dict[str, str], said: str) -> None:
    assert said in refusals[said]


def test_the_plain_manifests_are_those_of_the_chart() -> None:
    assert asked({})[0]["manifests"] == (ROOT / "deploy" / "kubernetes" / "layerdrift.yaml").read_text(), (
        "make manifests writes them"
    )


@pytest.mark.parametrize("name", SETS)
def test_images_are_those_that_are_built_and_those_of_compose(rendered: dict[str, dict[str, Any]], name: str) -> None:
    targets = set(re.findall(r" AS (\w+)$", DOCKERFILE, re.MULTILINE))
    stores = {service["image"] for service in COMPOSE["services"].values() if "image" in service}
    for _, template in pods(objects(rendered, name)):
        for container in template["spec"]["containers"]:
            image = container["image"]
            repository, _, tag = image.rpartition(":")
            target = repository.rpartition("/")[2].removeprefix("layerdrift-").removesuffix("-cuda")
            assert image in stores or (target in targets and tag), image


@pytest.mark.parametrize("name", SETS)
def test_variables_are_settings_and_commands_modules(rendered: dict[str, dict[str, Any]], name: str) -> None:
    known = {f"LAYERDRIFT_{field.upper()}" for field in Settings.model_fields}
    known |= {"LAYERDRIFT_DEVICES", "PROMETHEUS_MULTIPROC_DIR", "HOME"}
    known |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET"}  # SeaweedFS'
    maps = [one["data"] for one in objects(rendered, name, "ConfigMap") if one["metadata"]["name"].endswith("settings")]
    named = set(maps[0])
    for _, template in pods(objects(rendered, name)):
        for container in template["spec"]["containers"]:
            named |= {variable["name"] for variable in container.get("env", ())}
            command = container.get("command", ())
            if command[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(command[2]) is not None
    assert named <= known
    read = {variable.removeprefix("LAYERDRIFT_").lower(): value for variable, value in maps[0].items()}
    assert Settings.model_validate({name: value for name, value in read.items() if name in Settings.model_fields})


def test_settings_that_may_be_chosen_are_all_that_no_value_sets_and_no_secret() -> None:
    secret = {name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    ours = "HOST PORT HOME REDIS_URL S3_ENDPOINT S3_PUBLIC_ENDPOINT S3_REGION S3_BUCKET MODEL_ROOTS SCALED_QUEUES"
    ours += " IDLE_SECONDS METRICS_PORT INSTANCE WORKERS PUBLIC_URL"
    chosen = {name.upper() for name in Settings.model_fields} - set(ours.split()) - secret
    assert set(SCHEMA["properties"]["settings"]["propertyNames"]["enum"]) == chosen


@pytest.mark.parametrize("name", SETS)
def test_nobody_is_root_and_nothing_is_written_but_to_volumes(rendered: dict[str, dict[str, Any]], name: str) -> None:
    found = dict(pods(objects(rendered, name)))
    assert len(found) >= 3
    for workload, template in found.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], workload
        volumes = {volume["name"] for volume in spec["volumes"]} | {"data"}
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounted.values()) <= volumes
            assert "/tmp" in mounted
            assert {"/data", "/var/lib/layerdrift"} & set(mounted)
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", SETS)
def test_what_selects_pods_finds_some_and_ports_are_theirs(rendered: dict[str, dict[str, Any]], name: str) -> None:
    labels = {workload: template["metadata"]["labels"] for workload, template in pods(objects(rendered, name))}
    ports = {
        workload: {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", ())}
        for workload, template in pods(objects(rendered, name))
    }
    for one in objects(rendered, name, "Service", "PodDisruptionBudget", "Deployment", "StatefulSet", "ServiceMonitor"):
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        chosen = {workload for workload, has in labels.items() if wanted.items() <= has.items()}
        assert len(chosen) == 1, one["metadata"]["name"]
        if one["kind"] == "Service":
            assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports[chosen.pop()]
    components = {has["app.kubernetes.io/component"] for has in labels.values()}
    for one in objects(rendered, name, "NetworkPolicy", "PodMonitor"):
        selector = one["spec"].get("podSelector") or one["spec"]["selector"]
        for expression in selector.get("matchExpressions", ()):
            assert components & set(expression["values"]), one["metadata"]["name"]
    for workload, template in pods(objects(rendered, name)):
        for container in template["spec"]["containers"]:
            numbers = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
            variables = {entry["name"]: entry.get("value") for entry in container.get("env", ())}
            assert numbers.get("http", 8000) == Settings.model_fields["port"].default
            assert str(numbers.get("metrics", 9100)) == variables.get("LAYERDRIFT_METRICS_PORT", "9100"), workload


def test_probes_and_the_ingress_name_routes_that_there_are(
    rendered: dict[str, dict[str, Any]], settings: Settings
) -> None:
    app = build_server(settings).app
    routes = {route.path for route in [*app.state.served, *app.routes] if hasattr(route, "path")}
    for workload, template in pods(objects(rendered, "everything")):
        (container,) = template["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asks = container.get(probe, {}).get("httpGet")
            assert asks is None or asks["path"] in routes, workload
    (ingress,) = objects(rendered, "everything", "Ingress")
    paths = {path["path"]: path["pathType"] for path in ingress["spec"]["rules"][0]["http"]["paths"]}
    hidden = {route for route in routes if not reached(route, paths)}
    assert {route for route in hidden if not route.startswith("/litserve")} == {"/metrics", "/metrics/queues"}
    for path in paths:
        assert any(route == path or route.startswith(path + "/") for route in routes), path


def reached(route: str, paths: dict[str, str]) -> bool:
    """Whether an ingress with these paths lets a route through."""
    return any(
        route == path or (kind == "Prefix" and route.startswith(path.rstrip("/") + "/")) for path, kind in paths.items()
    )


def test_workers_are_scaled_by_what_the_api_tells(rendered: dict[str, dict[str, Any]]) -> None:
    deployment = ServiceDeployment()
    deployment.queue.ahead = 7
    http: TestClient = api(deployment, health.router)
    scaled = {one["metadata"]["name"]: one["spec"] for one in objects(rendered, "everything", "ScaledJob")}
    assert set(scaled) == {"team-layerdrift-cpu-worker", "team-layerdrift-gpu-worker"}
    services = {one["metadata"]["name"] for one in objects(rendered, "everything", "Service")}
    for name, expected in (("cpu", 7), ("gpu", 0)):
        (trigger,) = scaled[f"team-layerdrift-{name}-worker"]["triggers"]
        asks = trigger["metadata"]
        found = re.fullmatch(r"http://([a-z-]+)\.ml\.svc:8000(/.+)", asks["url"])
        assert found is not None
        assert found[1] in services
        value = http.get(found[2]).json()
        for part in asks["valueLocation"].split("."):
            value = value[part]
        assert value == expected
    (settings,) = [
        one["data"]
        for one in objects(rendered, "everything", "ConfigMap")
        if one["metadata"]["name"].endswith("settings")
    ]
    assert settings["LAYERDRIFT_SCALED_QUEUES"] == "gpu,cpu"
    for _, template in pods(objects(rendered, "everything", "ScaledJob")):
        names = {entry["name"] for entry in template["spec"]["containers"][0]["env"]}
        assert "LAYERDRIFT_IDLE_SECONDS" in names
        assert template["spec"]["restartPolicy"] == "Never"


def test_fixed_workers_never_end_by_themselves(rendered: dict[str, dict[str, Any]]) -> None:
    for name in ("outside", "fixed gpu workers"):
        assert objects(rendered, name, "ScaledJob") == []
        for _, template in pods(objects(rendered, name)):
            names = {entry["name"] for entry in template["spec"]["containers"][0]["env"]}
            assert "LAYERDRIFT_IDLE_SECONDS" not in names


def test_gpu_workers_ask_for_their_device(rendered: dict[str, dict[str, Any]]) -> None:
    found = dict(pods(objects(rendered, "device plugin")))["team-layerdrift-gpu-worker"]["spec"]
    assert found["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    claimed = dict(pods(objects(rendered, "everything")))["team-layerdrift-gpu-worker"]["spec"]
    assert claimed["containers"][0]["resources"]["claims"] == [{"name": claimed["resourceClaims"][0]["name"]}]
    (template,) = objects(rendered, "everything", "ResourceClaimTemplate")
    assert template["metadata"]["name"] == claimed["resourceClaims"][0]["resourceClaimTemplateName"]


def test_a_stopped_worker_has_the_time_to_hand_its_job_back(rendered: dict[str, dict[str, Any]]) -> None:
    assert "STOPSIGNAL SIGQUIT" in DOCKERFILE.split(" AS worker")[1]
    for name, template in pods(objects(rendered, "everything")):
        if name.endswith("-worker"):
            assert template["spec"]["terminationGracePeriodSeconds"] > 2 * COLD_SHUTDOWN_SECONDS


def test_alerts_and_the_dashboard_come_with_the_chart_and_lead_to_the_runbook(
    rendered: dict[str, dict[str, Any]],
) -> None:
    (rules,) = objects(rendered, "everything", "PrometheusRule")
    kept = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    named = [rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert named == [rule["alert"] for group in kept["groups"] for rule in group["rules"]]
    for rule in rules["spec"]["groups"][0]["rules"]:
        assert rule["annotations"]["runbook_url"].startswith("https://docs.example/runbook#")
    (dashboard,) = [one for one in objects(rendered, "everything", "ConfigMap") if "layerdrift.json" in one["data"]]
    assert json.loads(dashboard["data"]["layerdrift.json"])["panels"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
