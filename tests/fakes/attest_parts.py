"""Simulated TEEs for tests: real quotes under a test root, and an attester for either end of a socket."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strongroom._secret import SecretBytes
from strongroom.attest.binding import config_id, init_data_digest, job_init_data
from strongroom.attest.claims import Claims
from strongroom.attest.endorsements import Endorsements
from strongroom.attest.evidence import Evidence
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.attest.verifiers.dcap import DCAPVerifier

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MEASUREMENT = bytes.fromhex("a1" * 32)
SIGNER = bytes.fromhex("b2" * 32)
REPORT_DATA = bytes(range(64))
JOB: dict[str, object] = {"name": "count", "arguments": ["app.py", "--day", "2026-03-01"], "volumes": []}
CONFIG_ID = config_id(init_data_digest(job_init_data(JOB)))


@functools.cache
def make_pki(name: str = "one") -> SimulatedPKI:
    return SimulatedPKI.create(name.encode().ljust(32, b"."), now=NOW)


@dataclass(frozen=True)
class Platform:
    """One simulated platform with everything that a test needs of it."""

    pki: SimulatedPKI = field(default_factory=make_pki)

    @functools.cached_property
    def enclave(self) -> SimulatedQuotingEnclave:
        return SimulatedQuotingEnclave(self.pki)

    @property
    def verifier(self) -> DCAPVerifier:
        return DCAPVerifier(self.pki.anchor())

    def endorsements(self, tee: str = "sgx") -> Endorsements:
        return _endorsements(self.pki.anchor().fingerprint, tee, self)

    def quote(self, **changes: object) -> bytes:
        values: dict[str, object] = {
            "measurement": MEASUREMENT,
            "signer": SIGNER,
            "report_data": REPORT_DATA,
            "config_id": CONFIG_ID,
            "isv_prod_id": 7,
            "isv_svn": 3,
        }
        return self.enclave.quote_sgx(**{**values, **changes})  # type: ignore[arg-type]

    def quote_tdx(self, **changes: object) -> bytes:
        values: dict[str, object] = {
            "measurement": MEASUREMENT + bytes(16),
            "report_data": REPORT_DATA,
            "config_id": CONFIG_ID[:48],
        }
        return self.enclave.quote_tdx(**{**values, **changes})  # type: ignore[arg-type]

    def evidence(self, **changes: object) -> Evidence:
        return Evidence(tee="sgx", quote=self.quote(**changes))

    def claims(self, **changes: object) -> Claims:
        return self.verifier.verify(self.evidence(**changes), self.endorsements(), now=NOW)


_CACHE: dict[tuple[str, str], Endorsements] = {}


def _endorsements(fingerprint: str, tee: str, platform: Platform) -> Endorsements:
    if (fingerprint, tee) not in _CACHE:
        _CACHE[fingerprint, tee] = platform.pki.endorsements(NOW, tee=tee)
    return _CACHE[fingerprint, tee]


class FakeAttester:
    """Quotes without a platform process; passes the attester suite."""

    tee = "sgx"

    def __init__(self, platform: Platform | None = None, **changes: Any) -> None:
        self._platform, self._changes = platform or Platform(), changes

    def attest(self, report_data: bytes) -> Evidence:
        return self._platform.evidence(**{"report_data": report_data, **self._changes})

    def sealing_key(self) -> SecretBytes:
        machine = self._platform.pki.anchor().fingerprint.encode()
        return SecretBytes(hashlib.sha256(machine + self._changes.get("measurement", MEASUREMENT)).digest())


def serve_quotes(sock: socket.socket, answer: object) -> threading.Thread:
    """Answer quote requests on `sock` until it closes; `answer` maps report data to the whole response body."""

    def run() -> None:
        with contextlib.suppress(ConnectionError), sock, sock.makefile("rb") as stream:
            while len(head := stream.read(4)) == 4:
                request = stream.read(int.from_bytes(head, "big"))
                assert request == b"seal" or (request[:5] == b"quote" and len(request) == 69)
                body = answer(request[5:]) if request != b"seal" else b"\0" + b"k" * 32  # type: ignore[operator]
                sock.sendall(len(body).to_bytes(4, "big") + body)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def gramine_folder(folder: Path, answer: Callable[[bytes], bytes], key: bytes = b"k" * 16) -> Path:
    """Make a folder that behaves like Gramine's /dev/attestation: each reading of `quote` quotes what was written."""
    (folder / "attestation_type").write_text("dcap")
    (folder / "keys").mkdir()
    (folder / "keys" / "_sgx_mrenclave").write_bytes(key)
    os.mkfifo(folder / "quote")

    def serve() -> None:
        with contextlib.suppress(OSError):  # the folder is gone: the test has ended
            while True:
                with open(folder / "quote", "wb") as quote:  # waits for a reader; the next has a pipe of its own
                    os.mkfifo(folder / "next")
                    (folder / "next").rename(folder / "quote")
                    quote.write(answer((folder / "user_report_data").read_bytes()))

    threading.Thread(target=serve, daemon=True).start()
    return folder


def occlum_ioctl(answer: Callable[[bytes], bytes]) -> Callable[[int, int, bytearray], int]:
    """Return an ioctl that does what Occlum's on /dev/sgx does: its numbers, its structures, its error."""
    size = len(answer(bytes(64)))

    def ioctl(_handle: int, number: int, given: bytearray) -> int:
        if number == 0x80047307 and len(given) == 4:
            given[:] = size.to_bytes(4, "little")
        elif number == 0xC0187308 and len(given) == 24:
            report_data, length, quote = struct.unpack("<3Q", given)
            if ctypes.c_uint32.from_address(length).value < size:
                raise OSError(errno.EINVAL, "Invalid argument")
            ctypes.memmove(quote, answer(ctypes.string_at(report_data, 64)), size)
        else:
            raise OSError(errno.ENOSYS, "Function not implemented")
        return 0

    return ioctl
