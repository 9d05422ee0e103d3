"""The trust service's VM as `service build --enclave cvm` writes it: booted, looked at, pinned, cut off, booted again.

As in `test_cvm`, all is as on a confidential machine but the TEE. The simulated maker outside signs quotes of a TD
with the first file system in RTMR2, and gives the sealing key, which a TD has not, as SEV-SNP does: another to other
code. SIMULATED.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.e2e.test_cvm import REGISTERS, SEED, lay_over, quoting, without_tee
from tests.e2e.test_cvm import kernel as debian_kernel
from tests.fakes.enclave_shell import Enclave

from strongroom.attest.endorsement_files import write_bundle
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.service import birth

pytestmark = [pytest.mark.e2e, pytest.mark.long]

BOOT_S = 600
kernel = debian_kernel  # a fixture


@pytest.fixture
def ports() -> list[int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return [one.getsockname()[1], two.getsockname()[1]]


def measured(bundle: Path) -> dict[str, bytes]:
    return REGISTERS | {"rtmr2": hashlib.sha384((bundle / "initrd.cpio").read_bytes()).digest()}


def policy(folder: Path, registers: dict[str, bytes]) -> str:
    code = {"kind": "tdx_measurements", **{name: [value.hex()] for name, value in registers.items()}}
    checks = [code, {"kind": "tcb_status", "allowed": ["UpToDate"]}, {"kind": "not_debug"}]
    file = folder / f"policy-{registers['rtmr2'].hex()[:8]}.json"
    file.write_text(json.dumps({"kind": "all_of", "policies": checks}))
    return str(file)


@contextlib.contextmanager
def running(bundle: Path, ports: list[int]) -> Iterator[Callable[[Callable[[], bool]], list[str]]]:
    """Boot the VM; at the end its power is cut. Yield what waits for a condition, and returns the rights it had."""
    registers = measured(bundle)
    key = [hashlib.sha256(b"chip" + b"".join(registers.values())).digest()]
    config_id = bytes.fromhex(json.loads((bundle / "reference.json").read_text())["tdx"]["mrconfigid"])
    with quoting(config_id, registers, key) as maker, (bundle / "console").open("wb") as console:
        script = without_tee(bundle, maker, "opt/strongroom")
        text = script.read_text()
        for port, forwarded in zip((8700, 8701), ports, strict=True):
            assert text.count(f"hostfwd=tcp::{port}-:{port}") == 1
            text = text.replace(f"hostfwd=tcp::{port}-", f"hostfwd=tcp:127.0.0.1:{forwarded}-")
        script.write_text(text)
        words = ["nice", "-n", "10", "sh", str(script)]
        vm = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=console)

        def until(condition: Callable[[], bool]) -> list[str]:
            limit = time.monotonic() + BOOT_S
            while not condition():
                said = (bundle / "console").read_text(errors="replace")[-4000:]
                assert vm.poll() is None, said
                assert time.monotonic() < limit, said
                time.sleep(1)
            return [" ".join(asked.decode().split()[1:]) for asked in key[1:]]

        try:
            yield until
        finally:
            vm.kill()
            vm.wait(30)


def test_the_trust_service_in_a_vm_from_build_to_another_image(
    tmp_path: Path, kernel: tuple[Path, Path], ports: list[int]
) -> None:
    bundle, now = tmp_path / "bundle", datetime.now(UTC)
    shells = []
    for name in ("shop", "other"):
        (tmp_path / name).mkdir()
        shells.append(Enclave(folder=tmp_path / name))
        shells[-1].run("owner", "request", "--name", name, "--service", f"127.0.0.1:{ports[0]}", "--first")
    shell, other = shells
    named = ("--kernel", str(kernel[0]), "--modules", str(kernel[1]))
    built = shell.json("service", "build", str(bundle), "--enclave", "cvm", *named)
    assert (built["measurement"], len(built["remaining"])) == ("", 2)  # type: ignore[arg-type]
    shutil.copy(tmp_path / "shop/shop.pem", bundle / "launch" / "admin.pem")
    for name in ("launch.json", "sitecustomize.py", "strongroom.py"):  # is nothing to it
        (bundle / "launch" / name).write_text("raise SystemExit(9)")
    maker = SimulatedPKI.create(SEED, now=now)
    write_bundle(tmp_path / "maker.json", maker.anchor(), [maker.endorsements(now, tee="tdx")])

    def look(registers: dict[str, bytes], *more: str, of: Enclave = shell) -> str:
        words = ("--endorsements", str(tmp_path / "maker.json"), "--unsafe-accept-simulated")
        done = of.run("service", "verify", "--policy", policy(tmp_path, registers), *words, *more, check=False)
        return done.stdout + done.stderr

    identity = ("--identity", str(bundle / "service" / "identity.pem"))
    with running(bundle, ports) as until:
        until((bundle / "service" / "identity.pem").exists)
        rights = until(lambda: "REFUSED" in look(REGISTERS, *identity))
        assert set(rights) == {"000000000000000a 1"}, "DAC_OVERRIDE and FOWNER, and no way to more"
        said = look(REGISTERS, *identity, "--pin")
        assert "FAIL  rtmr2" in said, said
        assert "ACCEPTED" not in look(measured(bundle), *identity, of=other)
        said = look(measured(bundle), *identity, "--pin")
        assert "ACCEPTED: true" in said, said
        rotated = shell.json("service", "rotate-root", "--kind", "tee", "--threshold", "2", "--shares", "2", "--yes")
        shell.run("key", "create", "sales")
        names = sorted(path.name for path in (bundle / "service" / "service").iterdir())
        assert names == ["locked-leaf.pem", "state.db", "state.db-wal"]
        with socket.create_connection(("127.0.0.1", ports[1]), 60) as guests:
            unnamed = ssl.create_default_context()
            unnamed.check_hostname, unnamed.verify_mode = False, ssl.CERT_NONE
            assert unnamed.wrap_socket(guests).version() == "TLSv1.3"
    with running(bundle, ports) as until:  # it opens its state itself, as its power was cut
        until(lambda: "sales" in shell.run("key", "list", check=False).stdout)
    # Other code, with the same state in the host's folder.
    lay_over(bundle / "initrd.cpio", "opt/strongroom/strongroom/service/birth.py", Path(birth.__file__).read_text())
    with running(bundle, ports) as until:
        until(lambda: "is locked" in shell.run("key", "list", check=False).stderr)
        said = look(REGISTERS)
        assert "REFUSED" in said and "rtmr2" in said, said  # noqa: PT018
        assert "sealed to other code or another machine" in (bundle / "console").read_text(errors="replace")
        assert "ACCEPTED: true" in look(measured(bundle), "--pin")
        assert "is locked" in shell.run("key", "list", check=False).stderr
        shares = "\n".join(rotated["handout"])  # type: ignore[arg-type]
        shell.run("service", "unlock", said=shares)
        assert "sales" in shell.run("key", "list").stdout
