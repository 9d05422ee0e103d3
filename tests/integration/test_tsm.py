"""The attester for confidential VMs, on a tree that behaves like the kernel's configfs-tsm."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.attest_parts import JOB, NOW, REPORT_DATA, Platform
from tests.fakes.snp_parts import DER, MILAN
from tests.fakes.tsm_tree import Entry, TsmTree, mounted
from tests.servers.packages import need_fuse

from strongroom import _vm
from strongroom.attest.attesters import Attester
from strongroom.attest.attesters.simulated import SimulatedAttester
from strongroom.attest.attesters.tsm import TsmAttester
from strongroom.attest.binding import JOB_FILE, expected_register, init_data_digest, job_init_data
from strongroom.attest.claims import check_init_data
from strongroom.attest.evidence import Evidence
from strongroom.attest.snp import CERTIFICATES, certificate_table, parse_report
from strongroom.errors import EvidenceError, InputError, UnavailableError
from strongroom.guest import cvm
from strongroom.guest.cvm import serve
from strongroom.guest.document import LeftEvidence

PLATFORM = Platform()


def snp(data: bytes) -> tuple[bytes, bytes]:
    # As hosts give it: more than the signer's certificate, and padded to a page.
    table = certificate_table({"vcek": MILAN.key().public_bytes(DER), "ark": MILAN.ark.public_bytes(DER)})
    return MILAN.report(changes={0x50: data}), table.ljust(8192, b"\0")


def tdx(data: bytes) -> tuple[bytes, bytes]:
    return PLATFORM.quote_tdx(report_data=data) + bytes(39), b""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TsmTree, Path]]:
    need_fuse()
    tree = TsmTree(snp, "sev_guest")
    with mounted(tree, tmp_path_factory.mktemp("tsm") / "report") as place:
        yield tree, place


@pytest.fixture
def tree(mount: tuple[TsmTree, Path]) -> TsmTree:
    found = mount[0]
    found.answer, found.provider, found.made = snp, "sev_guest", 0
    found.interfere = lambda _when, _entry: None
    found.entries.clear()
    return found


@pytest.fixture
def attester(mount: tuple[TsmTree, Path]) -> TsmAttester:
    return TsmAttester(mount[1])


def test_snp(tree: TsmTree, attester: TsmAttester) -> None:
    evidence = attester.attest(REPORT_DATA)
    assert (evidence.tee, tree.made, tree.entries) == ("snp", 1, {})
    assert parse_report(evidence.quote).certificate  # and nothing else of what the host gave
    claims = MILAN.verifier().verify(evidence, MILAN.endorsements(), now=NOW)
    assert claims.report_data == REPORT_DATA


def test_snp_of_a_host_without_certificates(tree: TsmTree, attester: TsmAttester) -> None:
    tree.answer = lambda data: (snp(data)[0], b"")
    assert len(attester.attest(REPORT_DATA).quote) == 1184
    tree.answer = lambda data: (snp(data)[0], bytes(4096))
    assert len(attester.attest(REPORT_DATA).quote) == 1184
    tree.answer = lambda data: (snp(data)[0], CERTIFICATES["vcek"] + b"\xff" * 8 + bytes(24))
    with pytest.raises(EvidenceError, match="are not in its"):
        attester.attest(REPORT_DATA)


def test_tdx_padding_is_cut_off(tree: TsmTree, attester: TsmAttester) -> None:
    tree.answer, tree.provider = tdx, "tdx_guest"
    evidence = attester.attest(REPORT_DATA)
    claims = PLATFORM.verifier.verify(evidence, PLATFORM.endorsements("tdx"), now=NOW)
    assert (claims.tee, claims.report_data, tree.entries) == ("tdx", REPORT_DATA, {})


@pytest.mark.parametrize("when", ["written", "reading"])
def test_another_writer_in_between(tree: TsmTree, attester: TsmAttester, when: str) -> None:
    left = [2]

    def interfere(now: str, entry: Entry) -> None:
        if now == when and left[0]:
            left[0] -= 1
            entry.inblob, entry.written = b"somebody else's".ljust(64), entry.written + 1

    tree.interfere = interfere
    evidence = attester.attest(REPORT_DATA)
    assert parse_report(evidence.quote)["report_data"] == REPORT_DATA
    assert (tree.made, tree.entries) == (3, {})
    left[0] = 99
    with pytest.raises(UnavailableError, match="another writer interfered 8 times"):
        attester.attest(REPORT_DATA)
    assert tree.entries == {}


def test_busy_is_tried_again_and_refusals_are_not(tree: TsmTree, attester: TsmAttester) -> None:
    left = [1]

    def refuse(now: str, _entry: Entry) -> None:
        if now == "reading" and left[0]:
            left[0] -= 1
            raise OSError(number, "kernel")

    tree.interfere, number = refuse, errno.EBUSY
    attester.attest(REPORT_DATA)
    assert tree.made == 2
    left[0], number = 1, errno.ENXIO
    with pytest.raises(UnavailableError, match="configfs-tsm refuses"):
        attester.attest(REPORT_DATA)
    assert tree.entries == {}


def test_other_report_data_is_not_handed_on(tree: TsmTree, attester: TsmAttester) -> None:
    tree.answer = lambda _data: snp(bytes(64))
    with pytest.raises(EvidenceError, match="carries other report data"):
        attester.attest(REPORT_DATA)
    tree.provider = "arm_cca_guest"
    with pytest.raises(EvidenceError, match="expected provider tdx_guest or sev_guest"):
        attester.attest(REPORT_DATA)
    with pytest.raises(InputError):
        attester.attest(bytes(63))
    with pytest.raises(UnavailableError, match="there is no"):
        TsmAttester(Path("/nowhere")).attest(REPORT_DATA)


def test_process_one_binds_the_job_where_whoever_launched_the_machine_did_not(
    tree: TsmTree, attester: TsmAttester, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init_data = job_init_data(JOB)
    digest = init_data_digest(init_data)
    register, launched = tmp_path / "rtmr3:sha384", tmp_path / "mrconfigid"
    register.write_bytes(b"")
    launched.write_bytes(digest + bytes(16))
    for provider, mrconfigid, measured in (
        ("sev_guest", bytes(48), b""),  # SNP has no such register
        ("tdx_guest", digest + bytes(16), b""),
        ("tdx_guest", bytes(48), digest + bytes(16)),
    ):
        tree.provider = provider
        launched.write_bytes(mrconfigid)
        cvm._bind(attester, init_data, tmp_path)
        assert register.read_bytes() == measured
    rtmrs = (bytes(48),) * 3 + (expected_register(digest),)
    quote = PLATFORM.quote_tdx(report_data=REPORT_DATA, config_id=bytes(48), rtmrs=rtmrs)
    evidence = Evidence(tee="tdx", quote=quote)
    claims = PLATFORM.verifier.verify(evidence, PLATFORM.endorsements("tdx"), now=NOW)
    assert JOB_FILE in check_init_data(claims, init_data)
    assert capsys.readouterr().err == ""
    cvm._bind(attester, init_data, tmp_path / "before 6.16")  # MRCONFIGID may bind it: the service finds out
    assert "RTMR3 cannot be extended: No such file" in capsys.readouterr().err


def test_guest_gets_its_evidence_from_process_one(tree: TsmTree, attester: TsmAttester, tmp_path: Path) -> None:
    assert attester.tee == "snp"
    mine, theirs = socket.socketpair()
    ended: list[object] = []
    left = LeftEvidence(attester, tmp_path / "quote.bin")
    thread = threading.Thread(target=lambda: ended.append(serve(theirs, left)))
    thread.start()
    guest = SimulatedAttester(mine, attester.tee)
    evidence = guest.attest(REPORT_DATA)
    assert (guest.tee, evidence.tee, parse_report(evidence.quote)["report_data"]) == ("snp", "snp", REPORT_DATA)
    assert (tmp_path / "quote.bin").read_bytes() == evidence.quote
    tree.answer = lambda _data: snp(bytes(64))
    with pytest.raises(UnavailableError, match="carries other report data"):
        guest.attest(REPORT_DATA)
    report = b'report{"status": "completed", "exit_code": 0}'
    mine.sendall(len(report).to_bytes(4, "big") + report)
    thread.join(5)
    assert ended == [{"status": "completed", "exit_code": 0}]
    mine.close()
    mine, theirs = socket.socketpair()
    mine.close()
    assert serve(theirs, attester)["status"] == "failed"


def test_what_is_not_believed_names_the_evidence_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: TsmTree, attester: TsmAttester
) -> None:
    (tmp_path / "launch.json").write_text('{"service": "https://10.0.2.2:8701"}')
    (tmp_path / "init-data.toml").write_text(job_init_data({**JOB, "sandbox": {}}))
    for module, name in ((_vm, "mount_system"), (_vm, "join_network"), (cvm, "_pass_on")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(cvm, "_mount_all", lambda _: 1000)
    monkeypatch.setattr(cvm, "TsmAttester", lambda: attester)
    monkeypatch.setattr(cvm, "_JOB", tmp_path)
    monkeypatch.setattr(cvm, "_HOST", tmp_path)

    def guest(given: Attester, _user: int, *, network: bool) -> dict[str, object]:
        assert not network
        given.attest(REPORT_DATA)
        return {"status": "refused", "error": {"code": codes[-1], "hint": "its log says why"}}

    monkeypatch.setattr(cvm, "_guest", guest)
    codes = []
    for code, named in (("endorsement", True), ("verification", True), ("appraisal", False), ("unavailable", False)):
        codes.append(code)
        error = cvm._run()["error"]
        assert isinstance(error, dict)
        assert error["hint"].startswith("its log says why")
        assert ("`strongroom attest endorsements fetch quote.bin`" in error["hint"]) == named
    assert parse_report((tmp_path / "quote.bin").read_bytes())["report_data"] == REPORT_DATA


def test_sealing_key(
    mount: tuple[TsmTree, Path], tree: TsmTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    answer = bytes(32) + b"d" * 32

    def ioctl(_device: object, number: int, request: bytearray) -> int:
        version, at, to, _ = struct.unpack("<B7xQQQ", request)
        asked.append((number, version, *struct.unpack("<IIQIIQ", ctypes.string_at(at, 32))))
        if not answer:
            request[24:] = struct.pack("<II", 0x16, 0)
            raise OSError(errno.EIO, "Input/output error")
        ctypes.memmove(to, answer, 64)
        return 0

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    device = tmp_path / "sev-guest"
    attester = TsmAttester(mount[1], device)
    with pytest.raises(UnavailableError, match="No such file"):
        attester.sealing_key()
    device.touch()
    with attester.sealing_key() as key:
        assert key == b"d" * 32
    # linux/sev-guest.h: _IOWR('S', 1, 32 bytes); version 1; root key VCEK by ROOT_KEY_SELECT 0 (bit 0) and KEY_SEL 1
    # (bits 2:1; 0 would be a VLEK that the host loaded), guest policy and measurement, VMPL 0.
    assert asked == [(3 << 30 | 32 << 16 | ord("S") << 8 | 1, 1, 1 << 1, 0, 1 | 1 << 3, 0, 0, 0)]
    failed = b"\x16" + bytes(31) + b"d" * 32
    for refused, said in ((failed, "status 0, got 16"), (bytes(64), "got 0000"), (b"", "0x16")):
        answer = refused
        with pytest.raises(UnavailableError, match=said):
            attester.sealing_key()
    tree.provider = "tdx_guest"
    with pytest.raises(UnavailableError, match="tdx: this TEE has no sealing key"):
        attester.sealing_key()
