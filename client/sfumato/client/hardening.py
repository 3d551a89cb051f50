"""What a process that holds a secret asks of the kernel (Linux, prctl(2))."""

import ctypes
import signal

from sfumato.common.errors import Insecure

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


def protect_memory() -> None:
    """No core dumps, and no equal may trace us or read our /proc entries. Raises Insecure if that fails.

    Holds until the next exec: children ask for themselves.
    """
    _prctl(PR_SET_DUMPABLE, 0)


def end_with_launcher() -> None:
    """SIGTERM when the thread that started us ends. Raises Insecure if that fails."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None or prctl(option, value, 0, 0, 0) != 0:
        raise Insecure("the process could not protect its memory (prctl)", hint="A branch runs on Linux.")
