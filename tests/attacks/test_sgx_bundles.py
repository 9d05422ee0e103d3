"""One test per threat to enclaves built for SGX (T220 to T229, T274, T275, T325, T326, T377, T378, T390)."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.fakes.attest_parts import JOB, NOW, REPORT_DATA, FakeAttester, Platform, gramine_folder, occlum_ioctl
from tests.fakes.gramine_schema import refusals
from tests.fakes.occlum_schema import bom_files, refusals_of_bom

from strongroom._secret import SecretBytes
from strongroom.attest import ratls
from strongroom.attest.attesters.gramine import GramineAttester
from strongroom.attest.attesters.occlum import OcclumAttester
from strongroom.attest.binding import init_data_digest, job_init_data
from strongroom.attest.claims import check_init_data, check_report_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.handshake import AttestRequest, tee_pubkey
from strongroom.attest.sigstruct import Sigstruct
from strongroom.cli.requests import _job
from strongroom.crypto.keys import StaticKeyRing
from strongroom.errors import EvidenceError, InputError, UnavailableError, VerificationError
from strongroom.guest import libos
from strongroom.guest.document import LeftEvidence, Report
from strongroom.guest.main import attempt
from strongroom.guest.session import Grant
from strongroom.jobs.enclaves.gramine import _measurement, render_manifest
from strongroom.jobs.enclaves.libos import Needs, check_job, place_files
from strongroom.jobs.enclaves.occlum import render_bom, render_occlum
from strongroom.jobs.plan import LaunchPlan, plan_job
from strongroom.jobs.registry import WORKLOADS
from strongroom.jobs.spec import JobSpec, Sandbox, Sgx, Volume

SIZE = Needs(size_mb=2048, threads=32, stack_mb=2, parts={"LibOS": 64, "scratch": 512})
DIGEST = "5f" * 32


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    (tmp_path / "app.py").write_text("print(1)")
    spec = JobSpec(
        name="j",
        workload="python",
        program=tmp_path / "app.py",
        enclave="gramine",
        arguments=("{{ 7 * 7 }}",),
        environment={"LD_DEBUG": "{% raw %}"},
        sandbox=Sandbox(network=True),
    )
    return plan_job(spec, WORKLOADS, ("sha256:" + "1" * 64,))


def test_T220_a_signature_says_another_enclave(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=3, key_size=3072)
    fields = Sigstruct(
        measurement=b"\1" * 32, attributes=b"\4" + bytes(15), attribute_mask=b"\xff" * 16, signed_on=date(2026, 1, 1)
    )
    signed = fields.signed(key, on=date(2026, 1, 1))
    debug = {"attributes": b"\6" + bytes(15)}
    for change in ({"measurement": b"\2" * 32}, {"svn": 9}, debug, {"attribute_mask": bytes(16)}):
        altered = replace(signed, **change)  # type: ignore[arg-type]
        with pytest.raises(VerificationError, match="the signature does not hold"):
            Sigstruct.from_bytes(altered.to_bytes()).verify()


def test_T390_a_signature_of_another_enclave_comes_back_as_a_bundles_own(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=3, key_size=3072)
    fields = Sigstruct(
        measurement=b"\1" * 32, attributes=b"\4" + bytes(15), attribute_mask=b"\xff" * 16, signed_on=date(2026, 1, 1)
    )
    place = tmp_path / "job.sig"
    for change, reason in (
        ({"attributes": b"\6" + bytes(15)}, "debug: expected False, got True"),
        ({"svn": 1}, "svn: expected 2, got 1"),
        ({"product": 3}, "product: expected 0, got 3"),
    ):
        other = replace(fields, **{"svn": 2, **change})  # type: ignore[arg-type]
        place.write_bytes(other.signed(key, on=date(2026, 1, 1)).to_bytes())
        with pytest.raises(InputError, match=f"job.sig is of another enclave: {reason}$"):
            _measurement(place, Sgx(svn=2))
    place.write_bytes(replace(fields, svn=2).signed(key, on=date(2026, 1, 1)).to_bytes())
    assert _measurement(place, Sgx(svn=2)) == "01" * 32


def test_T221_the_host_says_nothing_to_the_program(plan: LaunchPlan) -> None:
    manifest = tomllib.loads(render_manifest(plan, SIZE, {"app/app.py": DIGEST}))
    loader = manifest["loader"]
    assert "insecure__use_cmdline_argv" not in loader
    assert "insecure__use_host_env" not in loader
    assert all(isinstance(value, str) for value in loader["env"].values())  # none is passed through
    assert loader["log_level"] == "error"
    assert manifest["sgx"]["allowed_files"] == ["file:launch/", "file:sealed/"]  # an address, and sealed bytes
    settings = json.loads(render_occlum(plan, SIZE))
    # Occlum takes a path and arguments from the host: what lies there takes no arguments.
    assert settings["entry_points"] == ["/strongroom/bin"]
    assert settings["env"]["untrusted"] == []
    metadata = settings["metadata"]
    assert (metadata["debuggable"], metadata["disable_log"], metadata["enable_kss"]) == (False, True, False)
    (_, layer) = settings["mount"][0]["options"]["layers"]
    assert layer["options"] == {"temporary": True}  # else whoever has the signer's key fills it before the start


NAMES = [
    "opt/env/{{ ''.__class__.__mro__ }}.py", "opt/env/{% include 'shadow' %}", "opt/env/{# #}",
    'opt/env/a", sha256 = "b', "opt/env/back\\slash", "opt/env/\U0001f512.py", "opt/env/é ", "opt/env/#x: y",
]  # fmt: skip


def test_T222_a_file_of_a_package_is_called_like_a_template(plan: LaunchPlan) -> None:
    text = render_manifest(plan, SIZE, dict.fromkeys(NAMES, DIGEST))
    assert re.findall(r"\{[{%#][^}]*\}\}?", text) == ["{{ gramine.runtimedir() }}"] * 2
    assert refusals(text) == []
    listed = tomllib.loads(text)["sgx"]["trusted_files"][1:]
    assert {item["uri"] for item in listed} == {f"file:root/{name}" for name in NAMES}
    bom = render_bom(dict.fromkeys(NAMES, DIGEST))
    assert refusals_of_bom(bom) == []
    assert bom_files(bom) == {f"/{name}": DIGEST for name in NAMES}
    with pytest.raises(InputError, match="expands variables"):
        render_bom({"opt/env/${HOME}": DIGEST})


@pytest.mark.parametrize("name", ["/opt/env/a\nb", "/opt/env/\x1b[2J", "/opt/env/\udcff", "/opt/env/\x7f"])
def test_T222_names_that_no_list_can_carry(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no measured file may have in its name"):
        place_files(tmp_path / "root", {name: tmp_path / "file"}, {})


def test_T223_gramine_quotes_other_report_data(tmp_path: Path) -> None:
    attester = GramineAttester(gramine_folder(tmp_path, lambda _data: Platform().quote(report_data=bytes(64))))
    with pytest.raises(EvidenceError, match="the quote carries other report data"):
        attester.attest(b"\1" * 64)


def test_T223_gramine_without_a_quoting_service(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="attestation_type"):
        GramineAttester(tmp_path).attest(bytes(64))
    (tmp_path / "attestation_type").write_text("none")
    with pytest.raises(UnavailableError, match="expected dcap, got none"):
        GramineAttester(tmp_path).attest(bytes(64))
    for junk in (b"", b"junk", bytes(1 << 17)):
        (tmp_path / "attestation_type").write_text("dcap")
        (tmp_path / "quote").write_bytes(junk)
        with pytest.raises(EvidenceError):
            GramineAttester(tmp_path).attest(bytes(64))


def test_T224_another_job_than_the_one_in_the_manifest() -> None:
    text, other = job_init_data(JOB), job_init_data({**JOB, "name": "steal"})
    said = "sha256:" + init_data_digest(text).hex()
    gramine = Platform().claims(config_id=bytes(64))  # Gramine leaves it zero: the measured guest says the job
    assert "job.json" in check_init_data(gramine, text, said)
    for claims, given, words in (
        (gramine, other, said),  # the host swaps the document
        (gramine, text, None),  # a guest that says nothing, under a config id that the host chose
        (Platform().claims(), other, "sha256:" + init_data_digest(other).hex()),  # says one, is bound to another
        # Not for other TEEs: there the host chooses what is measured.
        (replace(gramine, tee="tdx", rtmrs=(bytes(48),) * 4), text, said),
    ):
        with pytest.raises(VerificationError, match="init data: "):
            check_init_data(claims, given, words)


def test_T224_what_the_guest_says_is_under_the_report_data() -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    said = tee_pubkey(key, None, "sha256:" + "1" * 64)
    requests = [
        AttestRequest(nonce="n" * 16, tee_pubkey=jwk, evidence={})
        for jwk in (said, {**said, "x-init-data": "sha256:" + "2" * 64}, tee_pubkey(key))
    ]
    assert len({r.report_data() for r in requests}) == 3
    assert requests[0].tee_key().init_data == "sha256:" + "1" * 64
    with pytest.raises(InputError, match="x-init-data is not sha256"):
        replace(requests[0], tee_pubkey={**said, "x-init-data": "1" * 64}).tee_key()


def test_T225_results_of_tasks_over_loopback(tmp_path: Path) -> None:
    (tmp_path / "app.jar").write_bytes(b"PK")
    off = {"spark.master": "local[2]", "spark.authenticate": "false", "spark.network.crypto.enabled": "false"}
    spec = JobSpec(name="j", workload="spark", program=tmp_path / "app.jar", engine=off, enclave="gramine")
    argv = plan_job(spec, WORKLOADS, ("sha256:" + "1" * 64,)).command.argv
    assert [word for word in argv if word.startswith(("spark.authenticate", "spark.network.crypto"))] == [
        "spark.authenticate=true",
        "spark.network.crypto.cipher=AES/GCM/NoPadding",
        "spark.network.crypto.enabled=true",
    ]


@pytest.fixture
def booted(plan: LaunchPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """Start the guest of a job, up to where its program would run, which is an error here."""

    def boot(document: dict[str, object], grants: dict[tuple[str, str], object], *, occlum: bool = False) -> Report:
        asked: list[object] = []

        class Session:
            def __init__(self, *_words: object, **_named: object) -> None:
                self.attest = lambda: asked.append("evidence")

        (tmp_path / "launch.json").write_text("{}")
        (tmp_path / "init-data.toml").write_text(job_init_data(document))
        for name, value in (("LAUNCH", tmp_path), ("JOB_FOLDER", tmp_path), ("ServiceSession", Session)):
            monkeypatch.setattr(libos, name, value)
        monkeypatch.setattr(libos, "check_code", lambda *_: {})
        monkeypatch.setattr(libos, "receive", lambda *_: asked.append("keys") or grants)
        for kind in (libos.LibosJob, libos.GramineJob):
            monkeypatch.setattr(kind, "__init__", lambda *_: None)
            monkeypatch.setattr(kind, "run", lambda _: asked.append("program"))
        report = Report()
        attempt(report, lambda: libos._boot(report, object(), occlum))  # type: ignore[arg-type]
        report.details["asked"] = asked
        return report

    return boot


VOLUME = {"name": "in", "dataset": "a" * 32, "key": "sales", "owner": "f" * 64, "mode": "ro"}


def test_T274_a_program_that_could_take_the_keys_itself(plan: LaunchPlan, booted: Callable[..., Report]) -> None:
    document = {**plan.document, "volumes": [VOLUME]}
    for said in ({}, {"unsafe_program_has_keys": "true"}, {"unsafe_program_has_keys": 1}):
        report = booted({**document, **said}, {})
        assert "unsafe_program_has_keys: expected true" in str(report.error["message"])
        assert report.details["asked"] == []
    column = {"volumes": [], "keys": [{"name": "k", "owner": "f" * 64, "mode": "ro"}]}
    assert "unsafe_program_has_keys" in str(booted({**document, **column}, {}).error["message"])
    for allowed in ({**document, "unsafe_program_has_keys": True}, {**document, "volumes": []}):
        assert booted(allowed, {}).details["asked"] == ["evidence", "keys", "program"]
    # The owner who is asked to approve it is told.
    spec = replace(plan.spec, sgx=Sgx(unsafe_program_has_keys=True))
    shown = plan_job(spec, WORKLOADS, ("sha256:" + "1" * 64,)).document
    assert shown["unsafe_program_has_keys"] is True
    assert "the program can take the named keys" in "\n".join(_job(dict(shown), None))  # type: ignore[arg-type]
    assert (
        "unsafe_program_has_keys"
        not in plan_job(replace(spec, enclave="cvm"), WORKLOADS, ("sha256:" + "1" * 64,)).document
    )  # there it cannot


def test_T275_limits_that_a_libos_cannot_hold(plan: LaunchPlan, booted: Callable[..., Report]) -> None:
    document = {**plan.document, "volumes": [VOLUME], "unsafe_program_has_keys": True}
    grant = Grant(ring=StaticKeyRing("sales", {1: SecretBytes(b"k" * 32)}), heads={}, run_id=bytes(16), ends_at=0)
    for limited in (replace(grant, max_bytes=1 << 40), replace(grant, max_bytes=0), replace(grant, approval=True)):
        report = booted(document, {("f" * 64, "other"): grant, ("f" * 64, "sales"): limited})
        assert report.status == "refused"
        assert "key 'sales': outputs: expected any" in str(report.error["message"])
        assert report.details["asked"] == ["evidence", "keys"]
    assert booted(document, {("f" * 64, "sales"): grant}).error == {}


def _times(left: int, right: int) -> int:
    # In GCM's field; the highest bit is the lowest coefficient.
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (0xE1 << 120 if right & 1 else 0)
    return product


def _power(base: int, exponent: int) -> int:
    found = 1 << 127
    for bit in f"{exponent:b}":
        found = _times(found, found)
        found = _times(found, base) if bit == "1" else found
    return found


def _protected(content: bytes, unused: bytes = bytes(16)) -> tuple[bytes, int]:
    """Return the first node of a file of Occlum's, and what is measured of it: AES-GCM's tag, key and IV zero."""
    name = b".Occlum_sys.json.protected".ljust(32, b"\0") + unused  # the name is compared up to its first zero
    node = name.ljust(260, b"\0") + len(content).to_bytes(8, "little") + bytes(52) + content.ljust(3072, b"\0")
    return node, int.from_bytes(AESGCM(bytes(16)).encrypt(bytes(12), b"", node))


def test_T325_other_files_under_what_occlum_measures(plan: LaunchPlan, booted: Callable[..., Report]) -> None:
    # 1. Anybody makes settings, which name the files' MACs, that Occlum takes for those that were measured.
    node, approved = _protected(b'{"entry_points": ["/strongroom/bin"]}')
    other = b'{"entry_points": ["/bin"], "env": {"untrusted": ["LD_PRELOAD"]}}'
    key = int.from_bytes(Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor().update(bytes(16)))
    at = _power(key, len(node) // 16 - 1)  # what the third block is multiplied by
    fit = _times(approved ^ _protected(other)[1], _power(at, (1 << 128) - 2))
    forged, mac = _protected(other, fit.to_bytes(16))
    assert mac == approved
    assert forged != node
    # 2. So no key goes there, unless the job says that its host may have it.
    volume = Volume(name="in", location=Path("in"), dataset="a" * 32, key="sales", owner="f" * 64, mode="ro")
    spec = replace(plan.spec, enclave="occlum", volumes=(volume,), sgx=Sgx(unsafe_program_has_keys=True))
    with pytest.raises(InputError, match="can run other files under this measurement"):
        check_job(replace(plan, spec=spec), "occlum", forks=False)
    document = {**plan.document, "volumes": [VOLUME], "unsafe_program_has_keys": True}
    for said in ({}, {"unsafe_host_has_keys": "true"}):
        report = booted({**document, **said}, {}, occlum=True)
        assert "unsafe_host_has_keys: expected true" in str(report.error["message"])
        assert report.details["asked"] == []
    assert booted(document, {}).error == {}
    assert booted({**document, "unsafe_host_has_keys": True}, {}, occlum=True).error == {}
    # 3. Whoever allows it is told.
    unsafe = Sgx(unsafe_program_has_keys=True, unsafe_host_has_keys=True)
    planned = plan_job(replace(spec, sgx=unsafe), WORKLOADS, ("sha256:" + "1" * 64,))
    check_job(planned, "occlum", forks=False)
    assert planned.document["unsafe_host_has_keys"] is True
    shown = "\n".join(_job({**planned.document, "volumes": []}, None))  # type: ignore[arg-type]
    assert "whoever runs the machine can take the named keys" in shown
    gramine = replace(spec, sgx=unsafe, enclave="gramine")
    assert "unsafe_host_has_keys" not in plan_job(gramine, WORKLOADS, ("sha256:" + "1" * 64,)).document


def test_T326_occlum_quotes_other_report_data_or_none(tmp_path: Path) -> None:
    device = tmp_path / "sgx"
    with pytest.raises(UnavailableError, match="sgx: No such file"):
        OcclumAttester(device).attest(bytes(64))
    device.touch()
    with pytest.raises(UnavailableError, match="Inappropriate ioctl"):  # what a device of another kind says
        OcclumAttester(device).attest(bytes(64))
    quote = Platform().quote(report_data=bytes(64))
    with pytest.raises(EvidenceError, match="the quote carries other report data"):
        OcclumAttester(device, occlum_ioctl(lambda _data: quote)).attest(b"\1" * 64)
    for junk in (b"", b"junk", bytes(1 << 16), bytes(1 + (1 << 16))):
        with pytest.raises(EvidenceError):
            OcclumAttester(device, occlum_ioctl(lambda _data, junk=junk: junk)).attest(bytes(64))  # type: ignore[misc]
    padded = occlum_ioctl(lambda _data: quote + bytes(100))  # a quoting service that says more room than it needs
    assert OcclumAttester(device, padded).attest(bytes(64)).quote == quote


def test_T377_the_host_chooses_where_the_guests_evidence_is_left(tmp_path: Path) -> None:
    own, place = tmp_path / "own", tmp_path / "quote.bin"
    for name, make in {
        "link": lambda: place.symlink_to(own),
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),  # an open that waits for its reader would never end
        "elsewhere": lambda: None,
    }.items():
        own.write_text("the guest's")
        make()
        left = LeftEvidence(FakeAttester(), place if name != "elsewhere" else tmp_path / "none" / "quote.bin")
        assert left.attest(REPORT_DATA).quote == FakeAttester().attest(REPORT_DATA).quote  # sent all the same
        assert own.read_text() == "the guest's", name
        assert not left.left
        error: dict[str, object] = {"code": "endorsement", "hint": "the log says why"}
        left.explain(error)
        assert error["hint"] == "the log says why"  # no file is named that is not there
        if name != "elsewhere":
            place.rmdir() if name == "folder" else place.unlink()
    left = LeftEvidence(FakeAttester(), place)
    sent = [left.attest(data).quote for data in (REPORT_DATA, bytes(64))]
    assert place.read_bytes() == sent[0] != sent[1]  # the first, once


def test_T378_evidence_that_a_guest_left_is_shown_by_another(tmp_path: Path) -> None:
    ours, theirs = (ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2))
    first = AttestRequest(nonce="n" * 16, tee_pubkey=tee_pubkey(ours, None), evidence={})
    LeftEvidence(FakeAttester(), tmp_path / "quote.bin").attest(first.report_data())
    quote = Evidence(tee="sgx", quote=(tmp_path / "quote.bin").read_bytes())
    claims = Platform().verifier.verify(quote, Platform().endorsements(), now=NOW)
    check_report_data(claims, first.report_data())
    for later in (replace(first, nonce="m" * 16), replace(first, tee_pubkey=tee_pubkey(theirs, None))):
        with pytest.raises(VerificationError, match="report data: expected"):
            check_report_data(claims, later.report_data())
    again = FakeAttester(report_data=first.report_data())  # in a certificate of their own it is as little worth
    extension = ratls.make_extension(theirs, again, nonce=b"m", texts={"strongroom-job": "sha256:" + "1" * 64})
    with pytest.raises(VerificationError, match="report data: expected"):
        ratls.verify_extension(extension, theirs, lambda _: claims, nonce=b"m", job="sha256:" + "1" * 64)
