"""Hold a scoring job while it is worked on, and say how to resume it if it stops."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nnbuild.errors import (
    AlreadyScoredError,
    BeingScoredError,
    InputError,
    Interrupted,
    LockedError,
    RunError,
    StoreError,
    one_line,
)
from nnbuild.runtime.signals import interrupted, request_to_stop, sigterm_as_exception
from nnbuild.scoring import claims
from nnbuild.scoring.job import Job
from nnbuild.store import locks
from nnbuild.store.commands import resume_scoring
from nnbuild.store.filesystem import as_store_error


@contextmanager
def job_context(job: Job) -> Iterator[None]:
    """Lock a job, its input and its output while the block runs.

    Invalid input, or an input or output in use, removes a new job from the store. After any other
    error, and if it was resumed, the job can be resumed.
    """
    with _locked(job), sigterm_as_exception():
        try:
            with claims.claimed(job):
                yield
        except KeyboardInterrupt as error:
            raise _to_interrupted(job, error) from error
        except MemoryError as error:
            short = RunError(
                f"not enough memory ({one_line(error) or 'no reason given'}); set batch_size or "
                "threads to a smaller number"
            )
            short.add_note(_how_to_resume(job))
            raise short from error
        except InputError as error:
            if _is_useless(job, error):
                shutil.rmtree(job.folder, ignore_errors=True)
            else:
                error.add_note(_how_to_resume(job))
            raise
        except (RunError, Interrupted) as error:
            error.add_note(_how_to_resume(job))
            raise
        except OSError as error:
            reported = as_store_error(f"work in {error.filename or job.folder}", error)
            reported.add_note(_how_to_resume(job))
            raise reported from error
        except Exception as error:
            if (request := request_to_stop(error)) is None:
                raise
            raise _to_interrupted(job, request) from error


def _is_useless(job: Job, error: InputError) -> bool:
    """Return whether a job that invalid input has ended has nothing that could be resumed."""
    if isinstance(error, StoreError) and not isinstance(error, LockedError):
        return False
    return job.is_new or isinstance(error, AlreadyScoredError)


def _to_interrupted(job: Job, error: KeyboardInterrupt) -> Interrupted:
    stopped = interrupted(error)
    if job.folder.is_dir():  # otherwise the job was committed just before
        stopped.add_note(_how_to_resume(job))
    return stopped


@contextmanager
def _locked(job: Job) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.lock(job.folder))
        except LockedError as error:
            raise BeingScoredError(str(error)) from error
        yield


def _how_to_resume(job: Job) -> str:
    return f"resume it with: {resume_scoring(job.score_id, str(job.store.root))}"
