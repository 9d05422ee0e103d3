"""IP packets between this enclave's network namespace and its peers: the interface, and what is done to packets.

The enclave has an address of its own on an interface (`job0`) whose other end is the guest. What programs send to a
peer's address leaves as packets through `Links` (peers.py) and nowhere else: there is no route out.

Source: RFC 791, RFC 9293 (resets: 3.10.7), linux/if_tun.h, netdevice(7).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator

from strongroom.errors import IntegrityError, UnavailableError

__all__ = ["MAX_PACKET", "Flows", "address", "number", "open_interface", "packets"]

NETWORK = "10.77.0."
MTU = 65_520
MAX_PACKET = 65_535

_NAME = b"job0"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8922, 0x8913, 0x8914
_IFF_UP = 1
_TCP = 6
_RST_ACK = 0x14
_MAX_FLOWS = 10_000


def address(peer: int) -> str:
    """Return the address of a peer (1 to 254; 1 is the driver)."""
    return f"{NETWORK}{peer}"


def number(raw: bytes) -> int:
    """Return the peer that owns an address of four bytes, 0 if it is none of the job's."""
    return raw[3] if raw[:3] == bytes((10, 77, 0)) else 0


def open_interface(own: str) -> int:
    """Return a descriptor of the new interface with address `own`; one read or write is one packet.

    Needs CAP_NET_ADMIN in the sandbox's own network namespace.

    Raises:
        UnavailableError: The machine has no TUN driver.
    """
    try:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", _NAME, _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, text in ((_SIOCSIFADDR, own), (_SIOCSIFNETMASK, "255.255.255.0")):
                value = struct.pack("16sH2s4s8x", _NAME, socket.AF_INET, b"", socket.inet_aton(text))
                fcntl.ioctl(control, request, value)
            fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si20x", _NAME, MTU))
            found = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH22x", _NAME, 0))
            (flags,) = struct.unpack_from("H", found, 16)
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", _NAME, flags | _IFF_UP))
    except OSError as exc:
        raise UnavailableError(
            f"the job's network cannot be made: {exc.strerror}", hint="the machine needs /dev/net/tun (modprobe tun)"
        ) from exc
    return handle


def packets(buffer: bytearray) -> Iterator[bytes]:
    """Take whole packets off the front of a stream's buffer; a zero byte between packets is a sign of life.

    Raises:
        IntegrityError: What comes is no IPv4 packet.
    """
    at = 0
    while len(buffer) - at >= 1:
        if buffer[at] == 0:
            at += 1
            continue
        if buffer[at] >> 4 != 4:
            raise IntegrityError("a peer sent something that is no IPv4 packet")
        if len(buffer) - at < 20:
            break
        size = int.from_bytes(buffer[at + 2 : at + 4], "big")
        if size < 20:
            raise IntegrityError("a peer sent a packet shorter than its header")
        if len(buffer) - at < size:
            break
        yield bytes(memoryview(buffer)[at : at + size])
        at += size
    del buffer[:at]


class Flows:
    """The TCP connections from here to peers, so that they can be reset when a peer is gone.

    Without it a connection to a lost machine would hang until its program's own timeout, minutes later.
    """

    def __init__(self) -> None:
        self._last: dict[bytes, bytes] = {}  # both addresses and ports -> acknowledged number
        self._lock = threading.Lock()

    def note(self, packet: bytes) -> None:
        """Remember an outgoing packet's connection."""
        start = (packet[0] & 15) * 4
        if packet[9] != _TCP or len(packet) < start + 20:
            return
        flow = packet[12:20] + packet[start : start + 4]
        with self._lock:
            if flow not in self._last and len(self._last) >= _MAX_FLOWS:
                del self._last[next(iter(self._last))]  # the oldest
            self._last[flow] = packet[start + 8 : start + 12]

    def resets(self, peer: int) -> list[bytes]:
        """Return a reset for each connection to `peer`, as if it came from there, and forget them."""
        with self._lock:
            gone = {flow: self._last.pop(flow) for flow in list(self._last) if flow[7] == peer}
        return [_reset(flow, acknowledged) for flow, acknowledged in gone.items()]


def reset_for(packet: bytes) -> bytes | None:
    """Return the reset that answers an outgoing TCP packet to nobody; None for anything else."""
    start = (packet[0] & 15) * 4
    if packet[9] != _TCP or len(packet) < start + 20 or packet[start + 13] & 4:
        return None
    flow, acknowledged = packet[12:20] + packet[start : start + 4], packet[start + 8 : start + 12]
    if packet[start + 13] & 2:  # a first SYN acknowledges nothing: refuse it by acknowledging the SYN itself
        sent = int.from_bytes(packet[start + 4 : start + 8], "big")
        return _reset(flow, bytes(4), ((sent + 1) & 0xFFFFFFFF).to_bytes(4, "big"))
    return _reset(flow, acknowledged)


def _reset(flow: bytes, sequence: bytes, acknowledgement: bytes = bytes(4)) -> bytes:
    own, peer, own_port, peer_port = flow[:4], flow[4:8], flow[8:10], flow[10:12]
    tcp: bytes = peer_port + own_port + sequence + acknowledgement + bytes((5 << 4, _RST_ACK)) + bytes(6)
    pseudo = peer + own + bytes((0, _TCP)) + len(tcp).to_bytes(2, "big")
    tcp = tcp[:16] + _checksum(pseudo + tcp) + tcp[18:]
    ip: bytes = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, _TCP, 0, peer, own)
    return ip[:10] + _checksum(ip) + ip[12:] + tcp


def _checksum(data: bytes) -> bytes:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
