"""Evidence from Linux's configfs-tsm: one interface for TDX and SEV-SNP guests (kernel 6.7 and later).

Each request has an entry of its own: made, written, read, removed. The kernel counts writes to it in `generation`; if
that is not one more than before, somebody else wrote in between and the request starts again with a new entry. What
comes back carries exactly the asked report data, or is not handed on.

An SEV-SNP guest's sealing key comes by /dev/sev-guest: derived from the chip's VCEK, the launch digest and the guest's
policy, so that neither other code nor the same code with debugging gets it. TDX has no such key.

Standard library only. Source: Linux, Documentation/ABI/testing/configfs-tsm-report and sysfs-driver-tdx-guest,
include/uapi/linux/sev-guest.h; AMD 56860, MSG_KEY_REQ.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from strongroom._secret import SecretBytes
from strongroom.attest.attesters import QuotingAttester
from strongroom.attest.binding import config_id
from strongroom.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from strongroom.attest.quote import trimmed
from strongroom.attest.snp import REPORT_BYTES, certificate_table, parse_report, read_table
from strongroom.errors import EvidenceError, UnavailableError

__all__ = ["TDX_REGISTERS", "TSM_REPORTS", "TsmAttester", "bind_at_runtime"]

TSM_REPORTS = Path("/sys/kernel/config/tsm/report")
TDX_REGISTERS = Path("/sys/class/misc/tdx_guest/measurements")
SEV_GUEST = Path("/dev/sev-guest")
_GET_DERIVED_KEY = 0xC0205301  # _IOWR('S', 1, 32 bytes)
_VCEK = 0b010  # KEY_SEL 1; 0 would be a VLEK if the host has loaded one, which is no chip's own
_POLICY_AND_MEASUREMENT = 0b1001
_TEES = {"tdx_guest": "tdx", "sev_guest": "snp"}
_TRIES = 8
_BUSY = {errno.EBUSY, errno.EAGAIN, errno.EINTR}


class TsmAttester(QuotingAttester):
    """Gets quotes and reports from the kernel.

    Args:
        reports: Where configfs-tsm is.
        sev_guest: SEV-SNP's device.
    """

    who = "configfs-tsm"

    def __init__(self, reports: Path = TSM_REPORTS, sev_guest: Path = SEV_GUEST) -> None:
        self._reports = reports
        self._sev_guest = sev_guest

    @property
    def tee(self) -> str:
        """The TEE of the kernel's provider.

        Raises:
            EvidenceError: A provider that is not known.
            UnavailableError: There is no configfs-tsm, or it refuses.
        """
        try:
            with self._entry() as entry:
                return _tee(entry)
        except OSError as exc:
            raise UnavailableError(f"configfs-tsm refuses: {exc.strerror}") from exc

    def sealing_key(self) -> SecretBytes:
        """Return the chip's key for this launch digest and guest policy: 32 bytes.

        Raises:
            UnavailableError: TDX, which has none; or the device or the firmware refuses.
        """
        if (tee := self.tee) != "snp":
            raise UnavailableError(f"{tee}: this TEE has no sealing key", hint="root kind shares or passphrase")
        # Root key VCEK, fields, VMPL 0, and no version mixed in: the VCEK is of one version of the firmware.
        asked = ctypes.create_string_buffer(struct.pack("<IIQIIQ", _VCEK, 0, _POLICY_AND_MEASUREMENT, 0, 0, 0), 32)
        answer = ctypes.create_string_buffer(64)
        request = bytearray(struct.pack("<B7xQQQ", 1, ctypes.addressof(asked), ctypes.addressof(answer), 0))
        try:
            with self._sev_guest.open("rb+", buffering=0) as device:
                fcntl.ioctl(device, _GET_DERIVED_KEY, request)
        except OSError as exc:
            said = f", firmware {int.from_bytes(request[24:28], 'little'):#x}" if any(request[24:]) else ""
            raise UnavailableError(f"{self._sev_guest}: derived key: {exc.strerror}{said}") from exc
        status, key = answer.raw[:4], answer.raw[32:]
        if any(status) or not any(key):
            raise UnavailableError(f"{self._sev_guest}: derived key: expected status 0, got {status.hex()}")
        return SecretBytes(key)

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        if not self._reports.is_dir():
            raise UnavailableError(
                f"there is no {self._reports}",
                hint="this takes a TDX or SEV-SNP guest with Linux 6.7 and configfs mounted at /sys/kernel/config",
            )
        entry = self._reports / f"strongroom-{os.getpid()}-{secrets.token_hex(8)}"
        entry.mkdir(mode=0o700)
        try:
            yield entry
        finally:
            with suppress(OSError):
                entry.rmdir()

    def _ask(self, report_data: bytes) -> Evidence:
        for _ in range(_TRIES):
            found = self._once(report_data)
            if found is not None:
                return found
        raise UnavailableError(f"configfs-tsm: another writer interfered {_TRIES} times")

    def _once(self, report_data: bytes) -> Evidence | None:
        try:
            with self._entry() as entry:
                before = _number(entry / "generation")
                _write(entry / "inblob", report_data)
                raw = _read(entry / "outblob")
                tee = _tee(entry)
                extra = _read(entry / "auxblob") if (entry / "auxblob").exists() else b""
                if _number(entry / "generation") != before + 1:
                    return None
        except OSError as exc:
            if exc.errno in _BUSY:
                return None
            raise UnavailableError(f"configfs-tsm refuses: {exc.strerror}") from exc
        return _evidence(tee, raw, extra)


def bind_at_runtime(digest: bytes, registers: Path = TDX_REGISTERS) -> None:
    """Measure the digest of the init data into RTMR3 if whoever launched this TDX guest set no MRCONFIGID.

    `claims.check_init_data` accepts it only if nothing else was measured there.

    Raises:
        UnavailableError: Not a TDX guest, a kernel before 6.16, or it refuses.
    """
    try:
        if not any(_read(registers / "mrconfigid")):
            _write(registers / "rtmr3:sha384", config_id(digest, 48))
    except OSError as exc:
        raise UnavailableError(
            f"RTMR3 cannot be extended: {exc.strerror}", hint="this takes a TDX guest with Linux 6.16"
        ) from exc


def _evidence(tee: str, raw: bytes, extra: bytes) -> Evidence:
    if tee == "tdx":
        return Evidence(tee=tee, quote=trimmed(raw))  # quoting services pad
    report = parse_report(raw[:REPORT_BYTES])
    # The host gives what it likes beside the report; the signer's certificate alone goes along.
    certificate = read_table(extra).get(report.signer) if extra else None
    table = certificate_table({report.signer: certificate}) if certificate else b""
    return Evidence(tee=tee, quote=report.raw + table)


def _tee(entry: Path) -> str:
    provider = _read(entry / "provider").decode("ascii", "replace").strip()
    if provider not in _TEES:
        raise EvidenceError(f"configfs-tsm: expected provider {' or '.join(_TEES)}, got {provider!r:.40}")
    return _TEES[provider]


def _number(path: Path) -> int:
    text = _read(path).strip()
    if not text.isdigit():
        raise EvidenceError(f"configfs-tsm: {path.name} is not a number")
    return int(text)


def _read(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        parts = bytearray()
        while part := file.read(MAX_EVIDENCE_BYTES):
            parts += part
            if len(parts) > MAX_EVIDENCE_BYTES:
                raise EvidenceError(f"configfs-tsm: {path.name} has over {MAX_EVIDENCE_BYTES} bytes")
    return bytes(parts)


def _write(path: Path, value: bytes) -> None:
    # One write: the kernel takes each for the whole value.
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(handle, value) != len(value):
            raise UnavailableError(f"{path.name} took only a part")
    finally:
        os.close(handle)
