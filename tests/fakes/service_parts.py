"""A trust service without processes: real parts, real quotes under a test root, requests over ASGI."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.attest_parts import MEASUREMENT, FakeAttester, Platform

from strongroom._encoding import b64u_decode, parse_json
from strongroom.attest import ratls
from strongroom.attest.appraisal import policy_to_json
from strongroom.attest.attesters import Attester
from strongroom.attest.binding import config_id, init_data_digest, job_init_data, rcar_report_data
from strongroom.attest.handshake import COMMIT_TYPE, tee_pubkey
from strongroom.client.policies import allowance
from strongroom.crypto import jose, x509
from strongroom.service.app import PEER, guest_app, owner_app
from strongroom.service.guest_api import GuestAPI
from strongroom.service.owner_api import OwnerAPI
from strongroom.service.state import TrustService

MANIFEST = "sha256:" + "5" * 64


def new_manifest(number: int) -> str:
    return f"sha256:{number:064x}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.raw)
        assert isinstance(found, dict)
        return found

    @property
    def code(self) -> str:
        return str(self.json["title"]) if self.status >= 400 else "ok"


@dataclass
class Client:
    """Sends requests to an ASGI application as `peer`."""

    app: Any
    peer: str | None = None
    cookie: str = ""
    more: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, body: object = None, *, raw: bytes | None = None) -> Answer:
        content = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        return asyncio.run(self._send(method, path, [content]))

    def parts(self, method: str, path: str, parts: list[bytes | None]) -> Answer:
        """Send a body in parts; None is a client that stalls."""
        return asyncio.run(self._send(method, path, parts))

    async def _send(self, method: str, path: str, parts: list[bytes | None]) -> Answer:
        path, _, query = path.partition("?")
        headers = [(b"host", b"x"), *([(b"cookie", self.cookie.encode())] if self.cookie else [])]
        headers += [(name.encode(), value.encode()) for name, value in self.more.items()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "root_path": "",
            PEER: self.peer,
        }
        waiting, sent = list(parts), []

        async def receive() -> dict[str, object]:
            if not waiting:
                return {"type": "http.disconnect"}
            part = waiting.pop(0)
            if part is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
        return Answer(sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:]))


@dataclass
class Clock:
    """CLOCK_BOOTTIME in the test's hand."""

    uptime_s: float = 1000.0

    def __call__(self) -> float:
        return self.uptime_s


def document(owner: str, dataset: str, **changes: object) -> dict[str, object]:
    """Return a job document with one volume."""
    volume = {"name": "data", "dataset": dataset, "key": "sales", "owner": owner, "mode": "rw"}
    volume |= changes.pop("volume", {})  # type: ignore[arg-type,operator]
    base: dict[str, object] = {
        "name": "count",
        "program": "sha256:" + "1" * 64,
        "arguments": ["app.py", "--day", "2026-03-01"],
        "environment": {"MODE": "safe"},
        "limits": {"max_runtime_s": 3600},
        "volumes": [volume],
    }
    return {**base, **changes}


def ratls_extension(
    key: ec.EllipticCurvePrivateKey, job: dict[str, object], nonce: str, platform: Platform, **quote: object
) -> bytes:
    """Return what a guest of `job` puts into its certificate request."""
    digest = init_data_digest(job_init_data(job))
    attester = FakeAttester(platform, **{"config_id": config_id(digest), **quote})
    texts = {"strongroom-job": f"sha256:{digest.hex()}"}
    return ratls.make_extension(key.public_key(), attester, nonce=nonce.encode(), texts=texts)


@dataclass
class FakeGuest:
    """A guest on `client`; `attest` says everything right unless told otherwise."""

    client: Client
    job: dict[str, object]
    platform: Platform = field(default_factory=Platform)
    measurement: bytes = MEASUREMENT
    key: ec.EllipticCurvePrivateKey = field(default_factory=x509.new_key)
    tls_key: ec.EllipticCurvePrivateKey = field(default_factory=x509.new_key)
    nonce: str = ""

    def auth(self) -> str:
        answer = self.client("POST", "/kbs/v0/auth", {"version": "0.4.0", "tee": "sgx", "extra-params": {}})
        assert answer.status == 200, answer.raw
        self.client.cookie = answer.headers["set-cookie"].partition(";")[0]
        self.nonce = str(answer.json["nonce"])
        return self.nonce

    def request(self, nonce: str, **quote: object) -> dict[str, object]:
        init_data = job_init_data(self.job)
        pubkey = tee_pubkey(self.key.public_key(), self.tls_key.public_key())
        values: dict[str, object] = {
            "report_data": rcar_report_data(nonce, pubkey),
            "config_id": config_id(init_data_digest(init_data)),
            "measurement": self.measurement,
        }
        evidence = self.platform.evidence(**{**values, **quote}).to_json()
        return {
            "init-data": {"format": "toml", "body": init_data},
            "runtime-data": {"nonce": nonce, "tee-pubkey": pubkey},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        }

    def send(self, request: object) -> Answer:
        return self.client("POST", "/kbs/v0/attest", request)

    def attest(self, **quote: object) -> Answer:
        return self.send(self.request(self.auth(), **quote))

    def attested(self) -> FakeGuest:
        answer = self.attest()
        assert answer.status == 200, answer.raw
        return self

    def resource(self, owner: str, name: str = "sales", kind: str = "key") -> Answer:
        return self.client("GET", f"/kbs/v0/resource/{owner}/{kind}/{name}")

    def open(self, answer: Answer) -> dict[str, Any]:
        assert answer.status == 200, answer.raw
        with jose.jwe_open(answer.json, self.key) as raw:
            found = parse_json(raw, "release")
        assert isinstance(found, dict)
        return found

    def commit(self, head: dict[str, Any], manifest: str = MANIFEST, **changes: object) -> Answer:
        body = {
            "dataset": head["dataset"],
            "epoch": head["epoch"],
            "manifest": head["manifest"],
            "new_manifest": manifest,
            "versions": [1],
            "inputs": {str(v["name"]): {"epoch": head["epoch"], "manifest": head["manifest"]} for v in self._volumes()},
        }
        return self.client("POST", "/kbs/v0/strongroom/commit", self.signed({**body, **changes}))

    def signed(self, body: dict[str, object]) -> dict[str, object]:
        jwk = {k: v for k, v in jose.jwk(self.tls_key.public_key()).items() if k != "alg"}
        return {"key": jwk, "signed": jose.sign_jws(body, self.tls_key, typ=COMMIT_TYPE)}

    def _volumes(self) -> list[dict[str, object]]:
        found = self.job["volumes"]
        assert isinstance(found, list)
        return found

    def certificate(self, key: ec.EllipticCurvePrivateKey | None = None, **quote: object) -> Answer:
        key = key or self.tls_key
        return self.ask(
            key, ratls_extension(key, self.job, self.nonce, self.platform, measurement=self.measurement, **quote)
        )

    def ask(self, key: ec.EllipticCurvePrivateKey, extension: bytes | None) -> Answer:
        asked = {} if extension is None else {ratls.EXTENSION: extension}
        csr = x509.new_csr(key, "workload", asked)
        return self.client("POST", "/kbs/v0/strongroom/certificate", {"csr": csr})


@dataclass
class House:
    """One trust service with its first owner."""

    service: TrustService
    owner: str
    platform: Platform
    folder: Path
    handout: list[str]
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.guest_api = GuestAPI(self.service, uptime=self.clock)
        self.owner_api = OwnerAPI(self.service)
        self.guests = guest_app(self.service, self.guest_api)
        self.owners = owner_app(self.service, self.owner_api)

    def as_owner(self, owner: str | None = None) -> Client:
        return Client(self.owners, owner or self.owner)

    def add_owner(self, name: str) -> str:
        pem = owner_pem(name)
        answer = self.as_owner()("POST", "/v1/owners", {"name": name, "certificate": pem})
        assert answer.status == 200, answer.raw
        return str(answer.json["owner"])

    def guest(self, job: dict[str, object], **changes: Any) -> FakeGuest:
        return FakeGuest(Client(self.guests), job, **{"platform": self.platform, **changes})

    def dataset(self, key: str = "sales", owner: str | None = None) -> dict[str, Any]:
        """Create the key if needed and a data set; return its head."""
        client = self.as_owner(owner)
        client("POST", "/v1/keys", {"name": key})
        answer = client("POST", "/v1/datasets", {"key": key})
        assert answer.status == 200, answer.raw
        return dict(answer.json["head"])

    def allow(
        self, job: dict[str, object], *, uses: tuple[str, ...] = ("read", "write"), simulated: bool = True, **more: Any
    ) -> None:
        key, owner = more.get("key", "sales"), more.get("owner")
        policy = policy_to_json(allowance(job, MEASUREMENT.hex(), simulated=simulated))
        client = self.as_owner(owner)
        revision = client("GET", f"/v1/keys/{key}/policy").json["revision"]
        body = {"policy": dict.fromkeys(uses, policy), "revision": revision}
        answer = client("PUT", f"/v1/keys/{key}/policy", body)
        assert answer.status == 200, answer.raw

    def ready(self, **changes: Any) -> tuple[dict[str, object], dict[str, Any]]:
        """Return a job that is allowed to read and write one data set, and the data set's head."""
        head = self.dataset()
        job = document(self.owner, head["dataset"], **changes)
        self.allow(job)
        return job, head

    def records(self, owner: str | None = None) -> list[dict[str, Any]]:
        return list(self.as_owner(owner)("GET", "/v1/audit").json["records"])

    def decisions(self, owner: str | None = None) -> list[dict[str, Any]]:
        return [json.loads(r["record"]) for r in self.records(owner) if r["record"]]

    def endorse(self, platform: Platform | None = None, *, now: datetime | None = None, **changes: Any) -> None:
        pki = (platform or self.platform).pki
        endorsements = pki.endorsements(now or datetime.now(UTC), **changes)
        written = {"anchor": pki.anchor().to_json(), "endorsements": [endorsements.to_json()]}
        target = self.folder / "service" / "endorsements" / f"{pki.anchor().fingerprint[:8]}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(written))

    def reopened(self, credentials: list[str] | None = None, attester: Attester | None = None) -> House:
        """Return the house after a restart of its service."""
        self.service.store.close()
        service = TrustService(self.folder / "service", self.folder / "root", attester)
        if credentials is not None or not service.needs_credentials:
            service.unlock(credentials or [], now=datetime.now(UTC))
        return House(service, self.owner, self.platform, self.folder, [])


def owner_pem(name: str) -> str:
    now = datetime.now(UTC) - timedelta(minutes=1)
    return x509.certificate_pem(x509.self_signed(x509.new_key(), name, now=now, days=30, ca=False))


def make_house(
    folder: Path, *, kind: str = "keyfile", options: dict[str, str] | None = None, attester: Attester | None = None
) -> House:
    """Return a new, unlocked service (locked if its root key needs a person)."""
    platform = Platform()
    anchor = platform.pki.anchor()
    pem = owner_pem("first")
    service, handout = TrustService.create(
        folder / "service",
        folder / "root",
        kind=kind,
        options=options or {},
        owner_name="first",
        owner_pem=pem,
        anchors=[{"kind": anchor.kind, "fingerprint": anchor.fingerprint}],
        now=datetime.now(UTC),
        attester=attester,
    )
    if kind in ("keyfile", "tee"):
        service.unlock([], now=datetime.now(UTC))
    house = House(service, x509.fingerprint(x509.certificate_from_pem(pem)), platform, folder, handout)
    house.endorse()
    return house


def key_bytes(release: dict[str, Any]) -> list[bytes]:
    """Return the key material in an opened release."""
    return [b64u_decode(v) for v in release["versions"].values()]
