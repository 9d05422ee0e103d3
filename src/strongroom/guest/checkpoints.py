"""Checkpoints: what is whole of the staged volumes is sealed and committed every so often, while the program runs."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence

from strongroom.errors import StrongroomError, UnavailableError
from strongroom.guest.session import ServiceSession
from strongroom.guest.staging import StagedVolume

__all__ = ["Checkpoints"]

_log = logging.getLogger(__name__)


class Checkpoints:
    """Takes checkpoints of staged volumes until it is told to stop.

    Args:
        volumes: All of them, in the order in which they are committed.
        session: Where heads are kept.
        every_s: Seconds from the end of one to the next.
        check: Raises if the job has failed by now: nothing is committed any more.
        on_failure: Told why there can be no more; what lies on the disk is then not sure.
    """

    def __init__(
        self,
        volumes: Sequence[StagedVolume],
        session: ServiceSession,
        every_s: float,
        check: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._volumes = volumes
        self._session = session
        self._every_s = every_s
        self._check = check
        self._on_failure = on_failure
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True, name="checkpoints")

    def start(self) -> None:
        """Begin; called by the main thread."""
        # Sent when somebody waits for a file that is being sealed. A handler, unlike SIG_IGN, is not what the
        # program begins with.
        signal.signal(signal.SIGIO, lambda _number, _frame: None)
        self._thread.start()

    def stop(self) -> None:
        """Return once the last one is taken."""
        self._end.set()
        self._thread.join()

    def _take(self) -> None:
        while not self._end.wait(self._every_s):
            for staged in self._volumes:
                try:
                    staged.checkpoint(self._session, self._check)
                except UnavailableError as exc:
                    if staged.volume.undecided:
                        self._fail(exc)
                        return
                    _log.warning("volume=%s no checkpoint reason=%s", staged.volume.name, exc)
                except StrongroomError as exc:
                    self._fail(exc)
                    return
                except Exception as exc:
                    _log.error("no more checkpoints error=%s", type(exc).__name__)  # its text could hold data
                    self._on_failure(f"unexpected error in a checkpoint: {type(exc).__name__}")
                    return

    def _fail(self, exc: StrongroomError) -> None:
        self._on_failure(f"no checkpoint could be taken: {exc}")
