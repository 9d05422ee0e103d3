"""The service follows the rules that tests/model/release_protocol.py is proven with: random walks of its attacker."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.fakes.service_parts import Client, FakeGuest, House, document, make_house

from strongroom.attest.appraisal import policy_to_json
from strongroom.attest.binding import rcar_report_data
from strongroom.attest.handshake import tee_pubkey
from strongroom.client.policies import allowance
from strongroom.crypto import x509
from strongroom.errors import StrongroomError

CODES = [b"\xa1" * 32, b"\xb2" * 32]
KEYS = [x509.new_key() for _ in range(2)]


@dataclass
class Session:
    guest: FakeGuest
    nonce: str
    begun: float
    waiting: bool = True
    attested: bool = False
    until: float = 0.0
    key: int = 0
    code: int = 0


def _policy(house: House, job: dict[str, object], code: int | None) -> None:
    client = house.as_owner()
    revision = client("GET", "/v1/keys/sales/policy").json["revision"]
    rules = {} if code is None else policy_to_json(allowance(job, CODES[code].hex(), simulated=True))
    policy = dict.fromkeys(("read", "write"), rules) if code is not None else {}
    assert client("PUT", "/v1/keys/sales/policy", {"policy": policy, "revision": revision}).status == 200


def _jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    return tee_pubkey(key.public_key())


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5, 6, 8])
def test_T254_random_walks_end_as_the_model_says(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    house = make_house(tmp_path)
    job = document(house.owner, house.dataset()["dataset"])
    sessions: list[Session] = []
    allowed: int | None = None
    seen = {"attest": set[bool](), "release": set[bool]()}
    for _ in range(80):
        what = chance.choices(["auth", "attest", "release", "policy", "wait", "restart"], [4, 8, 8, 2, 1, 0.4])[0]
        one = chance.choice(sessions[-3:]) if sessions else None
        if what == "auth" or one is None:
            guest = house.guest(job)
            sessions.append(Session(guest, guest.auth(), house.clock.uptime_s))
        elif what == "attest":
            right, key, code = [chance.random() < 0.75 for _ in range(4)], chance.randrange(2), chance.randrange(2)
            nonce = one.nonce if right[0] else chance.choice(sessions).nonce
            quote_nonce = nonce if right[1] else chance.choice(sessions).nonce
            quote_key, signed = key if right[2] else 1 - key, right[3]
            one.guest.key, one.guest.measurement = KEYS[key], CODES[code]
            bound = rcar_report_data(quote_nonce, _jwk(KEYS[quote_key]))
            request = one.guest.request(nonce, report_data=bound)
            request["runtime-data"] = {"nonce": nonce, "tee-pubkey": _jwk(KEYS[key])}
            if not signed:
                evidence = FakeGuest(one.guest.client, job, measurement=CODES[1 - code]).platform.evidence(
                    report_data=bound, measurement=CODES[1 - code]
                )
                raw = evidence.quote.replace(CODES[1 - code], CODES[code])
                request["tee-evidence"] = {"primary_evidence": type(evidence)(tee="sgx", quote=raw).to_json()}
            expected = (
                one.waiting and house.clock.uptime_s <= one.begun + 60 and nonce == one.nonce
                and (quote_nonce, quote_key) == (nonce, key) and signed
            )  # fmt: skip
            assert (one.guest.send(request).status == 200) is expected
            seen["attest"].add(expected)
            if expected:
                one.attested, one.key, one.code, one.until = True, key, code, house.clock.uptime_s + 3600
            one.waiting = False
        elif what == "release":
            left_s = one.until - house.clock.uptime_s
            expected = one.attested and left_s >= 60 and one.code == allowed
            answer = one.guest.resource(house.owner)
            assert (answer.status == 200) is expected, answer.raw
            seen["release"].add(expected)
            if expected:
                one.guest.key = KEYS[one.key]
                assert one.guest.open(answer)["name"] == "sales"
                one.guest.key = KEYS[1 - one.key]
                with pytest.raises(StrongroomError):
                    one.guest.open(answer)
        elif what == "policy":
            allowed = chance.choice([None, 0, 1, 0, 1])
            _policy(house, job, allowed)
        elif what == "wait":
            house.clock.uptime_s += chance.choice([1, 30, 61, 3590])
        else:
            uptime_s = house.clock.uptime_s
            house = house.reopened()
            house.clock.uptime_s = uptime_s
            for session in sessions:
                session.waiting = session.attested = False
                session.guest.client = Client(house.guests, cookie=session.guest.client.cookie)
    assert seen == {"attest": {True, False}, "release": {True, False}}
    house.service.store.close()
