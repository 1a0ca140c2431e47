"""Run jobs in the application's event loop."""

from __future__ import annotations

from collections.abc import Callable

import qt

from .job import Job

INTERVAL_MS = 20


class JobRunner:
    """Polls jobs with a timer while any is running.

    Attributes:
        onWarning: called with the warnings of the jobs that have no receiver of their own.
    """

    def __init__(self) -> None:
        self.onWarning: Callable[[str, str], None] = lambda text, about: None
        self._jobs: list[Job] = []
        self._timer = qt.QTimer()
        self._timer.interval = INTERVAL_MS
        self._timer.connect("timeout()", self.poll)

    def run(self, job: Job) -> None:
        """Start a job and poll it until it ends."""
        self._jobs.append(job)
        if job.onWarning is None:
            job.onWarning = self.onWarning
        job.start()
        self._timer.start()

    def poll(self) -> None:
        """Poll every job once."""
        for job in list(self._jobs):
            job.poll()
        self._jobs = [job for job in self._jobs if job.running]
        if not self._jobs:
            self._timer.stop()

    @property
    def running(self) -> bool:
        """Whether any job is running."""
        return any(job.running for job in self._jobs)

    def isBusy(self, excluding: Job | None = None) -> bool:
        """Whether any job other than ``excluding`` is running."""
        return any(job.running for job in self._jobs if job is not excluding)

    def cleanup(self) -> None:
        """Cancel all jobs and stop the timer."""
        for job in self._jobs:
            job.cancel()
        self._jobs = []
        self._timer.stop()
        self._timer.disconnect("timeout()", self.poll)
