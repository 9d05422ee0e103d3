"""Enclave kind `gramine`: a bundle for SGX under Gramine 1.9, built with or without it.

The manifest is written here, whole: every trusted file by name and digest, strict file policy, no variable of the host.
Two things are left to Gramine, which knows them: where its own runtime lies, and the measurement. Where Gramine is
installed its tools expand, measure, and sign with a key that is thrown away; the owner signs elsewhere
(`strongroom enclave-key sign`). Where it is not, the bundle says what remains.

Names are attacker-chosen (a package may hold any file): each is written as a TOML string without braces, so that
Gramine's template engine finds nothing in it to run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from strongroom._encoding import sha256_id
from strongroom.attest.sigstruct import Sigstruct
from strongroom.errors import InputError, UnavailableError
from strongroom.jobs.differences import keep_build
from strongroom.jobs.enclaves.libos import (
    GUEST_CODE,
    SERVICE_CODE,
    HardwareEnclave,
    Needs,
    begin_bundle,
    loaded_mb,
    place_files,
    select_service,
)
from strongroom.jobs.plan import Bundle, LaunchPlan
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import Sgx

__all__ = ["GramineEnclave", "build_service", "render_manifest"]

TEMPLATE, MANIFEST, SIGNATURE = "job.manifest.template", "job.manifest", "job.sig"
_ENTRY = ("/opt/python/bin/python3", "-ISB", "-c", GUEST_CODE)
_SERVICE_ARGUMENTS = ("/service", "0.0.0.0:8700", "gramine", "/launch/admin.pem")
_SERVICE_THREADS = 96
_RUNTIME = "{{ gramine.runtimedir() }}"
_LIBRARIES = "/lib:/usr/lib/x86_64-linux-gnu:/opt/env/lib"
_JVM_LIBRARIES = "/lib:/usr/lib/x86_64-linux-gnu:/opt/jdk/lib:/opt/jdk/lib/server"


class GramineEnclave(HardwareEnclave):
    """Builds bundles for Gramine."""

    def build(self, plan: LaunchPlan, folder: Path) -> Bundle:
        """Write the bundle of `plan` below `folder`.

        Raises:
            InputError: The job needs what Gramine lacks, or does not fit its enclave.
        """
        target, size, digests = begin_bundle(plan, folder, "gramine", self.runtimes, self.identity_pem, forks=True)
        manifest = render_manifest(plan, size, digests)
        _write_template(target, manifest)
        total = sum((target / "root" / name).stat().st_size for name in digests)
        reference = {
            "kind": "gramine",
            "job": plan.job,
            "manifest": sha256_id(manifest.encode()),
            "files": len(digests),
            "bytes": total,
            "size_mb": dict(size.parts),
        }
        (target / "reference.json").write_text(json.dumps(reference, indent=1))
        return _bundle(target, plan.job, plan.spec.sgx, "job build")


def build_service(runtimes: Runtimes, target: Path) -> Bundle:
    """Write the bundle of the trust service to the folder `target`: equal for equal packages, for any owner.

    Its arguments are measured: it listens on port 8700, for guests 8701, keeps its state in `service/`, and makes
    itself, at its first start, for the owner whose request is `launch/admin.pem`.

    Raises:
        InputError: A file is not readable.
    """
    files = select_service(runtimes, libc=False)
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("launch", "service"):
        (target / name).mkdir(exist_ok=True, mode=0o700)
    digests = place_files(target / "root", files, {})
    parts = {"service": 768, "LibOS": 64, "stacks": 2 * _SERVICE_THREADS, "libraries": loaded_mb(files)}
    size = Needs(size_mb=1 << (sum(parts.values()) - 1).bit_length(), threads=_SERVICE_THREADS, stack_mb=2, parts=parts)
    argv = ("/opt/python/bin/python3", "-ISB", "-c", SERVICE_CODE, *_SERVICE_ARGUMENTS)
    manifest = _manifest(argv, ("launch", "service"), _LIBRARIES, Sgx(), size, digests)
    _write_template(target, manifest)
    (target / "job.json").write_text("{}")  # for `job diff`
    return _bundle(target, "", Sgx(), "service build")


def _write_template(target: Path, manifest: str) -> None:
    template = target / TEMPLATE
    if not template.exists() or template.read_text() != manifest:
        (target / f"{MANIFEST}.sgx").unlink(missing_ok=True)  # it speaks of another enclave, and so do these:
        for name in (MANIFEST, SIGNATURE):
            (target / f"{name}.before").unlink(missing_ok=True)
            if (target / name).exists():
                (target / name).replace(target / f"{name}.before")
        keep_build(template, manifest)


def _bundle(target: Path, job: str, sgx: Sgx, command: str) -> Bundle:
    if shutil.which("gramine-sgx-sign") and not (target / SIGNATURE).exists():
        _measure(target)
    done = (target / SIGNATURE).exists()
    return Bundle(
        folder=target,
        job=job,
        simulated=False,
        measure=lambda: _measurement(target / SIGNATURE, sgx),
        remaining=() if done else _remaining(target, sgx, command),
    )


def render_manifest(plan: LaunchPlan, size: Needs, digests: Mapping[str, str]) -> str:
    """Return the manifest: TOML but for two names that Gramine fills in, equal for equal jobs and files.

    Args:
        plan: The job.
        size: Of its enclave.
        digests: Path below the root folder -> SHA-256.
    """
    libraries = _JVM_LIBRARIES if "jdk" in plan.command.runtimes else _LIBRARIES
    return _manifest(_ENTRY, ("launch", "sealed"), libraries, plan.spec.sgx, size, digests)


def _manifest(
    argv: tuple[str, ...], hosts: tuple[str, ...], libraries: str, sgx: Sgx, size: Needs, digests: Mapping[str, str]
) -> str:
    # `hosts`: folders at the root that are the host's to read and write.
    environment = {
        "HOME": "/work",
        "LANG": "C.UTF-8",
        "LD_LIBRARY_PATH": libraries,
        "PATH": "/opt/python/bin:/usr/bin",
        "TMPDIR": "/tmp",  # noqa: S108  # enclave memory
        "TZ": "UTC",
    }
    tops = sorted({name.partition("/")[0] for name in digests})
    mounts = [f'{{ path = "/lib", uri = "file:{_RUNTIME}" }}']
    mounts += [f"{{ path = {_text('/' + top)}, uri = {_text(f'file:root/{top}')} }}" for top in tops]
    mounts += ['{ path = "/bin", uri = "file:root/usr/bin" }']
    mounts += [f'{{ path = "/{name}", uri = "file:{name}" }}' for name in hosts]
    mounts += [f'{{ type = "tmpfs", path = "{path}" }}' for path in ("/work", "/tmp", "/run")]  # noqa: S108
    trusted = [f'"file:{_RUNTIME}/"']
    trusted += [
        f"{{ uri = {_text(f'file:root/{name}')}, sha256 = {_text(digest)} }}"
        for name, digest in sorted(digests.items())
    ]
    lines = [
        f"libos.entrypoint = {_text(argv[0])}",
        f"loader.argv = [{', '.join(map(_text, argv))}]",
        'loader.log_level = "error"',  # others may print data
        "loader.uid = 1000",
        "loader.gid = 1000",
        *(f"loader.env.{name} = {_text(value)}" for name, value in environment.items()),
        "",
        'fs.start_dir = "/work"',
        *_array("fs.mounts", mounts),
        "",
        "sys.enable_sigterm_injection = true",
        f'sys.stack.size = "{size.stack_mb}M"',
        "sys.fds.limit = 65536",
        "",
        "sgx.debug = false",
        f"sgx.edmm_enable = {str(sgx.edmm).lower()}",
        f'sgx.enclave_size = "{size.size_mb}M"',
        f"sgx.max_threads = {size.threads}",
        f"sgx.isvprodid = {sgx.product}",
        f"sgx.isvsvn = {sgx.svn}",
        'sgx.remote_attestation = "dcap"',
        'sgx.file_check_policy = "strict"',
        *_array("sgx.allowed_files", [f'"file:{name}/"' for name in hosts]),
        *_array("sgx.trusted_files", trusted),
    ]
    return "\n".join(lines) + "\n"


def _array(name: str, items: list[str]) -> list[str]:
    return [f"{name} = [", *(f"  {item}," for item in items), "]"]


def _text(value: str) -> str:
    return (
        json.dumps(value, ensure_ascii=False).replace("{", "\\u007b").replace("}", "\\u007d").replace("\x7f", "\\u007f")
    )


def _measure(folder: Path) -> None:
    # A signature is needed to have the measurement, not to be trusted: its key is gone when this returns.
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # only where Gramine is
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    key = rsa.generate_private_key(public_exponent=3, key_size=3072)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:  # 0600
        file.write(pem)
        file.flush()
        for command in (
            ("gramine-manifest", TEMPLATE, MANIFEST),
            ("gramine-sgx-sign", "-m", MANIFEST, "-o", f"{MANIFEST}.sgx", "-s", SIGNATURE, "-k", file.name),
        ):
            # A PYTHONPATH of the caller must not reach Gramine's Python, and so the measurement.
            clean = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
            done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                raise InputError(f"{command[0]} fails: {' '.join(said)[:300]}", hint=f"look at {folder / TEMPLATE}")


def _measurement(signature: Path, sgx: Sgx) -> str:
    if not signature.exists():
        raise UnavailableError(
            "the measurement of this enclave is not known yet: Gramine's own tools make it",
            hint=f"{signature.parent / 'REMAINING'} says what to do where Gramine 1.9 is installed",
        )
    found = Sigstruct.from_bytes(signature.read_bytes())
    found.verify()
    asked = {"debug": False, "product": sgx.product, "svn": sgx.svn}
    if wrong := [
        f"{name}: expected {value}, got {getattr(found, name)}"
        for name, value in asked.items()
        if getattr(found, name) != value
    ]:
        raise InputError(
            f"{signature} is of another enclave: {'; '.join(wrong)}", hint="measure this bundle's manifest"
        )
    return found.measurement.hex()


def _remaining(folder: Path, sgx: Sgx, command: str) -> tuple[str, ...]:
    sign = f"gramine-sgx-sign -m {MANIFEST} -o {MANIFEST}.sgx -s {SIGNATURE} -k throw-away.pem"
    own = "".join(f" --{name} {value}" for name, value in (("product", sgx.product), ("svn", sgx.svn)) if value)
    steps = (
        f"take {folder} to a machine with Gramine 1.9, or make one: images/gramine.Dockerfile",
        f"there: gramine-manifest {TEMPLATE} {MANIFEST}",
        f"there: gramine-sgx-gen-private-key throw-away.pem && {sign}",
        f"bring {SIGNATURE} back into this folder: `strongroom {command}` then names the measurement",
        f"where the key is: strongroom enclave-key sign {SIGNATURE} --key KEY --measurement HEX{own} --out signed.sig",
    )
    (folder / "REMAINING").write_text("".join(f"{number}. {step}\n" for number, step in enumerate(steps, 1)))
    return steps
