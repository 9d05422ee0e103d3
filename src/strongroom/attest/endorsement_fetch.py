"""Clients of the makers' services: Intel's PCS and PCCS, version 4, and AMD's KDS. For owners, never for verification.

What they answer is not believed for coming from there: each part is signed under the maker's root and is verified when
it is used. TLS only keeps others from serving old parts, so plain HTTP is for this machine alone.

Source: Intel PCS API v4; PCCS design guide; AMD 57230 (KDS).
"""

from __future__ import annotations

import binascii
import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlencode, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.endorsement_snp import SNPEndorsements
from strongroom.attest.endorsements import Endorsements
from strongroom.attest.snp import SNPReport
from strongroom.attest.verifiers.chip_keys import key_of
from strongroom.crypto.tls import web_context
from strongroom.crypto.x509 import UNREADABLE
from strongroom.errors import EndorsementError, InputError, UnavailableError

__all__ = ["AMD_KDS", "INTEL_PCS", "MakerService", "fetch_intel", "fetch_snp"]

INTEL_PCS = "https://api.trustedservices.intel.com"
AMD_KDS = "https://kdsintf.amd.com"
_INTEL_ROOT_CRL = "https://certificates.trustedservices.intel.com"
_MAX_BYTES = 4 << 20
_TRIES = 6
_LONGEST_WAIT_S = 60.0
_RETRIED = {429, 500, 502, 503, 504}


@dataclass(slots=True)
class MakerService:
    """A maker's web service, asked politely: a request that is told to wait waits.

    Attributes:
        base: `https://host[:port]`; `http://` for this machine alone.
        ca_pem: What its TLS certificate is under; "" for the system's store.
        sleep: Waits.
    """

    base: str
    ca_pem: str = ""
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def get(self, path: str, query: Mapping[str, str] | None = None, *, encoding: str = "") -> tuple[bytes, str]:
        """Return the body at `path`, and the certificate chain in the header `encoding` as PEM.

        Raises:
            InputError: `base` is not an address, or plain HTTP to another machine.
            EndorsementError: The service has no such thing, or answers with something else.
            UnavailableError: Nobody answers, or only that it is busy.
        """
        target = path + (f"?{urlencode(query)}" if query else "")
        for attempt in range(_TRIES):
            status, headers, body = self._exchange(target)
            if status not in _RETRIED:
                break
            if attempt + 1 < _TRIES:
                self.sleep(_wait(headers.get("retry-after", ""), attempt))
        else:
            raise UnavailableError(f"{self.base}{path} answers {status} again and again", hint="try again later")
        if status != 200:
            known = {404: "has no such thing", 410: "no longer serves this edition", 461: "knows no such platform"}
            raise EndorsementError(f"{self.base}{target} {known.get(status, 'refuses')}: status {status}")
        if not encoding:
            return body, ""
        chain = unquote(headers.get(encoding.lower(), ""))
        if "BEGIN CERTIFICATE" not in chain:
            raise EndorsementError(f"{self.base}{path}: expected a certificate chain in the header {encoding}")
        return body, chain

    def _exchange(self, target: str) -> tuple[int, dict[str, str], bytes]:
        try:
            url = urlsplit(self.base)
            port = url.port
        except ValueError as exc:
            raise InputError(f"{self.base!r} is not the https:// address of a service: {exc}") from exc
        local = url.hostname in ("127.0.0.1", "::1", "localhost")
        if url.scheme not in ("https", "http") or not url.hostname or (url.scheme == "http" and not local):
            raise InputError(f"{self.base!r} is not the https:// address of a service")
        if url.scheme == "https":
            context = web_context(self.ca_pem)
            connection = http.client.HTTPSConnection(url.hostname, port, timeout=30, context=context)
        else:
            connection = http.client.HTTPConnection(url.hostname, port, timeout=30)  # type: ignore[assignment]
        try:
            connection.request("GET", url.path.rstrip("/") + target, headers={"Accept-Encoding": "identity"})
            answer = connection.getresponse()
            body = answer.read(_MAX_BYTES + 1)
            if answer.length or len(body) > _MAX_BYTES:
                raise EndorsementError(f"{self.base}{target}: the answer is cut off, or over {_MAX_BYTES} bytes")
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body
        except (OSError, http.client.HTTPException) as exc:
            raise UnavailableError(
                f"{self.base} does not answer: {exc}", hint="check the address, or import a bundle fetched elsewhere"
            ) from exc
        finally:
            connection.close()


def fetch_intel(
    service: MakerService,
    *,
    tee: Literal["sgx", "tdx"],
    fmspc: str,
    ca: Literal["processor", "platform"],
    update: Literal["early", "standard"] = "standard",
    edition: int | None = None,
) -> Endorsements:
    """Return the endorsements of a platform family from PCS or a PCCS.

    Args:
        service: `INTEL_PCS`, or a PCCS.
        tee: Of the quotes to be verified.
        fmspc: 12 hex digits.
        ca: Who issued the platforms' certificates.
        update: `early` for TCB info at the moment of a recovery, `standard` once platforms could follow.
        edition: A `tcbEvaluationDataNumber` instead of `update`.

    Raises:
        EndorsementError: The service has none, or answers with something else.
        UnavailableError: Nobody answers.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{12}", fmspc):
        raise InputError(f"an FMSPC has 12 hex digits, got {fmspc!r:.40}")
    at = f"/{tee}/certification/v4"
    which = {"update": update} if edition is None else {"tcbEvaluationDataNumber": str(edition)}
    crl, crl_chain = service.get(
        "/sgx/certification/v4/pckcrl", {"ca": ca, "encoding": "der"}, encoding="SGX-PCK-CRL-Issuer-Chain"
    )
    tcb, tcb_chain = service.get(f"{at}/tcb", {"fmspc": fmspc.upper(), **which}, encoding="TCB-Info-Issuer-Chain")
    identity, chain = service.get(f"{at}/qe/identity", which, encoding="SGX-Enclave-Identity-Issuer-Chain")
    if service.base.rstrip("/") == INTEL_PCS:
        root_crl, _ = MakerService(_INTEL_ROOT_CRL, sleep=service.sleep).get("/IntelSGXRootCA.der")
    else:
        root_crl, _ = service.get("/sgx/certification/v4/rootcacrl")
    tcb_info, tcb_signature = _signed("tcbInfo", tcb)
    qe_identity, qe_signature = _signed("enclaveIdentity", identity)
    return Endorsements(
        pck_crl_issuer_chain=crl_chain,
        root_ca_crl=_crl("root_ca_crl", root_crl),
        pck_crl=_crl("pck_crl", crl),
        tcb_info_issuer_chain=tcb_chain,
        tcb_info=tcb_info,
        tcb_info_signature=tcb_signature,
        qe_identity_issuer_chain=chain,
        qe_identity=qe_identity,
        qe_identity_signature=qe_signature,
    )


def fetch_snp(
    service: MakerService, report: SNPReport, product: str, known: SNPEndorsements | None = None
) -> SNPEndorsements:
    """Return the endorsements for `report` from KDS; certificates of chips in `known` are kept, not asked for again.

    Args:
        service: `AMD_KDS`, or a cache of it.
        report: Of the machine.
        product: Milan, Genoa or Turin.
        known: What was fetched before for the same line and kind of key.

    Raises:
        EndorsementError: The service has none, or a VLEK is wanted: only the cloud provider has those.
        UnavailableError: Nobody answers.
    """
    at = f"/{report.signer}/v1/{product}"
    pem, _ = service.get(f"{at}/cert_chain")
    try:
        ask, ark = (c.public_bytes(Encoding.DER) for c in x509.load_pem_x509_certificates(pem))
    except UNREADABLE as exc:
        raise EndorsementError(f"{service.base}{at}/cert_chain is not two certificates in PEM") from exc
    crl = _crl("crl", service.get(f"{at}/crl")[0])
    keys = known.keys if known is not None and known.ark == ark else ()
    if report.certificate or key_of(report, keys):
        return SNPEndorsements(ask=ask, ark=ark, crl=crl, keys=keys)  # the chip's certificate is asked for once
    if report.signer == "vlek":
        raise EndorsementError("the report is signed by a VLEK and brings none along: only the provider has it")
    tcb = report.tcb("reported_tcb")
    levels = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
    if tcb.fmc is not None:
        levels = {"fmcSPL": tcb.fmc, **levels}
    chip = report["chip_id"][: 8 if report.turin else 64].hex()
    found, _ = service.get(f"{at}/{chip}", {name: f"{level:02}" for name, level in levels.items()})
    return SNPEndorsements(ask=ask, ark=ark, crl=crl, keys=(*keys, found))


def _wait(asked: str, attempt: int) -> float:
    seconds = float(asked) if asked.isascii() and asked.isdecimal() else 2.0**attempt
    return min(seconds, _LONGEST_WAIT_S)


def _signed(name: str, body: bytes) -> tuple[str, bytes]:
    # The signature is over the document's own bytes, so they are cut out and not written anew.
    try:
        text = body.decode("ascii")
        document = json.loads(text)
        start = re.match(rf'\s*\{{\s*"{name}"\s*:\s*', text)
        if start is None or set(document) != {name, "signature"}:
            raise ValueError(name)
        end = json.JSONDecoder().raw_decode(text, start.end())[1]
        return text[start.end() : end], binascii.unhexlify(document["signature"])
    except (ValueError, TypeError, RecursionError) as exc:
        raise EndorsementError(f"the service's answer is not a signed {name}") from exc


def _crl(name: str, raw: bytes) -> bytes:
    # PCS answers DER, a PCCS DER or its hex, both PEM if they do not know the parameter.
    try:
        if raw[:1] == b"\x30" and raw[1:2] >= b"\x80":
            crl = x509.load_der_x509_crl(raw)
        elif b"BEGIN X509 CRL" in raw:
            crl = x509.load_pem_x509_crl(raw)
        else:
            crl = x509.load_der_x509_crl(binascii.unhexlify(raw.strip().strip(b'"')))
        return crl.public_bytes(Encoding.DER)
    except UNREADABLE as exc:
        raise EndorsementError(f"the service's answer for {name} is not a revocation list") from exc
