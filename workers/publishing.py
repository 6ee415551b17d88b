"""What a job leaves in the bucket: reports, centres, autoencoders, latents. Fine-tunes: `finetune_cache`."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import redis
import torch
from safetensors.torch import save_file

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.storage import key_names
from backends.storage.artifact_names import CENTRES, LATENTS, SAES, SCORES, sae_file
from backends.storage.artifacts import Artifacts
from backends.storage.report_cache import ReportFormat
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.report import Report
from layerdrift.render import html, markdown
from workers.results.text_scores import TextScores
from workers.stages.common.context import StageContext
from workers.stages.extract.extracted import Extracted
from workers.stages.report.stage import StoredFiles
from workers.stages.sae.files import named, save_sae
from workers.stages.sae.findings import SaeResults
from workers.stages.sae.latent_table import write_latents
from workers.stages.sae.rows import SaeRows

logger = logging.getLogger(__name__)


def keep_centres(extracted: Extracted, path: Path, artifacts: Artifacts) -> None:
    """Stores how texts were read and what drift is centred at, so that other texts can be inspected later."""
    frame, tokenization = extracted.frame, extracted.tokenization
    tensors = {"base": frame.base.contiguous(), "tuned": frame.tuned.contiguous()}
    tensors["base_spread"], tensors["tuned_spread"] = frame.spreads()
    tensors["length"] = torch.tensor(tokenization.length)
    if tokenization.inliers is not None:
        tensors |= {"base_limits": tokenization.inliers.base_limits, "tuned_limits": tokenization.inliers.tuned_limits}
    save_file(tensors, path)
    artifacts.put_named(CENTRES, path)


def keep_autoencoders(
    context: StageContext, owned: key_names.Owned, trained: SaeResults, rows: SaeRows, bucket: str, artifacts: Artifacts
) -> StoredFiles:
    """Stores the autoencoders, one after another on disk, and the table of their latents."""
    folder, on_progress = context.folder / SAES, context.on_progress
    for sae in named(trained.dictionaries):
        on_progress(1.0, f"storing the autoencoder {sae.name}")
        metadata = {"hook_name": f"hidden_states.{sae.layer}", "layerdrift": {"analysis": owned.id, "sae": sae.name}}
        save_sae(sae.stack, sae.site, folder, metadata)
        for path in sorted(folder.iterdir()):
            artifacts.put_named(sae_file(sae.name, path.name), path)
        shutil.rmtree(folder)
    latents = folder.with_suffix(".parquet")
    write_latents(latents, trained.dictionaries, rows.heldout, rows.contexts, on_progress)
    artifacts.put_named(LATENTS, latents)
    return StoredFiles(
        f"s3://{bucket}/{key_names.sae_prefix(owned)}", f"s3://{bucket}/{key_names.artifact_object(owned, LATENTS)}"
    )


def keep_scores(scores: TextScores, path: Path, artifacts: Artifacts) -> None:
    """Stores what the tuned model's metric is made of, so that other models can be compared with it."""
    path.write_bytes(scores.parquet())
    artifacts.put_named(SCORES, path)


def publish(deployment: Deployment, owned: key_names.Owned, report: Report, artifacts: Artifacts) -> None:
    """Writes the report in every format; the JSON last, since the others are drawn from it."""
    bodies = _rendered(report)
    for format, body in bodies.items():
        artifacts.put_report(format, body)
    artifacts.finish()
    for format, body in bodies.items():
        deployment.reports.put(owned, format, body)


def publish_preliminary(deployment: Deployment, record: JobRecord, report: Report) -> None:
    """Makes what is known readable while later stages run. Without Redis nobody reads it: no reason to stop."""
    drift = [layer.drift for layer in report.layers]

    def note(found: JobRecord) -> JobRecord:
        if found.status.final or found.attempts != record.attempts:
            return found
        return found.model_copy(update={"preliminary": True, "drift": drift})

    try:
        for format, body in _rendered(report).items():
            deployment.reports.put_preliminary(record.owned, format, body)
        deployment.jobs.update(record.id, note)
    except (redis.RedisError, UnavailableError) as error:
        logger.warning("%s: could not write the preliminary report: %s", record.id, error)


def _rendered(report: Report) -> dict[ReportFormat, bytes]:
    return {
        "html": html.render(report).encode(),
        "md": markdown.render(report).encode(),
        "json": report.model_dump_json(indent=1).encode(),
    }
