"""A Key Broker Service as others write it, from the protocol's text (trustee, RCAR 0.4.0): none of our service's code.

What it does not do: check a quote's signature, which is the attestation service's business and not the protocol's. It
compares report data and init data with the quote's bytes at Intel's offsets, as Trustee does.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import ssl
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe
from joserfc.jwk import ECKey
from tests.fakes.stock_evidence import report_bytes

ERRORS = "https://github.com/confidential-containers/kbs/errors"
FIELDS = {
    "sgx": (slice(368, 432), slice(240, 304), "CONFIGID"),  # header 48, then the report body
    "tdx": (slice(568, 632), slice(232, 280), "MRCONFIGID"),
    "snp": (slice(80, 144), slice(192, 224), "HOSTDATA"),
}
"""Where a quote has its report data and init data, by TEE."""


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def make_certificate(name: str) -> tuple[str, bytes]:
    """Return a self-signed certificate for a host name, as `openssl req -x509` makes it, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kbs")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(9))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), secret


Answer = tuple[int, dict[str, str], bytes]


class StockKBS:
    """Serves resources over TLS until the `with` ends.

    Attributes:
        resources: Path -> bytes.
        policy: Says of init data (text, "" if none was sent) and path whether to release.
        alter: Changes an answer before it is sent: gets path, status, headers and body.
        seal: How keys are sealed, `nonce`: what it asks with; `seen`: method, path and message of every request.
    """

    def __init__(self, folder: Path, resources: dict[str, bytes], name: str = "localhost") -> None:
        self.certificate, key = make_certificate(name)
        self.resources = resources
        self.policy: Callable[[str, str], bool] = lambda _init_data, _path: True
        self.alter: Callable[[str, Answer], Answer] = lambda _path, answer: answer
        self.seal: Callable[[dict[str, Any], bytes], Any] = seal
        self.nonce: Callable[[], str] = lambda: base64.b64encode(os.urandom(32)).decode()
        self.sessions: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[str, str, Any]] = []
        file = folder / f"kbs-{os.urandom(4).hex()}.pem"
        file.write_bytes(key + self.certificate.encode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        kbs = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self._answer("POST")

            def do_GET(self) -> None:
                self._answer("GET")

            def _answer(self, method: str) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                cookie = self.headers.get("Cookie", "")
                kbs.seen.append((method, self.path, json.loads(raw) if raw else None))
                status, headers, body = kbs.alter(self.path, kbs.answer(method, self.path, cookie, raw))
                self.send_response(status)
                for header, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass  # a client that refuses this certificate

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"kbs+https://{name}:{self.port}"

    def __enter__(self) -> StockKBS:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, cookie: str, raw: bytes) -> Answer:
        try:
            return self._answer(method, path, cookie.removeprefix("kbs-session-id="), json.loads(raw) if raw else {})
        except PermissionError as exc:
            return problem(403, "PolicyDeny", str(exc))
        except FileNotFoundError as exc:
            return problem(404, "PluginNotFound", str(exc))
        except (ValueError, KeyError) as exc:
            return problem(401, "AttestationError", f"Attestation error: {exc}")

    def _answer(self, method: str, path: str, cookie: str, message: dict[str, Any]) -> Answer:
        if (method, path) == ("POST", "/kbs/v0/auth"):
            if message["version"] != "0.4.0":
                raise ValueError(f"KBS Client Protocol Version Mismatch: expect =0.4.0 while {message['version']}")
            cookie = uuid.uuid4().hex
            self.sessions[cookie] = {"nonce": self.nonce(), "tee": message["tee"]}
            expires = "Expires=Fri, 31 Dec 2027 23:59:59 GMT"
            headers = {"Set-Cookie": f"kbs-session-id={cookie}; {expires}", "Content-Type": "application/json"}
            return 200, headers, canonical({"nonce": self.sessions[cookie]["nonce"], "extra-params": ""})
        session = self.sessions.get(cookie)
        if session is None:
            raise ValueError("session not found")
        if (method, path) == ("POST", "/kbs/v0/attest"):
            runtime = message["runtime-data"]
            if runtime["nonce"] != session["nonce"]:
                raise ValueError("the nonce in the handshake session is different")
            known = {name: runtime["tee-pubkey"][name] for name in ("kty", "crv", "alg", "x", "y")}
            additional = message["tee-evidence"]["additional_evidence"]
            bound = canonical({"tee-pubkey": known, "nonce": session["nonce"], "additional-evidence": additional})
            shown, (report_data, config_id, name) = message["tee-evidence"]["primary_evidence"], FIELDS[session["tee"]]
            if session["tee"] == "snp":
                quote = report_bytes(shown["attestation_report"])
            else:
                quote = base64.b64decode(shown["quote"], validate=True)
            if quote[report_data] != hashlib.sha384(bound).digest().ljust(64, b"\0"):
                raise ValueError("verify TEE evidence failed: REPORT_DATA is different from that in the quote")
            init_data = message["init-data"]["body"] if "init-data" in message else ""
            size = config_id.stop - config_id.start
            if init_data and quote[config_id] != hashlib.sha256(init_data.encode()).digest().ljust(size, b"\0"):
                raise ValueError(f"verify TEE evidence failed: {name} is different from that in the quote")
            session |= {"key": known, "init_data": init_data}
            return 200, {"Content-Type": "application/json"}, canonical({"token": "header.claims.signature"})
        if "key" not in session:
            raise ValueError("The session is not authorized")
        resource = path.removeprefix("/kbs/v0/resource/")
        if not self.policy(session["init_data"], resource):
            raise PermissionError("Access denied by policy")
        if resource not in self.resources:
            raise FileNotFoundError(f"Plugin resource not found: {resource}")
        return 200, {"Content-Type": "application/json"}, canonical(self.seal(session["key"], self.resources[resource]))


def problem(status: int, kind: str, detail: str) -> Answer:
    return status, {}, canonical({"type": f"{ERRORS}/{kind}", "detail": detail})


def seal(key: dict[str, Any], content: bytes, alg: str = "ECDH-ES+A256KW", enc: str = "A256GCM") -> Any:
    """Return a flattened JWE whose ephemeral key is in the protected header, as Trustee writes it."""
    receiver = ECKey.import_key({name: value for name, value in key.items() if name != "alg"})
    compact = jwe.encrypt_compact({"alg": alg, "enc": enc}, content, receiver, algorithms=[alg, enc])
    return dict(zip(("protected", "encrypted_key", "iv", "ciphertext", "tag"), compact.split("."), strict=True))
