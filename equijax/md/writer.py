"""Files are written by a thread beside the dynamics, in the order in which the work was given."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

WAITING = 64
"""Jobs that may wait; with more the dynamics waits for the disk."""


class BackgroundWriter:
    """Runs jobs one after the other in a thread of its own.

    The first error ends the work: what was given later is not done, and `submit` and `close` raise the error. So a
    restart file given after a frame is written only when the frame was.
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="equijax-md-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Add a job; waits while the queue is full. Raises what an earlier job raised."""
        self._check()
        self._jobs.put(job)

    def flush(self) -> None:
        """Wait until everything given so far is done."""
        self._jobs.join()
        self._check()

    def close(self) -> None:
        """Finish all work and end the thread. Raises what a job raised."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        failed = False
        while (job := self._jobs.get()) is not None:
            try:
                if not failed:
                    job()
            except BaseException as error:
                failed, self._error = True, error
            finally:
                self._jobs.task_done()
        self._jobs.task_done()
