"""Intel's PCS (and a PCCS) and AMD's KDS on a local port: real HTTP, the real paths, headers and encodings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.snp_parts import Maker

from strongroom.attest.endorsements import Endorsements

_IDENTITY = "SGX-Enclave-Identity-Issuer-Chain"
HEADERS = {"pckcrl": "SGX-PCK-CRL-Issuer-Chain", "tcb": "TCB-Info-Issuer-Chain", "identity": _IDENTITY}


@dataclass
class Makers:
    """What the server answers from.

    Attributes:
        intel: By (tee, edition or update).
        amd: Product lines.
        busy: How many answers are 429 before it answers truly; with `retry_after` as the header.
        crl_form: der, hex or pem.
        asked: Every request.
    """

    intel: dict[tuple[str, str], Endorsements] = field(default_factory=dict)
    amd: dict[str, Maker] = field(default_factory=dict)
    busy: int = 0
    retry_after: str = ""
    crl_form: str = "der"
    broken: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, target: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(target)
        if self.busy:
            self.busy -= 1
            return 429, {"Retry-After": self.retry_after} if self.retry_after else {}, b"slow down"
        url = urlsplit(target)
        parts, query = url.path.strip("/").split("/"), dict(parse_qsl(url.query))
        if parts[0] in ("vcek", "vlek"):
            return self._amd(parts[0], parts[2], parts[3], query)
        return self._intel(parts, query)

    def _amd(self, kind: str, product: str, what: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        maker = self.amd.get(product)
        if maker is None:
            return 404, {}, b""
        middle = maker.ask if kind == "vcek" else maker.asvk
        if what == "cert_chain":
            return 200, {}, middle.public_bytes(Encoding.PEM) + maker.ark.public_bytes(Encoding.PEM)
        if what == "crl":
            return 200, {}, maker.crl()
        tcb, turin = maker.tcb, maker.tcb.fmc is not None
        levels = {"blSPL": tcb.bootloader, "teeSPL": tcb.tee, "snpSPL": tcb.snp, "ucodeSPL": tcb.microcode}
        levels |= {"fmcSPL": tcb.fmc} if turin else {}  # type: ignore[dict-item]
        if what != maker.chip[: 8 if turin else 64].hex() or query != {n: f"{v:02}" for n, v in levels.items()}:
            return 404, {}, b"no such chip"
        return 200, {}, maker.key().public_bytes(Encoding.DER)

    def _intel(self, parts: list[str], query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        tee, what = parts[0], parts[-1]
        edition = query.get("tcbEvaluationDataNumber") or query.get("update", "standard")
        found = self.intel.get((tee, edition)) or (self.intel.get((tee, "standard")) if "crl" in what else None)
        if found is None:
            return 410 if edition.isdecimal() else 404, {}, b""
        if what == "rootcacrl":
            return 200, {}, found.root_ca_crl.hex().encode()
        if what == "pckcrl":
            crl = x509.load_der_x509_crl(found.pck_crl).public_bytes(Encoding.PEM)
            body = {"der": found.pck_crl, "hex": found.pck_crl.hex().encode(), "pem": crl}[self.crl_form]
            return 200, {HEADERS[what]: quote(found.pck_crl_issuer_chain)}, body
        if what == "tcb":
            name, text, signature = "tcbInfo", found.tcb_info, found.tcb_info_signature
            chain = found.tcb_info_issuer_chain
        else:
            name, text, signature = "enclaveIdentity", found.qe_identity, found.qe_identity_signature
            chain = found.qe_identity_issuer_chain
        body = f'{{"{name}":{text},"signature":"{signature.hex()}"}}'.encode()
        return 200, {} if self.broken else {HEADERS[what]: quote(chain)}, body


@contextmanager
def serving(makers: Makers) -> Iterator[Makers]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the library's name
            status, headers, body = makers.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    makers.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield makers
    finally:
        server.shutdown()
        server.server_close()
