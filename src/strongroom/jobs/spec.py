"""JobSpec: everything that decides what a job does, from TOML or the command line, and the job document it becomes.

The *job document* is what the job digest covers: code by digest, arguments, environment, sandbox and engine settings,
per volume its name, data-set id, key, owner and mode, per column key its name, owner and mode. It has no locations,
epochs (unless pinned) or policies.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from strongroom._encoding import sha256_id
from strongroom.errors import InputError

__all__ = [
    "Cvm",
    "JobKey",
    "JobSpec",
    "Limits",
    "Location",
    "Sandbox",
    "Sgx",
    "Volume",
    "doors",
    "job_document",
    "kbs_addresses",
    "load_spec",
]

Location = Path | str
"""A folder of this machine, or the URL of a folder in a store, such as `hdfs://namenode:9000/sealed`."""

DOCUMENT_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A sealed data set that the job sees.

    Attributes:
        name: The folder under /work.
        location: Where the sealed files lie; not covered by the digest.
        dataset: 32 hex digits.
        key: Key name.
        owner: Fingerprint of the key's owner.
        mode: `ro`, or `rw` to write and commit.
        epoch: Pinned epoch, or None for the newest.
        visible_names: Whether the job may write folders called `column=value`, which show values to the host.
        manifest: The one manifest that a volume under a KBS' key is read by; its `owner` is the key's URL.
        certificate: And the PEM that the KBS' certificate is checked against.
    """

    name: str
    location: Location
    dataset: str
    key: str
    owner: str
    mode: Literal["ro", "rw"]
    epoch: int | None = None
    visible_names: bool = False
    manifest: str = ""
    certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKey:
    """A named key that the job uses for columns, without a volume.

    Attributes:
        name: The named key; in the program's options too.
        mode: `ro` to read columns, `rw` to write them as well.
        owner: Fingerprint of the key's owner; "" until the job is planned, which makes it the workspace's.
    """

    name: str
    mode: Literal["ro", "rw"] = "ro"
    owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What the sandbox allows.

    Attributes:
        network: Whether the job sees the host's network.
        scratch_mb: Size of /work and of /tmp, in MiB of enclave memory each. Of an SGX enclave, whose memory is fixed
            when it is built: what both hold together, and under Gramine a file takes up to twice its size.
    """

    network: bool = False
    scratch_mb: int = 4096

    def __post_init__(self) -> None:
        if type(self.network) is not bool:
            raise InputError(f"[sandbox] network is true or false, got {self.network!r}")
        _check_range("[sandbox] scratch_mb", self.scratch_mb, 1 << 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long the job may run.

    Attributes:
        max_runtime_s: The workload is stopped after it; its certificate lives as long.
    """

    max_runtime_s: int = 86_400

    def __post_init__(self) -> None:
        _check_range("[limits] max_runtime_s", self.max_runtime_s, 10 * 366 * 86_400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgx:
    """What an SGX enclave of the job is given; part of its measurement.

    Attributes:
        size_mb: Of the enclave in MiB, a power of two; 0 for the smallest that holds what the job's settings name.
        max_threads: 0 for what the job's settings need.
        edmm: Add memory as it is used; needs a CPU and a kernel that can.
        product: ISVPRODID.
        svn: ISVSVN.
        unsafe_program_has_keys: The program is trusted with the keys that the job names, which a LibOS cannot keep from
            it; in the job document too.
        unsafe_host_has_keys: So is whoever runs the machine, from whom Occlum does not keep them; likewise.
    """

    size_mb: int = 0
    max_threads: int = 0
    edmm: bool = False
    product: int = 0
    svn: int = 0
    unsafe_program_has_keys: bool = False
    unsafe_host_has_keys: bool = False

    def __post_init__(self) -> None:
        for name in ("edmm", "unsafe_program_has_keys", "unsafe_host_has_keys"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"[sgx] {name} is true or false, got {getattr(self, name)!r}")
        for name, most in (("size_mb", 1 << 20), ("max_threads", 4096), ("product", 0xFFFF), ("svn", 0xFFFF)):
            if type(getattr(self, name)) is not int or getattr(self, name) != 0:
                _check_range(f"[sgx] {name}", getattr(self, name), most)
        if self.size_mb & (self.size_mb - 1):
            raise InputError(f"[sgx] size_mb: an enclave's size is a power of two, got {self.size_mb}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cvm:
    """What a confidential VM of the job is made of; part of its launch digest.

    Attributes:
        kernel: The kernel's file.
        modules: Folder of its modules (`/lib/modules/VERSION`), "" if what it needs is built in.
        firmware: The firmware's file (OVMF), "" to leave it to whoever launches; the launch digest needs it.
        vcpus: Virtual processors.
        vcpu_type: QEMU's name of their model, which SEV-SNP's launch digest covers.
        memory_mb: Memory, which holds the first file system too.
    """

    kernel: str = ""
    modules: str = ""
    firmware: str = ""
    vcpus: int = 2
    vcpu_type: str = "EPYC-v4"
    memory_mb: int = 8192

    def __post_init__(self) -> None:
        for name in ("kernel", "modules", "firmware", "vcpu_type"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"[cvm] {name} is a text, got {getattr(self, name)!r}")
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", self.vcpu_type):  # QEMU's script names it
            raise InputError(f"[cvm] vcpu_type is a name like EPYC-v4, got {self.vcpu_type!r}")
        _check_range("[cvm] vcpus", self.vcpus, 512)
        _check_range("[cvm] memory_mb", self.memory_mb, 1 << 24)


def _check_range(name: str, value: object, highest: int) -> None:
    if type(value) is not int or not 1 <= value <= highest:
        raise InputError(f"{name} is a number from 1 to {highest}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job before it is planned.

    Attributes:
        name: For people; not covered by the digest.
        workload: `python`, `spark` or `torchrun`.
        program: The program's file on this machine; None if `inline` is the program.
        inline: For Python: ("-c", code) or ("-m", module).
        arguments: The program's own arguments.
        environment: Variables that the workload sees beside the fixed ones.
        engine: Engine settings (Spark: `spark.*`; torchrun: `nnodes`, `nproc-per-node`).
        main_class: For a JVM program.
        files: More measured files beside the program, by name.
        volumes: Sealed inputs and outputs.
        keys: Column keys.
        venv: Environment that the job brings along, measured by the enclave; None for the submitter's own packages.
        sandbox: Sandbox settings.
        limits: Time limits.
        publish_on_failure: Commit outputs even if the program fails.
        checkpoint_s: Seconds between commits while the program runs, which stay whatever becomes of it; 0 for none.
        enclave: `sim`, `gramine`, `occlum` or `cvm`.
        sgx: For Gramine and Occlum.
        cvm: For `cvm`.
        target: `local` or `cluster`.
        workers: Machines of the cluster that it is for; 0 if it is for this machine alone.
    """

    name: str
    workload: str
    program: Path | None = None
    inline: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    engine: Mapping[str, str] = field(default_factory=dict)
    main_class: str = ""
    files: tuple[Path, ...] = ()
    volumes: tuple[Volume, ...] = ()
    keys: tuple[JobKey, ...] = ()
    venv: Path | None = None
    sandbox: Sandbox = field(default_factory=Sandbox)
    limits: Limits = field(default_factory=Limits)
    publish_on_failure: bool = False
    checkpoint_s: int = 0
    enclave: str = "sim"
    sgx: Sgx = field(default_factory=Sgx)
    cvm: Cvm = field(default_factory=Cvm)
    target: str = "local"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint_s != 0:
            _check_range("checkpoint_s", self.checkpoint_s, 86_400)

    @property
    def libos(self) -> bool:
        """Whether the enclave is a LibOS: its threads are fixed when it is built, its loopback is the host's."""
        return self.enclave in ("gramine", "occlum")

    @property
    def code(self) -> tuple[Path, ...]:
        """The measured files: the program and those beside it."""
        return (self.program, *self.files) if self.program else self.files


def job_document(
    spec: JobSpec,
    *,
    command: tuple[str, ...],
    environment: Mapping[str, str],
    identity: tuple[str, ...],
    staged: bool = True,
) -> dict[str, object]:
    """Return the document whose digest is the job digest.

    Args:
        spec: The job.
        command: What the workload starts before the program's arguments.
        environment: The whole environment of the workload.
        identity: SPKI ids of the trust service (one, or two while it rolls over).
        staged: Whether the guest opens the volumes into enclave memory.
    """
    volumes = sorted(spec.volumes, key=lambda v: v.name)
    document: dict[str, object] = {
        "format": DOCUMENT_FORMAT,
        "workload": spec.workload,
        "code": {path.name: _digest(path) for path in spec.code},
        "command": list(command),
        "arguments": list(spec.arguments),
        "environment": dict(environment),
        "sandbox": {"network": spec.sandbox.network, "scratch_mb": spec.sandbox.scratch_mb},
        "limits": {"max_runtime_s": spec.limits.max_runtime_s},
        "publish_on_failure": spec.publish_on_failure,
        "service": list(identity),
        "staged": staged,
        "volumes": [_volume(v) for v in volumes if not v.manifest],
    }
    if any(v.manifest for v in volumes):
        document["kbs"] = [_volume(v) for v in volumes if v.manifest]
    if spec.checkpoint_s:
        document["checkpoint_s"] = spec.checkpoint_s
    if spec.libos and spec.sgx.unsafe_program_has_keys:
        document["unsafe_program_has_keys"] = True
    if spec.enclave == "occlum" and spec.sgx.unsafe_host_has_keys:
        document["unsafe_host_has_keys"] = True
    if spec.keys:
        keys = sorted(spec.keys, key=lambda k: k.name)
        document["keys"] = [{"name": k.name, "owner": k.owner, "mode": k.mode} for k in keys]
    return document


def kbs_addresses(spec: JobSpec) -> list[str]:
    """Return `host:port` of each KBS at which a key of the job lies."""
    urls = {v.owner for v in spec.volumes if v.manifest}
    if not urls:
        return []
    from strongroom.attest.kbs import KBSKey  # noqa: PLC0415  # few jobs have such a key

    return sorted({KBSKey.parse(url).address for url in urls})


def doors(spec: JobSpec) -> dict[str, object]:
    """Return what a launch file says of the way to each such KBS, for the operator to edit: nothing in most jobs."""
    return {"doors": {at: at for at in kbs_addresses(spec)}} if kbs_addresses(spec) else {}


def _volume(volume: Volume) -> dict[str, object]:
    document: dict[str, object] = {
        "name": volume.name,
        "dataset": volume.dataset,
        "key": volume.key,
        "owner": volume.owner,
        "mode": volume.mode,
    }
    if volume.epoch is not None:
        document["epoch"] = str(volume.epoch)
    if volume.visible_names:
        document["names"] = "visible"
    if volume.manifest:
        document |= {"manifest": volume.manifest, "certificate": volume.certificate}
    return document


def _digest(path: Path) -> str:
    try:
        return sha256_id(path.read_bytes())
    except OSError as exc:
        raise InputError(f"{path} is not readable: {exc.strerror}", hint="check the program's path") from exc


_FORMS = {
    str: "a text", list: "a list of texts", dict: "a table", bool: "true or false", int: "a whole number from 0",
}  # fmt: skip
_JOB: dict[str, type] = {
    **dict.fromkeys(("name", "workload", "program", "main_class", "enclave", "target", "venv"), str),
    "arguments": list, "files": list, "environment": dict, "engine": dict, "publish_on_failure": bool,
    "checkpoint_s": int,
}  # fmt: skip
_VOLUME: dict[str, type] = {
    **dict.fromkeys(("name", "path", "key", "mode", "manifest", "certificate"), str), "epoch": int,
    "visible_names": bool,
}  # fmt: skip
_KEY: dict[str, type] = {"name": str, "mode": str}


def load_spec(path: Path) -> tuple[dict[str, object], list[dict[str, object]], list[dict[str, object]]]:
    """Return the `[job]` table, the `[[volume]]` and the `[[key]]` tables of a job file, each value of its kind.

    Raises:
        InputError: Not readable, not TOML, a field that does not exist, or a value of another kind.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as exc:
        raise InputError(f"{path} is not readable: {exc.strerror}", hint="name a job file") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} is not TOML: {exc}") from exc
    _known(path, "", document, {"job", "volume", "key", "sandbox", "limits", "sgx", "cvm"})
    job, volumes, keys = document.get("job", {}), document.get("volume", []), document.get("key", [])
    if not isinstance(job, dict) or not isinstance(volumes, list) or not isinstance(keys, list):
        raise InputError(f"{path}: expected a table [job] and tables [[volume]] and [[key]]")
    for where, found, kinds in (("job", [job], _JOB), ("volume", volumes, _VOLUME), ("key", keys, _KEY)):
        for one in found:
            _known(path, where, one, kinds)
            _check_kinds(path, one, kinds)
    for name, kind in (("sandbox", Sandbox), ("limits", Limits), ("sgx", Sgx), ("cvm", Cvm)):
        table = document.get(name, {})
        _known(path, name, table, {f.name for f in fields(kind)})
        job = {**job, name: table}
    return job, volumes, keys


def _check_kinds(path: Path, found: Mapping[str, object], kinds: Mapping[str, type]) -> None:
    for name, value in found.items():
        kind, items = kinds[name], value if isinstance(value, list) else []
        below = isinstance(value, int) and value < 0
        if type(value) is not kind or below or not all(isinstance(v, str) for v in items):
            raise InputError(f"{path}: {name} is {_FORMS[kind]}, got {value!r}")


def _known(path: Path, table: str, found: object, known: Iterable[str]) -> None:
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a table [{table}]")
    unknown = sorted(set(found) - set(known))
    if unknown:
        where = f"[{table}] " if table else ""
        raise InputError(
            f"{path}: {where}has no field {unknown[0]!r}", hint=f"known fields: {', '.join(sorted(known))}"
        )
