"""Threats around commits that wait or are not answered (docs/threat-model.md, T208, T293, T294)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from tests.fakes.attest_parts import MEASUREMENT
from tests.fakes.service_parts import MANIFEST, Client, House, document, make_house, new_manifest

from strongroom.attest.binding import config_id, init_data_digest, job_init_data
from strongroom.crypto import x509
from strongroom.crypto.https import HTTPSConnection, Reply
from strongroom.errors import DeniedError, InputError, StrongroomError, UnavailableError
from strongroom.guest import session as guest_session
from strongroom.guest.session import ServiceSession
from strongroom.kms.job_document import made_from
from strongroom.storage.dataset import Head


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


def ask_for_approval(house: House) -> None:
    client = house.as_owner()
    policy = client("GET", "/v1/keys/sales/policy").json
    body = {**policy["policy"], "outputs": {"max_bytes": None, "approval": True}}
    assert client("PUT", "/v1/keys/sales/policy", {"policy": body, "revision": policy["revision"]}).status == 200


def test_T293_an_output_that_waits_stops_no_reader(house: House) -> None:
    writing, head = house.ready()
    assert house.guest(writing).attested().commit(head).status == 200
    head = house.as_owner()("GET", f"/v1/datasets/{head['dataset']}").json["head"]
    reading = document(house.owner, head["dataset"], volume={"mode": "ro"})
    house.allow(reading)
    reader = house.guest(reading).attested()
    assert reader.open(reader.resource(house.owner))
    house.allow(writing)
    ask_for_approval(house)
    writer = house.guest(writing).attested()
    assert writer.commit(head, new_manifest(2)).json == {"held": True}
    house.allow(reading)
    ask_for_approval(house)
    renewed = reader.attested()  # as at its next lease
    signed = renewed.open(renewed.resource(house.owner))["heads"][head["dataset"]]
    identity = x509.certificate_from_pem(house.service.identity_pem).public_key()
    head_type = guest_session.DATASET_HEAD_TYPE
    assert guest_session.jose.verify_jws(signed, [identity], typ=head_type)["manifest"] == MANIFEST  # type: ignore[list-item]
    house.allow(writing)
    assert house.guest(writing).attested().resource(house.owner).code == "denied"  # it would undo what waits


class Wire(HTTPSConnection):
    """The guest's connection to the service; `lost` says which answers never come."""

    __slots__ = ("client", "commits", "lost", "then")

    def __init__(self, house: House) -> None:
        super().__init__("unix:/nowhere", ssl.create_default_context())
        self.client = Client(house.guests)
        self.lost: Callable[[str], str] = lambda _path: ""
        self.then: Callable[[], object] = lambda: None
        self.commits = 0

    def exchange(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        *,
        known: bool = False,
    ) -> Reply:
        self.client.cookie, self.client.more = self.headers.get("Cookie", ""), dict(headers)
        self.commits += path.endswith("/commit")
        where = self.lost(path)
        answer = self.client(method, path, body) if where != "before" else None
        if answer is None or where:
            self.then()
            raise UnavailableError("nobody answers")
        return Reply(status=answer.status, headers=answer.headers, body=answer.raw)


@pytest.fixture
def guest(house: House, monkeypatch: pytest.MonkeyPatch) -> tuple[ServiceSession, Wire, Head]:
    monkeypatch.setattr(guest_session, "COMMIT_RETRY_S", 0.05)
    job, head = house.ready()
    identity = x509.certificate_from_pem(house.service.identity_pem)
    spki = x509.spki_id(identity.public_key())  # type: ignore[arg-type]
    init_data = job_init_data(job)
    config = config_id(init_data_digest(init_data))
    attester: Any = SimpleNamespace(
        tee="sgx",
        attest=lambda data: house.platform.evidence(report_data=data, config_id=config, measurement=MEASUREMENT),
    )
    session = ServiceSession("unix:/nowhere", house.service.identity_pem, [spki], attester, init_data)
    wire = Wire(house)
    session._connection = wire
    session.attest()
    found = session.key(house.owner, "sales").heads[head["dataset"]]
    session.inputs = {"data": found}
    return session, wire, found


def once(path: str, where: str) -> Callable[[str], str]:
    waiting = [where]
    return lambda asked: waiting.pop() if waiting and asked.endswith(path) else ""


def disable(house: House) -> None:
    assert house.as_owner()("POST", "/v1/keys/sales/versions/1/disable", {}).status == 200


@pytest.mark.parametrize("where", ["before", "after"])
def test_T294_a_refusal_after_an_unanswered_commit_ends_the_wait(
    house: House, guest: tuple[ServiceSession, Wire, Head], where: str
) -> None:
    session, wire, head = guest
    wire.lost, wire.then = once("/commit", where), lambda: disable(house)
    began = time.monotonic()
    with pytest.raises(DeniedError, match="is enabled"):
        session.commit(house.owner, head, MANIFEST, [1])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("approval", [False, True])
def test_an_unanswered_commit_is_made_or_found(
    house: House, guest: tuple[ServiceSession, Wire, Head], where: str, approval: bool
) -> None:
    session, wire, head = guest
    if approval:
        ask_for_approval(house)
    wire.lost = once("/commit", where)
    made = session.commit(house.owner, head, MANIFEST, [1])
    assert made is None if approval else made is not None and made.manifest == MANIFEST
    waiting = house.as_owner()("GET", "/v1/outputs").json["outputs"]
    assert len(waiting) == (1 if approval else 0)


def test_T294_a_service_that_forgot_the_session_is_attested_to_again(
    house: House, guest: tuple[ServiceSession, Wire, Head]
) -> None:
    session, wire, head = guest
    house.guest_api.sessions._attested.clear()
    made = session.commit(house.owner, head, MANIFEST, [1])
    assert made is not None
    assert wire.commits == 2


def test_a_service_that_stays_away_is_given_up(
    house: House, guest: tuple[ServiceSession, Wire, Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, wire, head = guest
    monkeypatch.setattr(guest_session, "COMMIT_PATIENCE_S", 0.2)
    wire.lost = lambda _path: "before"
    with pytest.raises(StrongroomError, match="nobody answers"):
        session.commit(house.owner, head, MANIFEST, [1])


def test_T297_what_a_job_read_by_a_key_at_a_kbs_is_in_the_record_of_its_commit(house: House) -> None:
    pinned = {"name": "k", "owner": "kbs+https://kbs/a/b/c", "key": "shared", "mode": "ro", "dataset": "7" * 32,
              "epoch": "3", "manifest": MANIFEST, "certificate": "pem"}  # fmt: skip
    job = document(house.owner, "1" * 32, kbs=[pinned])
    own, at_kbs = made_from(job, {"data": {"epoch": 1}}, house.owner)
    assert (own["volume"], own["epoch"]) == ("data", 1)
    assert at_kbs == {"volume": "k", "kbs": "kbs+https://kbs/a/b/c", "dataset": "7" * 32, "key": "shared", "epoch": 3,
                      "manifest": MANIFEST}  # fmt: skip
    for wrong in ({}, ["k"], [{**pinned, "epoch": "9" * 16}], [{"name": "k"}]):
        with pytest.raises(InputError, match="kbs of the job document"):
            made_from({**job, "kbs": wrong}, {"data": {}}, house.owner)
