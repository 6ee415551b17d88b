"""Every module of the product that has functions has a test of its own name, or a reason not to."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"clients/layerdrift": "clients", "backends": "backends", "service": "service", "workers": "workers"}
PACKAGES |= {"deploy": "deploy"}

TESTED_ELSEWHERE = {
    "backends/jobs/idempotency.py": ("tests/e2e/test_api.py", "SET NX and its expiry, inside Redis"),
    "backends/jobs/leases.py": ("tests/integration/test_backends.py", "Lua scripts, inside Redis"),
    "backends/jobs/workers.py": ("tests/integration/test_backends.py", "three calls of sorted sets, inside Redis"),
    "backends/redis_connection.py": ("tests/faults/test_faults.py", "options that matter in an outage alone"),
    "backends/sources/hub.py": ("tests/integration/test_hub.py", "a real server of the Hub's protocol"),
    "backends/storage/report_cache.py": ("tests/integration/test_backends.py", "which of Redis and S3 answers"),
    "backends/retention.py": ("tests/integration/test_retention.py", "what lies in a real bucket, and how old it is"),
    "backends/sessions.py": ("tests/browser/test_sign_in.py", "keys that Redis forgets by itself"),
    "backends/usage.py": ("tests/integration/test_usage.py", "sums inside Redis, kept in a real bucket"),
    "backends/webhooks.py": ("tests/integration/test_webhooks.py", "deliveries to a real receiver"),
    "clients/layerdrift/__init__.py": (
        "tests/unit/clients/sdk/test_client.py",
        "names that are imported when first used",
    ),
    "clients/layerdrift/cli/outputs.py": ("tests/e2e/test_cli.py", "files that commands write"),
    "clients/layerdrift/cli/study_commands.py": ("tests/e2e/test_studies.py", "commands on a running service"),
    "clients/layerdrift/render/page.py": ("tests/unit/clients/render/test_html.py", "parts of a whole page"),
    "clients/layerdrift/cli/progress.py": ("tests/e2e/test_cli.py", "a terminal beside a running analysis"),
    "clients/layerdrift/integrations/mlflow.py": ("tests/e2e/test_mlflow.py", "a real registry"),
    "deploy/helm/chart.py": ("tests/integration/test_chart.py", "runs beside Helm, in an environment of its own"),
    "service/http/access.py": ("tests/integration/test_access.py", "keys and limits over HTTP"),
    "service/keys.py": ("tests/integration/test_access.py", "a command on the deployment's real stores"),
    "service/middleware/connections.py": ("tests/security/test_connections.py", "real sockets"),
    "service/middleware/trusted_hosts.py": ("tests/security/test_trusted_hosts.py", "real requests with foreign names"),
    "service/routes/sign_in.py": ("tests/browser/test_sign_in.py", "a real provider and a real browser"),
    "service/routes/studies.py": ("tests/e2e/test_studies.py", "studies over HTTP"),
    "service/routes/planning.py": ("tests/e2e/test_planning.py", "real checkpoints and data sets"),
    "workers/analysis/agreement.py": ("tests/simulations/test_agreement.py", "its coverage, simulated"),
    "workers/analysis/proportions.py": ("tests/simulations/test_proportions.py", "its coverage, simulated"),
    "workers/main.py": ("tests/faults/test_faults.py", "signals of a real Celery worker"),
    "workers/pipeline.py": ("tests/integration/test_pipeline.py", "all stages of a job, on real stores"),
    "workers/stages/causal/graft_scores.py": ("tests/unit/workers/stages/causal/test_grafting.py", "costs of grafts"),
    "workers/stages/causal/layered_grafts.py": ("tests/stages/test_layered_effects.py", "held against whole models"),
    "workers/stages/sae/layered_splicing.py": ("tests/stages/test_layered_effects.py", "held against whole models"),
    "workers/stages/learned/answers.py": ("tests/stages/test_learned.py", "tiny models with a known lesson"),
    "workers/stages/learned/benign.py": ("tests/stages/test_learned.py", "tiny models with a known lesson"),
    "workers/stages/learned/latent_findings.py": ("tests/stages/test_learned.py", "tiny models with a known lesson"),
    "workers/stages/learned/lens.py": ("tests/stages/test_learned.py", "tiny models with a known lesson"),
    "workers/stages/learned/stage.py": ("tests/stages/test_learned.py", "tiny models with a known lesson"),
    "workers/stages/learned/walk.py": ("tests/stages/test_learned.py", "tiny models with a known lesson"),
    "workers/stages/causal/stage.py": ("tests/stages/test_causal.py", "whole models, grafted and spliced"),
    "workers/stages/causal/trajectory.py": ("tests/stages/test_nulls.py", "the snapshots of a real fine-tune"),
    "workers/stages/common/training.py": ("tests/stages/test_training.py", "trainings of tiny models"),
    "workers/stages/compare/answer_outputs.py": ("tests/stages/test_answer_outputs.py", "answers of tiny models"),
    "workers/stages/compare/outputs.py": ("tests/stages/test_causal.py", "answers of tiny models"),
    "workers/stages/compare/probes.py": ("tests/stages/test_whole_comparison.py", "probes of tiny models"),
    "workers/models/adapter_blocks.py": ("tests/stages/test_layered.py", "held against merged checkpoints"),
    "workers/models/checkpoint_tensors.py": ("tests/unit/workers/models/test_blockwise.py", "read as blocks alone"),
    "workers/models/known_head.py": ("tests/stages/test_layered.py", "heads on the states of tiny models"),
    "workers/stages/common/layered_pair.py": ("tests/stages/test_layered.py", "pairs of tiny models"),
    "workers/stages/extract/extracted.py": ("tests/unit/workers/stages/extract/test_read_texts.py", "two shares"),
    "workers/stages/extract/late_outliers.py": ("tests/stages/test_layered.py", "held against whole models"),
    "workers/stages/extract/layer_walk.py": ("tests/stages/test_layered.py", "held against whole models"),
    "workers/stages/extract/rows_aside.py": ("tests/stages/test_layered.py", "held against whole models"),
    "workers/stages/sae/layered_rows.py": ("tests/stages/test_layered.py", "held against whole models"),
    "workers/stages/extract/layered.py": ("tests/stages/test_layered.py", "held against whole models"),
    "workers/stages/extract/stage.py": ("tests/stages/test_layered.py", "which of two ways is taken"),
    "workers/stages/extract/nulls.py": ("tests/stages/test_nulls.py", "nulls of tiny models"),
    "workers/stages/report/stage.py": ("tests/integration/test_pipeline.py", "all results of a job, mapped"),
    "workers/stages/sae/files.py": ("tests/integration/test_sae_lens.py", "read back by sae-lens"),
    "workers/stages/sae/findings.py": ("tests/stages/test_whole_comparison.py", "dataclasses"),
    "workers/stages/sae/rows.py": ("tests/stages/test_whole_comparison.py", "rows of tiny models"),
    "workers/stages/sae/stage.py": ("tests/stages/test_whole_comparison.py", "autoencoders of tiny models"),
    "service/backup.py": ("tests/integration/test_backup.py", "a real bucket, lost and brought back"),
    "service/routes/submitting.py": (
        "tests/unit/service/routes/test_submission.py",
        "answers of the routes that submit",
    ),
    "workers/stages/common/finished_trainings.py": (
        "tests/unit/workers/stages/sae/test_runs.py",
        "a protocol",
    ),
    "workers/finished_pairs.py": ("tests/integration/test_inspecting.py", "pairs of real analyses"),
    "workers/studies/gathering.py": ("tests/unit/workers/test_study_job.py", "reports and artifacts of members"),
    "workers/studies/shared_rows.py": ("tests/integration/test_shared_rows.py", "members of real analyses"),
    "workers/retention_sweep.py": ("tests/integration/test_retention.py", "a claim inside Redis, and real removals"),
    "workers/tasks.py": ("tests/faults/test_faults.py", "one call inside Celery"),
}
"""By module: the tests that run it, and why there is no unit test."""


def modules() -> set[str]:
    """The modules with functions; packages' `__init__.py` have none."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree)):
                found.add(str(path.relative_to(ROOT)))
    return found


def unit_test_of(module: str) -> Path:
    """Where a module's unit test is."""
    package = next(package for package in PACKAGES if module.startswith(f"{package}/"))
    inside = Path(module).relative_to(package)
    return ROOT / "tests" / "unit" / PACKAGES[package] / inside.with_name(f"test_{inside.name}")


def test_a_module_has_a_test_of_its_own_name_or_a_reason() -> None:
    without = {module for module in modules() if not unit_test_of(module).exists()}
    assert sorted(without) == sorted(TESTED_ELSEWHERE)


def test_what_stands_for_a_unit_test_is_there() -> None:
    for place, reason in TESTED_ELSEWHERE.values():
        assert (ROOT / place).exists(), place
        assert reason
