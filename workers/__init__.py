"""The jobs: Celery tasks, the pipeline of stages, models and texts, and the analysis itself."""
