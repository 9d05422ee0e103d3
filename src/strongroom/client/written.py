"""Files of the protocol `sealed` while they are written: when is one whole, and when is it to be forgotten?

Rules:
    1. Whoever closes it says that it is whole, whatever became of threads that wrote it. A write that failed, a `with`
       of its own that ended by an error, and a finalizer say that it is not.
    2. Closed while an error is raised or handled that was not when it was opened, it is not kept, and that error is
       raised again, with a note: the `with` of a library that has it open does not say how its block ended.
    3. Threads take turns, and a forked process writes nothing: two would seal two chunks under one nonce.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from strongroom.errors import InputError
from strongroom.storage.changes import NewFile

__all__ = ["TextFile", "WrittenFile"]

_log = logging.getLogger(__name__)


class WrittenFile(io.BufferedIOBase):
    """A file that is being written: committed by `close`, forgotten if its writer fails or drops it.

    Args:
        file: What is written.
        folder: Of its data set.
        commit: Makes the whole file part of the data set; None if somebody else does, later.
    """

    def __init__(self, file: NewFile, folder: str, commit: Callable[[], None] | None) -> None:
        self.file, self.folder, self.failed = file, folder, False
        self.name = f"{folder}/{file.path}"
        self._commit, self._dropped = commit, False
        self._turn, self._process = threading.Lock(), os.getpid()
        self._handled = sys.exception()

    def write(self, data: Any, /) -> int:
        """Seal all of `data` and return its length."""
        if self._process != os.getpid():
            raise InputError(f"{self.name} is written by another process", hint="open a file of its own")
        with self._turn:
            if self.closed:
                raise ValueError("write to a closed file")
            try:
                return self.file.write(data)
            except BaseException:
                self.failed = True
                raise

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.file.size

    def writable(self) -> bool:
        """Return True: file-like."""
        return True

    def close(self) -> None:
        """Seal the rest and commit, or see the rules of this module."""
        if self._process != os.getpid():
            super().close()
            return
        with self._turn:
            if self.closed:
                return
            super().close()
        failing, before = sys.exception(), self._handled
        self._handled = None  # no cycle
        failing = None if failing is before else failing
        gone = self._dropped or _is_finalized()
        if not (self.failed or failing or gone):
            try:
                self.file.close()
            except BaseException:  # a full disk: its transaction must not take it for whole
                self.drop()
                raise
            if self._commit is not None:
                self._commit()
            return
        self.drop()
        if gone:
            return
        if failing is None:
            raise InputError(f"{self.name} is not kept: a write to it failed", hint="write it anew")
        # It is on its way through here, or handled by somebody who closes a good file: nobody can tell. Raised again it
        # stops both from going on as if the file were there, and is no other error to the first.
        failing.add_note(f"{self.name} is not kept: it was closed while this was raised or handled")
        raise failing

    def drop(self) -> None:
        """Discard it, and say so."""
        _log.warning("%s is not kept: its writer failed or dropped it", self.name)
        self.discard()

    def discard(self) -> None:
        """Leave nothing of it, unless it is committed."""
        self.failed = True
        super().close()
        if self._process == os.getpid():
            self.file.discard()

    def _dealloc_warn(self, _wrapper: object) -> None:
        # What Python's text and buffered wrappers call when nobody closed them, just before they close what is below.
        self._dropped = True

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if kind is not None:
            self.drop()
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_handled") and not self.closed:
            self.drop()


class TextFile(io.TextIOWrapper):
    """Text in a file; if that is a `WrittenFile`, it is told how a `with` block ended."""

    def __exit__(self, kind: object, *_failure: object) -> None:
        if kind is not None and isinstance(self.buffer, WrittenFile):
            self.buffer.drop()
        self.close()


def _is_finalized() -> bool:
    # Nobody closed it, but the finalizer of what wrote it does (PyArrow's Parquet writer): only the stack says so.
    frame = sys._getframe(1)
    while frame.f_code.co_name != "__del__" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_name == "__del__"
