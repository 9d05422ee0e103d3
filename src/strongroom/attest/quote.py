"""Intel ECDSA quotes: the bytes of SGX versions 3 to 5 and TDX versions 4 and 5, taken apart strictly.

Nothing here is trusted or verified: parsing says what a quote claims. It runs in the guest too, so it needs only the
standard library. Source: Intel SGX ECDSA Quote Library API, appendix A, and the TDX quote formats, versions 4 and 5.

Rules:

1. Every length is checked against what is left before anything is copied; a quote has at most 64 KiB.
2. **Trailing bytes are refused, any of them, zeros too.** Some hardware services pad version 4 quotes; the attester
   that talks to such a service cuts the padding off with `trimmed` before the quote becomes evidence. Stock attesters
   do not: from TDX guests, whoever reads their messages cuts off zeros, and zeros alone (`unpadded`).
3. Only ECDSA P-256 attestation keys, versions 3 to 5, and certification data type 5 (PCK chain as PEM), from version 4
   on inside a type 6.
4. A version 5 body has the type of the header's TEE and exactly that type's size.
5. The PEM chain is canonical: 64 columns, nothing between certificates, at the end at most one newline and one NUL.
   So nothing of a statement has two forms but its signatures (ECDSA: s and n - s); no quote is known by its bytes.

Integers are little-endian. Reserved bytes are under the signature and shown, not judged.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from strongroom.errors import EvidenceError

__all__ = [
    "MAX_QUOTE_BYTES",
    "FieldRow",
    "Quote",
    "Span",
    "Spans",
    "describe",
    "parse_quote",
    "trimmed",
    "unpadded",
]

MAX_QUOTE_BYTES = 1 << 16

_TEES = {0x00: "sgx", 0x81: "tdx"}
_VERSIONS = {(3, "sgx"), (4, "sgx"), (4, "tdx"), (5, "sgx"), (5, "tdx")}
_MAX_CHAIN = 3
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)\n-----END CERTIFICATE-----(?:\n|\Z)")

# name, size in bytes, how to show it (i: integer, x: hex, -: reserved), meaning
_Layout = tuple[tuple[str, int, str, str], ...]
Span = tuple[int, int, str, str]
_HEADER_V3: _Layout = (
    ("version", 2, "i", "Version of the quote format"),
    ("attestation_key_type", 2, "i", "2 is ECDSA over P-256"),
    ("tee_type", 4, "i", "0 is SGX, 129 is TDX"),
    ("qe_svn", 2, "i", "Security version of the quoting enclave"),
    ("pce_svn", 2, "i", "Security version of the provisioning certification enclave"),
    ("qe_vendor_id", 16, "x", "Who wrote the quoting enclave; 939a7233… is Intel's"),
    ("user_data", 20, "x", "Names the platform to its owner; not judged"),
)
_HEADER_V4: _Layout = (*_HEADER_V3[:3], ("reserved", 4, "-", "Reserved"), *_HEADER_V3[5:])
_SGX_BODY: _Layout = (
    ("cpu_svn", 16, "x", "Security version of the processor and its microcode"),
    ("misc_select", 4, "x", "Extended features of the enclave"),
    ("reserved1", 12, "-", "Reserved"),
    ("isv_ext_prod_id", 16, "x", "Extended product number, chosen by the signer"),
    ("attributes", 16, "x", "Flags of the enclave; bit 1 is DEBUG: the host can read its memory"),
    ("mr_enclave", 32, "x", "Measurement: SHA-256 of how the enclave was built (MRENCLAVE)"),
    ("reserved2", 32, "-", "Reserved"),
    ("mr_signer", 32, "x", "SHA-256 of the key that signed the enclave (MRSIGNER)"),
    ("reserved3", 32, "-", "Reserved"),
    ("config_id", 64, "x", "Set at launch; here the digest of the init data, padded with zeros"),
    ("isv_prod_id", 2, "i", "Product number, chosen by the signer"),
    ("isv_svn", 2, "i", "Security version of the enclave, chosen by the signer"),
    ("config_svn", 2, "i", "Security version of the configuration"),
    ("reserved4", 42, "-", "Reserved"),
    ("isv_family_id", 16, "x", "Product family, chosen by the signer"),
    ("report_data", 64, "x", "What the enclave asked to have signed; here it binds nonce and guest key"),
)
_TDX_BODY: _Layout = (
    ("tee_tcb_svn", 16, "x", "Security versions of the TDX module and the loader"),
    ("mr_seam", 48, "x", "Measurement of the TDX module"),
    ("mr_signer_seam", 48, "x", "Signer of the TDX module; zero is Intel"),
    ("seam_attributes", 8, "x", "Flags of the TDX module"),
    ("td_attributes", 8, "x", "Flags of the trust domain; bit 0 is DEBUG: the host can read its memory"),
    ("xfam", 8, "x", "Processor features that the trust domain may use"),
    ("mr_td", 48, "x", "Measurement: SHA-384 of the trust domain's first memory, its firmware (MRTD)"),
    ("mr_config_id", 48, "x", "Set at launch; here the digest of the init data, padded with zeros"),
    ("mr_owner", 48, "x", "Owner of the trust domain, set at launch"),
    ("mr_owner_config", 48, "x", "Owner's configuration, set at launch"),
    ("rtmr0", 48, "x", "Measured while running: firmware configuration"),
    ("rtmr1", 48, "x", "Measured while running: kernel"),
    ("rtmr2", 48, "x", "Measured while running: command line and first file system"),
    ("rtmr3", 48, "x", "Measured while running: applications"),
    ("report_data", 64, "x", "What the guest asked to have signed; here it binds nonce and guest key"),
)
_TDX15_BODY: _Layout = (
    *_TDX_BODY,
    ("tee_tcb_svn2", 16, "x", "Security versions of the TDX module that runs now, after an update without restart"),
    ("mr_service_td", 48, "x", "Measurement of the service domains bound to this one; zero is none"),
)
_TDX15_EXTENDED: _Layout = (
    *_TDX15_BODY,
    ("vm_id", 1, "i", "0 is the domain itself, 1 to 3 a virtual machine inside it"),
    ("td_id", 32, "x", "This launch of the trust domain"),
    ("device_info", 48, "x", "Digest of the devices that the domain trusts"),
    ("init_service_td_hash", 48, "x", "Service domains bound when it was created"),
    ("init_service_td_attributes", 8, "x", "Their attributes"),
    ("init_cpu_svn", 16, "x", "CPUSVN when it was created"),
    ("init_tee_tcb_svn", 16, "x", "TEE_TCB_SVN when it was created"),
    ("init_tee_fmspc", 12, "x", "Platform on which it was created"),
    ("service_td_hash", 48, "x", "Service domains bound now"),
    ("service_td_attributes", 8, "x", "Their attributes"),
)
_SIGNATURE: _Layout = (
    ("signature", 64, "x", "ECDSA r and s by the attestation key over header and body"),
    ("attestation_key", 64, "x", "Public key of the quoting enclave, x and y"),
)
_LAYOUTS = {
    "header of version 3": _HEADER_V3, "header of version 4": _HEADER_V4, "sgx": _SGX_BODY, "tdx": _TDX_BODY,
    "tdx 1.5": _TDX15_BODY, "tdx 1.5 extended": _TDX15_EXTENDED, "signature": _SIGNATURE,
}  # fmt: skip
_BODIES = {1: ("sgx", "sgx"), 2: ("tdx", "tdx"), 3: ("tdx", "tdx 1.5"), 4: ("tdx", "tdx 1.5 extended")}


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldRow:
    """A line of `strongroom attest show`."""

    name: str
    offset: int
    size: int
    value: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Bytes of which every one belongs to a field. All values are claims of whoever sent them.

    Attributes:
        raw: The whole.
        version: Of the format.
        spans: Each field by name (dotted: `header.`, `body.`, `auth.` or `qe_report.` before a quote's), in order of
            offset: offset, size, kind ("i" integer, "x" bytes, "-" reserved, "t" text), and meaning in plain words.
    """

    raw: bytes
    version: int
    spans: Mapping[str, Span]

    def __getitem__(self, name: str) -> bytes:
        """Return the bytes of the field `name`, for example `body.report_data`."""
        offset, size, _, _ = self.spans[name]
        return self.raw[offset : offset + size]

    def number(self, name: str) -> int:
        """Return the little-endian integer in the field `name`."""
        return int.from_bytes(self[name], "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote(Spans):
    """A quote of version 3, 4 or 5 taken apart.

    Attributes:
        tee: "sgx" or "tdx".
        pck_chain: DER certificates: leaf, CA, root.
    """

    tee: str
    pck_chain: tuple[bytes, ...]

    @property
    def measurement(self) -> bytes:
        """MRENCLAVE (32 bytes) or MRTD (48 bytes)."""
        return self["body.mr_td" if self.tee == "tdx" else "body.mr_enclave"]

    @property
    def signer(self) -> bytes:
        """MRSIGNER (32 bytes) or MROWNER (48 bytes)."""
        return self["body.mr_owner" if self.tee == "tdx" else "body.mr_signer"]

    @property
    def config_id(self) -> bytes:
        """CONFIGID (64 bytes) or MRCONFIGID (48 bytes)."""
        return self["body.mr_config_id" if self.tee == "tdx" else "body.config_id"]

    @property
    def report_data(self) -> bytes:
        """All 64 bytes."""
        return self["body.report_data"]

    @property
    def debug(self) -> bool:
        """Whether the host can read the enclave's memory."""
        if self.tee == "tdx":
            return self["body.td_attributes"][0] != 0  # bits 0 to 7 together are TUD, untrusted
        return bool(self["body.attributes"][0] & 0x02)

    @property
    def root_der(self) -> bytes:
        """The root certificate that the quote names."""
        return self.pck_chain[-1]


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self.spans: dict[str, Span] = {}

    def take(self, name: str, size: int, kind: str, meaning: str) -> bytes:
        if size > len(self.raw) - self.at:
            raise EvidenceError(f"quote: {name} needs {size} bytes at {self.at}, got {len(self.raw) - self.at}")
        self.spans[name] = (self.at, size, kind, meaning)
        self.at += size
        return self.raw[self.at - size : self.at]

    def integer(self, name: str, size: int, meaning: str) -> int:
        return int.from_bytes(self.take(name, size, "i", meaning), "little")

    def layout(self, prefix: str, layout: str) -> None:
        spans, end = _placed(prefix, layout, self.at)
        if end > len(self.raw):
            raise EvidenceError(
                f"quote: {prefix} needs {end - self.at} bytes at {self.at}, got {len(self.raw) - self.at}"
            )
        self.spans |= spans
        self.at = end


@lru_cache(maxsize=64)  # all of them lie before the first part whose size a sender chooses
def _placed(prefix: str, layout: str, at: int) -> tuple[Mapping[str, Span], int]:
    spans = {}
    for name, size, kind, meaning in _LAYOUTS[layout]:
        spans[f"{prefix}.{name}"] = (at, size, kind, meaning)
        at += size
    return spans, at


def parse_quote(raw: bytes) -> Quote:
    """Return the fields of `raw`, every byte accounted for.

    Raises:
        EvidenceError: Another format or version, wrong lengths, or trailing bytes.
    """
    quote = _parse(raw)
    if len(quote.raw) != len(raw):
        raise EvidenceError(f"quote: {len(raw) - len(quote.raw)} trailing bytes after byte {len(quote.raw)}")
    return quote


def trimmed(raw: bytes) -> bytes:
    """Return the quote at the start of `raw` without what follows; for attesters whose hardware service pads.

    Raises:
        EvidenceError: `raw` does not start with a quote.
    """
    return _parse(raw).raw


def unpadded(raw: bytes) -> bytes:
    """Return `raw` without the zeros behind its quote; what is followed by anything else is returned as it is.

    Raises:
        EvidenceError: `raw` does not start with a quote.
    """
    quote = trimmed(raw)
    return raw if any(raw[len(quote) :]) else quote


def _parse(raw: bytes) -> Quote:
    # 1. Header: version and TEE decide the rest.
    if len(raw) > MAX_QUOTE_BYTES:
        raise EvidenceError(f"quote: {len(raw)} bytes, at most {MAX_QUOTE_BYTES} are read")
    version = int.from_bytes(raw[:2], "little")
    tee = _TEES.get(int.from_bytes(raw[4:8], "little"))
    if len(raw) < 48 or tee is None or (version, tee) not in _VERSIONS:
        raise EvidenceError(
            f"quote: version {version} for {tee or 'an unknown TEE'} in {len(raw)} bytes is not supported"
        )
    reader = _Reader(raw)
    reader.layout("header", f"header of version {min(version, 4)}")
    if (key_type := int.from_bytes(raw[2:4], "little")) != 2:
        raise EvidenceError(f"quote: expected attestation key type 2 (ECDSA P-256), got {key_type}")
    # 2. The signed body, then the length of everything after it.
    reader.layout("body", _described(reader, tee) if version == 5 else tee)
    size = reader.integer("auth.size", 4, "Size of the authentication data that follows")
    end = reader.at + size
    if end > len(raw):
        raise EvidenceError(f"quote: authentication data of {size} bytes at {reader.at}, got {len(raw) - reader.at}")
    reader.raw = raw[:end]
    # 3. Authentication data.
    reader.layout("auth", "signature")
    if version > 3:
        _nested(reader, end)
    _quoting_enclave(reader)
    chain = _certificates(reader)
    if reader.at != end:
        raise EvidenceError(f"quote: {end - reader.at} bytes left over inside the authentication data")
    return Quote(raw=raw[:end], version=version, tee=tee, spans=reader.spans, pck_chain=chain)


def _described(reader: _Reader, tee: str) -> str:
    kind = reader.integer("body.type", 2, "1 is an SGX enclave, 2 a domain of TDX 1.0, 3 of TDX 1.5, 4 extended")
    size = reader.integer("body.size", 4, "Size of the body that follows")
    named, layout = _BODIES.get(kind, ("no", "sgx"))
    expected = _placed("body", layout, 0)[1]
    if named != tee or size != expected:
        raise EvidenceError(f"quote: expected a body for {tee} of its size, got type {kind} of {size} bytes")
    return layout


def _nested(reader: _Reader, end: int) -> None:
    kind = reader.integer("auth.qe_data_type", 2, "6: the quoting enclave's report and its certification follow")
    size = reader.integer("auth.qe_data_size", 4, "Size of that data")
    if kind != 6 or size != end - reader.at:
        raise EvidenceError(
            f"quote: expected certification data type 6 of {end - reader.at} bytes, got {kind} of {size}"
        )


def _quoting_enclave(reader: _Reader) -> None:
    reader.layout("qe_report", "sgx")
    reader.take("auth.qe_report_signature", 64, "x", "ECDSA r and s by the platform's PCK key over the QE report")
    size = reader.integer("auth.qe_auth_size", 2, "Size of the quoting enclave's own data")
    reader.take("auth.qe_auth_data", size, "x", "Hashed with the attestation key into the QE report")


def _certificates(reader: _Reader) -> tuple[bytes, ...]:
    kind = reader.integer("auth.cert_type", 2, "5: the PCK certificate chain as PEM")
    size = reader.integer("auth.cert_size", 4, "Size of the chain")
    if kind != 5:
        raise EvidenceError(
            f"quote: expected certification data type 5 (PCK chain), got {kind}",
            hint="where it was quoted no PCCS gave the platform's certificate: /etc/sgx_default_qcnl.conf names one",
        )
    return _pem_chain(reader.take("auth.cert_data", size, "t", "PCK certificate, its CA and the root"))


@lru_cache(maxsize=64)  # of what strangers send, 8 MB at most
def _pem_chain(pem: bytes) -> tuple[bytes, ...]:
    text = pem.removesuffix(b"\0")
    chain: list[bytes] = []
    at = 0
    while at < len(text):
        found = _PEM.match(text, at)
        if found is None or len(chain) == _MAX_CHAIN:
            raise EvidenceError(f"quote: the PCK chain is not {_MAX_CHAIN} canonical PEM certificates")
        try:
            der = base64.b64decode(found[1].replace(b"\n", b""), validate=True)
        except ValueError as exc:
            raise EvidenceError("quote: a certificate of the PCK chain is not base64") from exc
        encoded = base64.b64encode(der)
        if b"\n".join(encoded[i : i + 64] for i in range(0, len(encoded), 64)) != found[1]:
            raise EvidenceError("quote: a certificate of the PCK chain is not canonical PEM")
        chain.append(der)
        at = found.end()
    if len(chain) != _MAX_CHAIN:
        raise EvidenceError(f"quote: expected {_MAX_CHAIN} certificates in the PCK chain, got {len(chain)}")
    return tuple(chain)


def describe(parsed: Spans) -> list[FieldRow]:
    """Return each field as text with its meaning; reserved ones only if they are not zero."""
    return [
        FieldRow(name=name, offset=offset, size=size, value=_shown(parsed[name], kind), meaning=meaning)
        for name, (offset, size, kind, meaning) in parsed.spans.items()
        if kind != "-" or any(parsed[name])
    ]


def _shown(raw: bytes, kind: str) -> str:
    if kind == "i":
        return str(int.from_bytes(raw, "little"))
    if kind == "t":
        return raw.removesuffix(b"\0").decode("ascii")  # canonical PEM, checked by the parser
    return raw.hex()
