"""Atomic writes, folders that belong to one run, work that may crash, and the cores for it."""

import contextlib
import fcntl
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from harness.errors import BadInput

LOCKS = []  # open files, so that each lock lives as long as this process


def atomic_write(path, write, mark="tmp", keep=None):
    """Call `write(temporary path)`, then rename: a reader finds the old file or the new, whole.

    mark  makes the temporary file's name unique where several processes write the same file
    keep  the path that the old file gets, if it is to be kept
    """
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def lock_folder(folder, name=".lock"):
    """Make a run's folder and lock it for as long as this process lives.

    name  of the file that is locked: runs with different ones may share the folder

    Raises BadInput if another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    LOCKS.append(open(folder / name, "w"))
    try:
        fcntl.lockf(LOCKS[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        remedy = "wait for it to end, or name another folder"
        raise BadInput(f"{folder}: another run is using this folder; {remedy}") from error
    except OSError:
        pass  # This file system has no locks.


@contextlib.contextmanager
def one_at_a_time(folder):
    """Wait until no other process is in this context for the same folder, then keep it waiting.

    The lock is the folder's own, so no file is left in it. Raises BadInput where there are no
    locks: there two processes could overwrite each other's changes.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            remedy = "name a folder on another file system"
            raise BadInput(f"{folder}: cannot be locked ({error.strerror}); {remedy}") from error
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def usable_cores():
    """The cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_own_process(work, path, *args):
    """Return work(path, ...), computed in another process: a decoder that crashes costs one file.

    Raises BadInput if that process dies, and whatever `work` raises.
    """
    try:
        with ProcessPoolExecutor(1, initializer=end_with_parent) as process:
            return process.submit(work, path, *args).result()
    except BrokenProcessPool as error:
        raise BadInput(f"{path}: the process that read it died") from error


def end_with_parent():
    """End this process of multiprocessing with its parent, so that a kill leaves nothing running.

    Its parent is the process that asked for it. It need not be the one that forked it: by default
    Python 3.14 has a server for that.
    """
    threading.Thread(target=wait_for_parent, daemon=True).start()


def wait_for_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
