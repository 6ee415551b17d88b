"""Which job a free worker takes: by priority, then that of the tenant who has the fewest, then the oldest.

A message in the queue says that there is a job, and names the one that was announced with it. Which one runs is decided
here, so that a tenant with a hundred jobs does not keep others waiting for all of them. There are as many messages as
jobs: the message of a job that another one has brought to a worker brings the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from layerdrift.contract.analysis import Status


def in_turn(deployment: Deployment, announced: str) -> Iterator[str]:
    """The ids of jobs that may be taken, the one whose turn it is first.

    A job that was announced because it lost its worker comes before those that wait. Others that lost theirs are left
    to their own announcements: what they were handed back for may not be over yet.
    """
    jobs, leases = deployment.jobs, deployment.leases
    found = [job for job in map(jobs.readable, jobs.open_ids()) if job is not None]
    free = [job for job in found if job.status is Status.QUEUED and not leases.held(job.id)]
    if announced not in {job.id for job in free}:
        yield announced
    running = Counter(job.tenant for job in found if job.status is Status.RUNNING)
    turns = leases.last_turns({job.tenant for job in free})

    def turn(job: JobRecord) -> tuple[object, ...]:
        return (-job.priority, running[job.tenant], turns[job.tenant], job.created_at, job.id)

    for job in sorted(free, key=turn):
        yield job.id
