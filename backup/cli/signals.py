"""What SIGINT and SIGTERM do to a command: an exception in the main thread, that reports itself."""

from __future__ import annotations

import signal
import sys
from types import FrameType

AGAIN_SECONDS = 0.05  # long enough to be out of the callback that swallowed it


def end_silently() -> None:
    """For as long as nothing is there that could report a signal: it ends the process, with no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_in_main(terminated: type[BaseException]) -> None:
    """From now on SIGINT raises KeyboardInterrupt and SIGTERM `terminated`.

    What is raised in a callback of the interpreter, such as a finalizer, is dropped there. It is then raised
    again, by SIGALRM: a signal must not get lost.
    """
    dropped: type[BaseException] = terminated

    def on_sigterm(signum: int, frame: FrameType | None) -> None:
        raise terminated

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        raise dropped

    def on_dropped(what: sys.UnraisableHookArgs) -> None:
        nonlocal dropped
        if issubclass(what.exc_type, KeyboardInterrupt | terminated):
            dropped = what.exc_type
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        else:
            sys.__unraisablehook__(what)

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.signal(signal.SIGALRM, on_alarm)
    sys.unraisablehook = on_dropped
