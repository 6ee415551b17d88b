"""The environment of a process of the product."""

from __future__ import annotations

import os
import sys

from backends.settings import Settings


def environment(settings: Settings, **changes: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LAYERDRIFT_")}
    secrets = (settings.s3_access_key, settings.s3_secret_key)
    access, secret = (one.get_secret_value() if one else "" for one in secrets)
    named = {
        "LAYERDRIFT_REDIS_URL": settings.redis_url,
        "LAYERDRIFT_S3_ENDPOINT": settings.s3_endpoint or "",
        "LAYERDRIFT_S3_BUCKET": settings.s3_bucket,
        "LAYERDRIFT_S3_ACCESS_KEY": access,
        "LAYERDRIFT_S3_SECRET_KEY": secret,
        "LAYERDRIFT_HOME": str(settings.home),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return {**clean, **named, **changes}
