"""The stages of a job, a module each: what it takes, what it gives, and nothing of the queue.

A stage is a function of frozen inputs; it calls `tick` between batches, which reports progress and stops a cancelled
job.
"""
