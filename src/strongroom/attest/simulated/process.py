"""A simulated platform for one process that it did not sandbox: the trust service. SIMULATED.

It measures Strongroom's own files and Python's version. It quotes, and gives a sealing key, for whoever holds the other
end of a socket that only the supervisor and its worker have. What the process imports beside, and the process itself,
it does not measure: a hardware enclave does. The sealing key follows from the seed, which lies on the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import strongroom
from strongroom._encoding import labelled_hash
from strongroom.attest.attesters.simulated import SimulatedAttester
from strongroom.attest.simulated.platform import load_seed, quoted, receive, send

__all__ = ["own_measurement", "simulated_platform"]

_PR_SET_PDEATHSIG = 1


def own_measurement() -> bytes:
    """Return what the simulated platform measures of this installation of Strongroom."""
    root = Path(strongroom.__file__).parent
    fields = [platform.python_version().encode()]
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        fields += [str(path.relative_to(root)).encode(), path.read_bytes()]
    return labelled_hash("strongroom-simulated-process-v1", fields)


@contextlib.contextmanager
def simulated_platform(seed: Path) -> Iterator[SimulatedAttester]:
    """Run a platform beside this process; give the attester that reaches it to one that is forked meanwhile."""
    mine, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            mine.close()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # it ends when nobody holds the other end any more
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _quote(theirs, seed)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield SimulatedAttester(mine)
    finally:
        mine.close()
        os.waitpid(child, 0)


def _quote(sock: socket.socket, seed: Path) -> None:
    from strongroom.attest.simulated.pki import SimulatedPKI  # noqa: PLC0415  # the supervisor does without
    from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave  # noqa: PLC0415

    measurement = own_measurement()  # once: files that change later are not what runs
    secret = load_seed(seed)
    enclave = SimulatedQuotingEnclave(SimulatedPKI.create(secret, now=datetime.now(UTC)))

    def quote(report_data: bytes) -> bytes:
        return enclave.quote_sgx(measurement=measurement, report_data=report_data, config_id=bytes(64))

    while (message := receive(sock)) is not None:
        if message == b"seal":
            send(sock, b"\0" + labelled_hash("strongroom-simulated-sealing-v1", [secret, measurement]))
        else:
            send(sock, quoted(message, quote))
