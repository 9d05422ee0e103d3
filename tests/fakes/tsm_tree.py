"""configfs-tsm as the kernel behaves (drivers/virt/coco: tsm.c), mounted as a file system of its own.

mkdir makes an entry with all its files at once; writes to others are refused. `inblob` takes 1 to 64 bytes in one
write. Each write counts up `generation`; a write that would wrap it round to the one last read is EBUSY. `outblob`
makes a report when something was written since the last one, and is EINVAL before anything was; `auxblob` belongs to
the report that is cached. `generation` starts at 0 with each entry.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILES = {"inblob": 0o200, "outblob": 0o400, "auxblob": 0o400, "provider": 0o400, "generation": 0o400}


class Entry:
    """One report's configuration item."""

    def __init__(self) -> None:
        self.inblob, self.outblob, self.auxblob = b"", b"", b""
        self.written, self.read = 0, 0

    def write(self, data: bytes) -> None:
        if self.written + 1 == self.read - 1:
            raise OSError(errno.EBUSY, "would wrap")
        if not 0 < len(data) <= 64:
            raise OSError(errno.EINVAL, "size")
        self.inblob = data
        self.written += 1


class TsmTree:
    """The tree under /sys/kernel/config/tsm/report.

    Attributes:
        answer: Makes outblob and auxblob for an inblob.
        interfere: Called with the entry after each write and before each report: what others do meanwhile.
    """

    use_ns = True

    def __init__(self, answer: Callable[[bytes], tuple[bytes, bytes]], provider: str) -> None:
        self.answer, self.provider = answer, provider
        self.interfere: Callable[[str, Entry], None] = lambda _when, _entry: None
        self.entries: dict[str, Entry] = {}
        self.made = 0

    def _entry(self, path: str) -> tuple[Entry | None, str]:
        parts = path.strip("/").split("/")
        entry = self.entries.get(parts[0])
        name = parts[1] if len(parts) > 1 else ""
        shown = set(FILES) - (set() if self.provider == "sev_guest" else {"auxblob"})
        if (parts[0] and entry is None) or (name and name not in shown) or len(parts) > 2:
            raise OSError(errno.ENOENT, path)
        return entry, name

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        _, name = self._entry(path)
        return {"st_mode": stat.S_IFREG | FILES[name] if name else stat.S_IFDIR | 0o755, "st_nlink": 1, "st_size": 0}

    def readdir(self, path: str, fh: Any) -> list[str]:
        return [".", "..", *(self.entries if path == "/" else FILES)]

    def mkdir(self, path: str, mode: int) -> int:
        name = path.strip("/")
        if "/" in name:
            raise OSError(errno.EPERM, path)
        self.entries[name] = Entry()
        self.made += 1
        return 0

    def rmdir(self, path: str) -> int:
        self.entries.pop(path.strip("/"))
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
        entry, name = self._entry(path)
        if entry is None or name != "inblob":
            raise OSError(errno.EACCES, path)
        entry.write(bytes(data))
        self.interfere("written", entry)
        return len(data)

    def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
        entry, name = self._entry(path)
        assert entry is not None
        if name == "generation":
            return f"{entry.written}\n".encode()[offset : offset + size]
        if name == "provider":
            return f"{self.provider}\n".encode()[offset : offset + size]
        if name == "outblob" and offset == 0:
            self.interfere("reading", entry)
        if not entry.inblob:
            raise OSError(errno.EINVAL, "nothing asked")
        if entry.read != entry.written or not entry.outblob:
            entry.outblob, entry.auxblob = self.answer(entry.inblob)
            entry.read = entry.written
        return (entry.outblob if name == "outblob" else entry.auxblob)[offset : offset + size]

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        return 0


@contextmanager
def mounted(tree: TsmTree, place: Path) -> Iterator[Path]:
    import mfusepy  # only here: without libfuse it cannot be imported, and tests install that as they run

    served = object.__new__(type("Served", (TsmTree, mfusepy.Operations), {}))
    served.__dict__ = tree.__dict__  # one tree, so that what a test changes is what the kernel sees
    place.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"foreground": True, "nothreads": True, "direct_io": True, "raw_fi": False}
    thread = threading.Thread(target=lambda: mfusepy.FUSE(served, str(place), **options), daemon=True)
    thread.start()
    limit = time.monotonic() + 10
    while not os.path.ismount(place):
        assert thread.is_alive(), "no FUSE here"
        assert time.monotonic() < limit
        time.sleep(0.005)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
        thread.join(5)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it; libfuse leaves what ends this process
