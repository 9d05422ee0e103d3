"""The simulated quoting enclave: real-format quotes signed under a simulated PKI.

It plays the hardware, so it signs whatever it is told. Only the simulated platform may hold it, outside the sandbox
(DESIGN.md decision 7). Formats: Intel SGX ECDSA quote version 3, TDX quote version 4.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

from strongroom._encoding import labelled_hash
from strongroom.attest.simulated.collateral import (
    PCESVN,
    QE_ATTRIBUTES,
    QE_ISVPRODID,
    QE_ISVSVN,
    QE_MRSIGNER,
    SEAM_MRSIGNER,
    TCB_SVN,
    TDX_MODULE_SVN,
)
from strongroom.attest.simulated.pki import SimulatedPKI, raw_signature
from strongroom.errors import InputError

__all__ = ["SimulatedQuotingEnclave"]

# Verifiers accept quoting enclaves of this vendor alone, so the simulated one must claim it.
_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_AUTH_DATA = bytes(range(32))
_SIGNER = labelled_hash("strongroom-simulated-signer-v1", [])
_INIT, _DEBUG, _MODE64, _KSS = 0x01, 0x02, 0x04, 0x80
_XFRM = 0xE7
_SEPT_VE_DISABLE = 1 << 28


class SimulatedQuotingEnclave:
    """Signs statements about sandboxes. Holds the attestation key of `pki`."""

    def __init__(self, pki: SimulatedPKI) -> None:
        self._pki = pki

    def quote_sgx(
        self,
        *,
        measurement: bytes,
        report_data: bytes,
        config_id: bytes,
        signer: bytes = _SIGNER,
        isv_prod_id: int = 1,
        isv_svn: int = 1,
        debug: bool = False,
    ) -> bytes:
        """Return an SGX quote, version 3.

        Args:
            measurement: 32 bytes, shown as MRENCLAVE.
            report_data: 64 bytes.
            config_id: 64 bytes.
            signer: 32 bytes, shown as MRSIGNER.
            isv_prod_id: Product number.
            isv_svn: Security version of the product.
            debug: Sets the DEBUG attribute.

        Raises:
            InputError: A value has another size.
        """
        flags = _INIT | _MODE64 | _KSS | (_DEBUG if debug else 0)
        body = _sgx_body(
            attributes=flags.to_bytes(8, "little") + _XFRM.to_bytes(8, "little"),
            measurement=measurement,
            signer=signer,
            config_id=config_id,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            report_data=report_data,
        )
        return self._signed(_header(3, 0x00) + body)

    def quote_tdx(
        self,
        *,
        measurement: bytes,
        report_data: bytes,
        config_id: bytes,
        owner: bytes = bytes(48),
        rtmrs: tuple[bytes, bytes, bytes, bytes] = (bytes(48),) * 4,
        debug: bool = False,
    ) -> bytes:
        """Return a TDX quote, version 4.

        Args:
            measurement: 48 bytes, shown as MRTD.
            report_data: 64 bytes.
            config_id: 48 bytes, shown as MRCONFIGID.
            owner: 48 bytes, shown as MROWNER.
            rtmrs: Four times 48 bytes.
            debug: Sets the DEBUG attribute.

        Raises:
            InputError: A value has another size.
        """
        svn = bytes(TDX_MODULE_SVN) + bytes(TCB_SVN[2:])
        attributes = (_SEPT_VE_DISABLE | debug).to_bytes(8, "little")
        parts = (svn, bytes(48), SEAM_MRSIGNER, bytes(8), attributes, _XFRM.to_bytes(8, "little"))
        registers = (measurement, config_id, owner, bytes(48), *rtmrs)
        body = b"".join(parts) + b"".join(_sized("register", r, 48) for r in registers)
        signed = _header(4, 0x81) + body + _sized("report data", report_data, 64)
        return self._signed(signed, (6).to_bytes(2, "little") + len(self._qe_certification).to_bytes(4, "little"))

    def _signed(self, signed: bytes, before_certification: bytes = b"") -> bytes:
        signature = raw_signature(self._pki.attestation_key, signed)
        auth = signature + self._attestation_point + before_certification + self._qe_certification
        return signed + len(auth).to_bytes(4, "little") + auth

    @cached_property
    def _attestation_point(self) -> bytes:
        numbers = self._pki.attestation_key.public_key().public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    @cached_property
    def _qe_certification(self) -> bytes:
        # The quoting enclave's own report names its attestation key and is signed once, by the platform.
        bound = hashlib.sha256(self._attestation_point + _QE_AUTH_DATA).digest()
        report = _sgx_body(
            attributes=QE_ATTRIBUTES,
            measurement=hashlib.sha256(b"simulated quoting enclave").digest(),
            signer=QE_MRSIGNER,
            config_id=bytes(64),
            isv_prod_id=QE_ISVPRODID,
            isv_svn=QE_ISVSVN,
            report_data=bound + bytes(32),
        )
        chain = self._pki.pck_chain_pem()
        return (
            report
            + raw_signature(self._pki.pck_key, report)
            + len(_QE_AUTH_DATA).to_bytes(2, "little")
            + _QE_AUTH_DATA
            + (5).to_bytes(2, "little")
            + len(chain).to_bytes(4, "little")
            + chain
        )


def _sized(name: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise InputError(f"{name}: expected {size} bytes, got {len(value)}")
    return value


def _number(name: str, value: int) -> bytes:
    if not 0 <= value < 1 << 16:
        raise InputError(f"{name}: expected 0 to 65535, got {value}")
    return value.to_bytes(2, "little")


def _header(version: int, tee_type: int) -> bytes:
    svns = QE_ISVSVN.to_bytes(2, "little") + PCESVN.to_bytes(2, "little") if version == 3 else bytes(4)
    head = version.to_bytes(2, "little") + (2).to_bytes(2, "little") + tee_type.to_bytes(4, "little")
    return head + svns + _VENDOR + bytes(20)


def _sgx_body(
    *,
    attributes: bytes,
    measurement: bytes,
    signer: bytes,
    config_id: bytes,
    isv_prod_id: int,
    isv_svn: int,
    report_data: bytes,
) -> bytes:
    return b"".join(
        (
            bytes(TCB_SVN),
            bytes(4 + 12 + 16),  # MISCSELECT, reserved, ISVEXTPRODID
            _sized("attributes", attributes, 16),
            _sized("measurement", measurement, 32),
            bytes(32),
            _sized("signer", signer, 32),
            bytes(32),
            _sized("config id", config_id, 64),
            _number("isv_prod_id", isv_prod_id),
            _number("isv_svn", isv_svn),
            bytes(2 + 42 + 16),  # CONFIGSVN, reserved, ISVFAMILYID
            _sized("report data", report_data, 64),
        )
    )
