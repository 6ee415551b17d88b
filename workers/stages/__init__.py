"""The stages of a job, a folder each with one entry function in `stage.py`; what several share is in `common`.

A stage is a function of a context and of what earlier stages returned. It knows nothing of the queue; it calls
`on_progress` between batches, which reports progress and stops a cancelled job.
"""
