"""A job in a VM as `job build` writes it: booted by QEMU on Debian's kernel, refused, approved, run on sealed volumes.

All is as on a confidential machine but the TEE: memory is not encrypted, the processor is emulated, and quotes come
from the simulated quoting enclave outside, as QEMU fetches them from Intel's quote generation service.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fakes.enclave_shell import Enclave, served
from tests.fakes.maker_services import Makers, serving
from tests.servers.packages import apt_install, debian_file

from strongroom.attest.attesters import tsm
from strongroom.attest.simulated.pki import SimulatedPKI
from strongroom.attest.simulated.quoting import SimulatedQuotingEnclave
from strongroom.jobs.enclaves.cvm import write_cpio

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SEED = b"the maker of the VM's machine".ljust(32)
REGISTERS = {"mrtd": b"d" * 48, "rtmr0": b"0" * 48, "rtmr1": b"1" * 48, "rtmr2": b"2" * 48, "rtmr3": bytes(48)}
PROGRAM = """\
import os, pathlib, sys
text = pathlib.Path("/work/in/a.csv").read_text()
pathlib.Path("/work/out/b.csv").write_text(text.upper())
others = [p for p in os.listdir("/proc") if p.isdigit()]
print(sys.argv[1], len(others), os.listdir("/strongroom/host"), os.getuid() != 0)
"""
JOB = """
[job]
workload = "python"
program = "app.py"
arguments = ["--x"]
enclave = "cvm"
venv = "env"
[cvm]
kernel = "{image}"
modules = "{modules}"
memory_mb = 3072
vcpus = 2
[[volume]]
name = "in"
path = "in"
[[volume]]
name = "out"
path = "out"
key = "sales"
mode = "rw"
"""
# Behind the module that asks configfs-tsm, which takes a TDX guest: asks the host.
STAND_IN = """

class TsmAttester(QuotingAttester):
    tee = "tdx"
    who = "the host"

    def _ask(self, report_data):
        return Evidence(tee="tdx", quote=_asked(report_data))

    def sealing_key(self):
        with open("/proc/self/status") as rights:
            said = [line.split()[1] for line in rights if line.startswith(("CapEff:", "NoNewPrivs:"))]
        return SecretBytes(_asked(" ".join(["key", *said]).encode().ljust(64)))


def _asked(data):
    import socket

    with socket.create_connection(("10.0.2.2", {port}), 60) as host:
        host.sendall(data)
        return b"".join(iter(lambda: host.recv(1 << 16), b""))
"""


@pytest.fixture(scope="module")
def kernel() -> tuple[Path, Path]:
    """Debian's kernel and the folder of its modules."""
    if shutil.which("qemu-system-x86_64") is None:
        apt_install("qemu-system-x86")
    words = ["apt-cache", "depends", "linux-image-amd64"]
    depends = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Depends: linux-image-(\S+)", depends)
    assert found, depends
    image = debian_file(f"linux-image-{found[1]}", f"boot/vmlinuz-{found[1]}")
    return image, image.parents[1] / "lib/modules" / found[1]


@contextlib.contextmanager
def quoting(config_id: bytes, changed: dict[str, bytes] = {}, key: list[bytes] = []) -> Iterator[int]:  # noqa: B006
    """Sign, on a port of the host, what a VM with `config_id` and the registers asks.

    Who asks for a sealing key, which no TD has, gets the first of `key`; what it asked with is put behind it.
    """
    enclave = SimulatedQuotingEnclave(SimulatedPKI.create(SEED, now=datetime.now(UTC)))
    rtmrs = tuple((REGISTERS | changed)[f"rtmr{n}"] for n in range(4))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    vm, _ = listener.accept()
                    with vm:
                        asked = vm.recv(64, socket.MSG_WAITALL)
                        if key and asked.startswith(b"key "):
                            key.append(asked)
                            vm.sendall(key[0])
                            continue
                        vm.sendall(
                            enclave.quote_tdx(
                                measurement=REGISTERS["mrtd"], report_data=asked, config_id=config_id, rtmrs=rtmrs
                            )  # type: ignore[arg-type]
                        )

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def lay_over(initrd: Path, place: str, text: str) -> None:
    """Let a first file system have `text` at `place`: of what is there twice, the kernel takes the last."""
    layer = io.BytesIO()
    write_cpio(layer, iter([(place, stat.S_IFREG | 0o444, text.encode(), 0)]))
    with initrd.open("ab") as out:
        out.write(layer.getvalue())


def without_tee(bundle: Path, port: int, packages: str = "strongroom/guest") -> Path:
    """Return the launch script for TDX as this machine can run it, with the stand-in behind the first file system."""
    module = Path(tsm.__file__).read_text() + STAND_IN.format(port=port)
    initrd = bundle / "with-stand-in.cpio"
    shutil.copyfile(bundle / "initrd.cpio", initrd)
    lay_over(initrd, f"{packages}/strongroom/attest/attesters/tsm.py", module)
    script = (bundle / "launch-tdx.sh").read_text()
    for had, has in {
        r"accel=kvm,confidential-guest-support=tee,(.*),kernel-irqchip=split,hpet=off": r"accel=tcg,\1",
        r"  -object '\{\"qom-type\":\"tdx-guest\".*\\\n": "",
        r"-cpu host": "-cpu max",
        r"  -bios .*\\\n": "",
        r"initrd\.cpio": initrd.name,
    }.items():
        script, count = re.subn(had, has, script)
        assert count == 1, had
    changed = bundle / "launch-without-tee.sh"
    changed.write_text(script)
    return changed


def launched(shop: Enclave, bundle: Path) -> tuple[dict[str, Any], str]:
    """Boot the VM until it powers off; return the guest's report and what came over the serial line."""
    file = bundle / "launch" / "launch.json"
    said = {**json.loads(file.read_text()), "service": f"https://10.0.2.2:{shop.environment['PORT']}"}
    file.write_text(json.dumps(said))
    config_id = bytes.fromhex(json.loads((bundle / "reference.json").read_text())["tdx"]["mrconfigid"])
    with quoting(config_id) as port:
        words = ["sh", str(without_tee(bundle, port))]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, timeout=900)
    reported = bundle / "launch" / "report.json"
    assert reported.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(reported.read_text())
    reported.unlink()
    assert isinstance(report, dict)
    return report, done.stdout


def fetch_endorsements(shop: Enclave, quote: Path) -> None:
    now = datetime.now(UTC)
    maker = SimulatedPKI.create(SEED, now=now)
    root = shop.folder / "root.pem"
    root.write_bytes(maker.root.public_bytes(Encoding.PEM))
    with serving(
        Makers(intel={(tee, "standard"): maker.endorsements(now, tee=tee) for tee in ("sgx", "tdx")})
    ) as makers:
        shop.run("attest", "endorsements", "fetch", str(quote), "--from", makers.url, "--anchor", str(root))
    bundle = shop.workspace.service_folder / "endorsements" / "tdx-53494d000000-platform.json"
    shop.run("service", "trust", str(bundle), "--anchor", str(root))


def test_a_job_in_a_vm_from_build_to_result(tmp_path: Path, kernel: tuple[Path, Path]) -> None:
    image, modules = kernel
    with served(tmp_path) as shop:
        (tmp_path / "app.py").write_text(PROGRAM)
        (tmp_path / "job.toml").write_text(JOB.format(image=image, modules=modules))
        shop.run("env", "lock", "six", "-o", "locked.txt")
        shop.run("env", "build", "locked.txt", "env")
        bundle = Path(json.loads(shop.run("job", "build", "job.toml", "--json").stdout)["bundle"])
        bundle = shop.folder / bundle
        for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
            os.chown(path, 1000, 1000)
        # As docs/hardware-untested.md says: nothing is known of the machine, then of the job, then it runs.
        report, _ = launched(shop, bundle)
        assert (report["status"], report["error"]["code"]) == ("refused", "verification"), report
        fetch_endorsements(shop, bundle / "launch" / "quote.bin")
        report, _ = launched(shop, bundle)
        assert (report["status"], report["error"]["code"]) == ("refused", "appraisal"), report
        number = str(report["error"]["details"]["request"])
        named = [word for name, value in REGISTERS.items() for word in ("--tdx", f"{name}={value.hex()}")]
        shop.run("policy", "approve", number, *named, "--unsafe-accept-simulated")
        report, said = launched(shop, bundle)
        assert (report["status"], report["exit_code"]) == ("completed", 0), (report, said[-3000:])
        assert "--x 2 [] True" in said
        assert shop.open("out") == {"b.csv": "ID,NAME\n1,ALPHA\n"}
