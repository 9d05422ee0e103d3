"""Everything that passes an interface of this machine, to be searched for what must not be there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["Capture", "captured"]

_EVERY_PROTOCOL = 0x0003
_SIGN = b"this-is-seen-on-the-wire"


class Capture:
    """What was seen so far."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.bytes = 0

    def add(self, packet: bytes) -> None:
        """Keep a packet."""
        self._parts.append(packet)
        self.bytes += len(packet)

    def holds(self, marker: bytes) -> bool:
        """Return whether any packet holds `marker`."""
        return any(marker in part for part in self._parts)


@contextlib.contextmanager
def captured(interface: str) -> Iterator[Capture]:
    """Capture `interface` (needs root); at the end make sure that the capture saw what was there to see."""
    found = Capture()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_EVERY_PROTOCOL)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
        raw.bind((interface, 0))
        raw.settimeout(0.2)
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    found.add(raw.recv(1 << 18))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield found
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                control.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
                control.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                control.sendto(_SIGN, ("127.0.0.1" if interface == "lo" else "255.255.255.255", 9))
            ended.wait(1)
        finally:
            ended.set()
            reader.join()
    assert found.holds(_SIGN), "the capture saw nothing"
