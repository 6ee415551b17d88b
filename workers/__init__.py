"""Runs the jobs: Celery tasks, the pipeline of stages, models, and the analysis itself."""

import os

# Idle threads of OpenMP sleep after some microseconds rather than milliseconds: a spinning one takes the core that the
# others work on wherever anything else runs on the machine. Read when torch is loaded, so it stands before all imports.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
