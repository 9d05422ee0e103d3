"""One test per threat to the trust service that is all of a confidential VM (T391 to T394)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.fakes.attest_parts import FakeAttester
from tests.fakes.service_parts import make_house, owner_pem
from tests.unit.test_attest_launch_digest import firmware
from tests.unit.test_jobs_cvm import unpacked
from tests.unit.test_jobs_libos import FewFiles

from strongroom._secret import SecretBytes
from strongroom.crypto import x509
from strongroom.errors import DeniedError, UnavailableError
from strongroom.jobs.enclaves import cvm
from strongroom.jobs.spec import Cvm
from strongroom.kms.roots.registry import RootFolder
from strongroom.service import main as program
from strongroom.service import vm
from strongroom.service.server import _make

SHARES = {"threshold": "2", "shares": "3"}
# The host's folder, at `service` as the VM mounts it but for 9p, in a process with mounts of its own.
MOUNTED = """
import ctypes, sys
from pathlib import Path
from strongroom import _vm
libc = ctypes.CDLL(None, use_errno=True)
_vm.check(libc.unshare(0x20000), "unshare")
_vm.check(libc.mount(b"none", b"/", None, 0x44000, None), "private")
for place in sys.argv[1:3]:
    _vm.mount(place, place, "", 0x1000)
    _vm.mount("none", place, "", 0x1000 | 0x20 | _vm._HOSTS)
from tests.fakes.attest_parts import FakeAttester
from strongroom.service import main, server
server.asyncio.Runner = lambda **_: sys.exit(4)  # it would serve
main._ALONE["vm"] = FakeAttester
main.protect_process = lambda: None
sys.argv = ["x", sys.argv[1], "127.0.0.1:1024", "vm", sys.argv[2] + "/admin.pem"]
sys.exit(main.main())
"""


def mounted(service: Path, launch: Path) -> tuple[int, str]:
    words = [sys.executable, "-c", MOUNTED, str(service), str(launch)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if "PermissionError" in done.stderr:
        pytest.skip("this user may not mount")
    return done.returncode, done.stderr


def test_T391_a_link_of_the_hosts_leads_to_the_vms_own_files(tmp_path: Path) -> None:
    own, service, launch = tmp_path / "own", tmp_path / "service", tmp_path / "launch"
    for folder in (own, service, launch):
        folder.mkdir()
    (own / "admin.pem").write_text(owner_pem("shop"))
    (launch / "admin.pem").write_text(owner_pem("shop"))
    assert mounted(service, launch)[0] == 4, "without links it is made"
    for name in ("state.db", "state.db-wal", "locked-leaf.pem"):
        assert (service / "service" / name).exists() == (name != "state.db-wal")
    whole = tmp_path / "whole"
    service.rename(whole)

    def refused(folder: Path, name: str, target: Path) -> None:
        """Let `name` lead to `target` and start the service: it says so, and the target is as it was."""
        shutil.rmtree(service, ignore_errors=True)
        shutil.copytree(whole, service)
        before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
        place = folder / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.symlink_to(target)
        status, said = mounted(service, launch)
        assert status == 1, said
        assert "Too many levels of symbolic links" in said or "File exists" in said, said
        assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before

    shutil.copytree(whole / "root", own / "root")
    shutil.copy(whole / "service" / "state.db", own)
    refused(service, "service/state.db", own / "state.db")
    refused(service, "root", own / "root")
    (whole / "service" / "state.db").unlink()  # it would be made: in a folder of the VM's, or for an owner named there
    refused(service, "service", own)
    refused(launch, "admin.pem", own / "admin.pem")


def _certificate(*, ca: bool, now: datetime | None = None) -> bytes:
    made = x509.self_signed(x509.new_key(), "shop", now=now or datetime.now(UTC), days=30, ca=ca)
    return x509.certificate_pem(made).encode()


def test_T392_an_admin_that_is_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(program._ALONE, "vm", FakeAttester)
    monkeypatch.setattr(program, "protect_process", lambda: None)
    folder, admin = tmp_path / "service", tmp_path / "admin.pem"
    monkeypatch.setattr(sys, "argv", ["init", str(folder), "127.0.0.1:1024", "vm", str(admin)])
    pem = owner_pem("shop")
    bad: Mapping[str, bytes | None] = {
        "missing": None,
        "empty": b"",
        "text": b"shop",
        "no text": bytes(range(256)),
        "a key": x509.private_key_pem(x509.new_key()),
        "cut": pem.encode()[: len(pem) // 2],
        "altered": pem.replace("MII", "AAA", 1).encode(),
        "a CA": _certificate(ca=True),
        "ended": _certificate(ca=False, now=datetime(2020, 1, 1, tzinfo=UTC)),
    }
    for name, raw in bad.items():
        admin.unlink(missing_ok=True)
        if raw is not None:
            admin.write_bytes(raw)
        assert program.main() == 1, name
        assert "error: " in capsys.readouterr().err, name
        assert not folder.exists(), f"{name}: nothing is made"


def test_T393_an_altered_image_has_another_launch_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, raw in (("vmlinuz", b"kernel"), ("OVMF.fd", firmware())):
        (tmp_path / name).write_bytes(raw)
    machine = Cvm(kernel=str(tmp_path / "vmlinuz"), firmware=str(tmp_path / "OVMF.fd"))
    runtimes, bundle = FewFiles(tmp_path / "runtimes"), tmp_path / "bundle"

    def digest() -> bytes:
        return bytes.fromhex(cvm.build_service(runtimes, bundle, machine).measurement)

    genuine = digest()
    init = unpacked(bundle / "initrd.cpio")["init"][1]
    # What the host may name reaches neither Python's path nor the arguments: a folder, and one file in another.
    assert b"/launch" not in init
    assert b"/service'" not in init
    assert vm._ARGUMENTS == ("/service", "0.0.0.0:8700", "vm", "/launch/admin.pem")
    for name in ("admin.pem", "launch.json", "strongroom.py", "sitecustomize.py"):
        (bundle / "launch" / name).write_text("raise SystemExit")
    (bundle / "service" / "state.db").write_bytes(b"x")
    assert digest() == genuine

    (roots := tmp_path / "root").mkdir()
    root, _ = RootFolder(roots, FakeAttester(measurement=genuine)).create("tee", SHARES)
    assert RootFolder(roots, FakeAttester(measurement=genuine)).unlock(root.id, []).id == root.id
    seen = {genuine}

    def altered(what: str) -> None:
        seen.add(now := digest())
        assert now != genuine, what
        with pytest.raises(DeniedError, match="other code or another machine"):
            RootFolder(roots, FakeAttester(measurement=now)).unlock(root.id, [])

    with monkeypatch.context() as patch:
        patch.setattr(cvm, "COMMAND_LINE", "console=ttyS0 init=/launch/init")
        altered("command line")
    with monkeypatch.context() as patch:
        patch.setattr(cvm, "_SERVICE_INIT", cvm._SERVICE_INIT.replace("main()", "main('/launch')"))
        altered("process one")
    for name, raw in (("vmlinuz", b"other"), ("runtimes/base/etc/passwd", b"root, and another")):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw)
        altered(name)
        (tmp_path / name).write_bytes(before)
    assert digest() == genuine
    assert len(seen) == 5
    # Scripts are the host's to alter; what they then launch is another VM, or the same one.
    assert json.loads((bundle / "reference.json").read_text())["initrd"].endswith(
        hashlib.sha256((bundle / "initrd.cpio").read_bytes()).hexdigest()
    )


class Domain(FakeAttester):
    """A TD: it has no sealing key."""

    tee = "tdx"

    def sealing_key(self) -> SecretBytes:
        raise UnavailableError("tdx: this TEE has no sealing key", hint="root kind shares or passphrase")


def test_T394_a_service_is_to_be_made_in_a_td_whose_host_would_have_its_root_key(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="tdx: this TEE has no sealing key"):
        _make(tmp_path / "made" / "service", tmp_path / "made" / "root", Domain(), owner_pem("shop"))
    left = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert left == [], "no root key of any kind, no state"
    # Made elsewhere with shares and moved in, it starts locked, and people unlock it.
    house = make_house(tmp_path / "moved", kind="shares", options=SHARES)
    with pytest.raises(DeniedError, match="2 shares"):
        house.reopened([], Domain())
    moved = house.reopened(house.handout[:2], Domain())
    assert (moved.service.locked, moved.service.born_for) == (False, "")
    with pytest.raises(UnavailableError, match="no sealing key"):
        moved.service.rotate_root("tee", SHARES, actor="x", now=datetime.now(UTC))
