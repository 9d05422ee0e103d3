"""What SGX enclaves under a LibOS share: which jobs can run there, what they see, how large they are.

A LibOS has no kernel of its own: no FUSE, no network namespace, no landlock, and its loopback is the host's. What a job
needs and a LibOS lacks is refused here with the reason (docs/decisions/0018-guests-under-a-libos.md).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import MappingProxyType

from strongroom.errors import InputError
from strongroom.jobs.enclaves.size import Needs, loaded_mb, needs
from strongroom.jobs.environments import plain_name
from strongroom.jobs.plan import LaunchPlan
from strongroom.jobs.runtime_env import PYTHON
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import JobSpec, doors

__all__ = [
    "GLIBC",
    "GUEST_CODE",
    "SERVICE_CODE",
    "SERVICE_PATHS",
    "HardwareEnclave",
    "Needs",
    "begin_bundle",
    "check_job",
    "link_volumes",
    "loaded_mb",
    "needs",
    "place_files",
    "select_files",
    "select_service",
    "walk_files",
    "write_launch",
]

GUEST_CODE = (
    "import sys; sys.path.insert(0, '/strongroom/guest'); from strongroom.guest.libos import main; sys.exit(main())"
)
_SERVICE_PACKAGES = {
    "cryptography", "dcap_qvl", "httptools", "msgspec", "shamir_mnemonic", "sqlalchemy", "starlette", "uvicorn"
}  # fmt: skip
JOB_FOLDER = "/strongroom/job"
_SITE = f"/opt/env/lib/{PYTHON}/site-packages"
SERVICE_PATHS = ["/opt/strongroom", _SITE]
SERVICE_CODE = f"import sys; sys.path += {SERVICE_PATHS}; from strongroom.service.main import main; sys.exit(main())"
_JARS = f"{_SITE}/pyspark/jars/"
GLIBC = re.compile(
    r"(ld-linux-x86-64|libc|libm|libmvec|libdl|libpthread|librt|libutil|libresolv|libanl|libnss_\w+|libthread_db)"
    r"\.so\.\d+"
)
"""The LibOS brings its own C library; two of them do not go together. It has no libcrypt, which is another project's.

Source: Gramine, subprojects/packagefiles/glibc-2.40/meson.build.
"""
_FORKING = {"multiprocessing", "subprocess", "concurrent", "joblib", "torch.multiprocessing"}
_TESTING_EXTRA = re.compile(r"(all|test|tests|testing|dev|doc|docs|lint)([_-].*)?")


@dataclass(frozen=True, slots=True)
class HardwareEnclave:
    """What builds bundles for a kind of hardware enclave has.

    Attributes:
        runtimes: Where runtimes come from.
        identity_pem: The trust service's identity certificate; the guest checks it against the measured SPKI id.
    """

    runtimes: Runtimes
    identity_pem: str


def begin_bundle(
    plan: LaunchPlan,
    folder: Path,
    kind: str,
    runtimes: Runtimes,
    identity_pem: str,
    *,
    forks: bool,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Path, Needs, dict[str, str]]:
    """Write what is measured of a job, and what the operator may edit, below `folder`.

    Args:
        plan: The job.
        folder: Of all bundles.
        kind: The enclave kind.
        runtimes: Where runtimes come from.
        identity_pem: The trust service's identity certificate.
        forks: See `check_job`.
        texts: More measured files, by path inside.

    Returns:
        The bundle's folder; how large the enclave is; name below `root` in it -> SHA-256, of every measured file.

    Raises:
        InputError: The job needs what a LibOS lacks, or does not fit its enclave.
    """
    check_job(plan, kind, forks=forks)
    files = select_files(plan, runtimes)
    size = needs(plan, files)
    target = folder / f"{kind}-{plan.job.removeprefix('sha256:')[:16]}"
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    digests = place_files(target / "root", files, {f"{JOB_FOLDER}/init-data.toml": plan.init_data, **texts})
    (target / "job.json").write_text(json.dumps(dict(plan.document), indent=1, ensure_ascii=False))
    write_launch(target, "https://127.0.0.1:8701", identity_pem, plan.spec)
    link_volumes(target, plan.spec)
    return target, size, digests


def check_job(plan: LaunchPlan, kind: str, *, forks: bool) -> None:
    """Return only if a LibOS can run the job as it is planned.

    Args:
        plan: The job.
        kind: The enclave kind, for messages.
        forks: Whether the LibOS can fork, and its processes each have files of their own.

    Raises:
        InputError: With the one thing that is missing there.
    """
    spec = plan.spec
    reason, hint = "", ""
    if plan.command.worker is not None:
        reason = "a job on several machines makes a network interface of its own, and a LibOS has none"
    elif spec.workload == "torchrun":
        reason = "torchrun's processes meet over loopback TCP, which leaves the enclave in the clear"
        hint = "one process: workload python runs the same script"
    elif spec.workload == "spark" and spec.program is not None and spec.program.suffix == ".py":
        reason = "PySpark talks to its JVM over loopback TCP (Py4J), which leaves the enclave in the clear"
        hint = "a confidential VM (enclave cvm) runs PySpark; a jar with main_class runs here"
    elif spec.checkpoint_s:
        reason = "checkpoints are taken of a running program's files, and the guest does not see those there"
    elif not spec.sandbox.network:
        reason = "a LibOS cannot take the host's network away from a program: expected [sandbox] network = true"
        hint = "the owner then sees in the job that the program could use it"
    elif spec.inline and "-m" in spec.inline:
        reason = "the files of a module are not known before it runs"
        hint = "name a program"
    elif not forks and (found := sorted(_imports(spec) & _FORKING)):
        reason = f"{kind} has no fork, and the program imports {found[0]}"
        hint = "enclave gramine can fork"
    elif (spec.volumes or spec.keys) and not spec.sgx.unsafe_program_has_keys:
        reason = "every process of the enclave can attest, so the program can get the job's named keys for itself"
        hint = "[sgx] unsafe_program_has_keys = true if it is trusted with them; enclave cvm keeps them from it"
    elif kind == "occlum" and (spec.volumes or spec.keys) and not spec.sgx.unsafe_host_has_keys:
        reason = "whoever runs the machine can run other files under this measurement, and get the job's named keys"
        hint = "[sgx] unsafe_host_has_keys = true if they may have them; gramine and cvm keep them from the host"
    if reason:
        raise InputError(f"enclave kind {kind}: {reason}", hint=hint)


def select_files(plan: LaunchPlan, runtimes: Runtimes) -> dict[str, Path]:
    """Return path inside -> file outside, for every file that the job needs; links are followed inside.

    Of Python's packages: those that the program imports, what they require, and their extras where installed, by the
    packages' own metadata; all of them if the job brings an environment along. Of the JVM's: the JDK and Spark's jars.
    """
    spec, places = plan.spec, runtimes.places(plan.command.runtimes, plan.spec.venv)
    found, env = _tree(places), places["/opt/env"]
    if "/opt/jdk" in places:
        keep = {p for p in found if not p.startswith("/opt/env/") or p.startswith(_JARS)}
        keep -= {p for p in keep if p.startswith("/usr/share/zoneinfo/")}  # the JDK has time zones of its own
    elif spec.venv is not None:
        keep = set(found)
    else:
        packages = _packages(env / _SITE.removeprefix("/opt/env/"), _imports(spec))
        keep = {p for p in found if not p.startswith(f"{_SITE}/") or p in packages}
    files = {p: found[p] for p in keep if not GLIBC.fullmatch(os.path.basename(p))}
    return files | {f"/app/{path.name}": path.resolve() for path in spec.code}


def select_service(runtimes: Runtimes, *, libc: bool) -> dict[str, Path]:
    """Return path inside -> file outside, for every file that the trust service needs, with or without a C library."""
    base, env = runtimes.base(), runtimes.env()
    places = {"/usr": base / "usr", "/etc": base / "etc", "/opt/python": runtimes.python(), "/opt/env": env}
    here = Path(__file__).parent.parent.parent
    places |= {f"/opt/strongroom/strongroom/{name}": here / name for name in ("attest", "crypto", "kms", "service")}
    places |= {f"/opt/strongroom/strongroom/{file.name}": file for file in here.glob("*.py")}
    packages = _packages(env / _SITE.removeprefix("/opt/env/"), _SERVICE_PACKAGES, extras=False)
    found = _tree(places)
    keep = {p for p in found if not p.startswith(f"{_SITE}/") or p in packages}
    return {p: found[p] for p in keep if libc or not GLIBC.fullmatch(os.path.basename(p))}


def place_files(root: Path, files: Mapping[str, Path], texts: Mapping[str, str]) -> dict[str, str]:
    """Make the folder `root` hold exactly `files` and `texts` by their path inside; return name there -> SHA-256.

    Files are links to the same bytes, or copies. Each is read once it is there, and no earlier digest is believed:
    whoever could write to a cache of them would choose what hardware measures. What changes later does not open inside.

    Raises:
        InputError: A name that a measured list cannot carry, or a file that is not readable.
    """
    for name in (*files, *texts):
        if not name.isprintable():
            raise InputError(f"{name!r} has a character that no measured file may have in its name")
    made = {root / name[1:] for name in (*files, *texts)}
    for name, source in files.items():
        target = root / name[1:]
        if os.path.lexists(target) and os.path.samestat(target.lstat(), source.stat()):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
            shutil.copystat(source, target)
    for name, text in texts.items():
        target = root / name[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
    for folder, _, names in os.walk(root):
        for name in names:
            if (old := Path(folder) / name) not in made:
                old.unlink()
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = list(pool.map(_content, sorted(made)))
    except OSError as exc:
        raise InputError(f"{exc.filename} cannot be measured: {exc.strerror}") from exc
    return {path.relative_to(root).as_posix(): digest for path, digest in zip(sorted(made), digests, strict=True)}


def _content(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_launch(folder: Path, service: str, identity_pem: str, spec: JobSpec) -> None:
    """Write the host's word to the guest, unless it is there: the operator's to edit, addresses and no more."""
    launch = folder / "launch" / "launch.json"
    if not launch.exists():
        launch.parent.mkdir(exist_ok=True)
        said = {"service": service, "identity": identity_pem, **doors(spec)}
        launch.write_text(json.dumps(said, indent=1))


def link_volumes(folder: Path, spec: JobSpec) -> None:
    """Make `sealed/NAME` in `folder` lead to each volume.

    Raises:
        InputError: A volume is no folder of this machine.
    """
    (folder / "sealed").mkdir(exist_ok=True)
    for volume in spec.volumes:
        if not isinstance(volume.location, Path):
            raise InputError(f"volume {volume.name} lies in a store: mount it, and name the folder")
        if not volume.location.is_dir():
            raise InputError(f"volume {volume.name}: {volume.location} is not a folder")
        place = folder / "sealed" / volume.name
        place.unlink(missing_ok=True)
        place.symlink_to(volume.location)


def walk_files(place: str, source: Path) -> Iterator[tuple[str, Path]]:
    """Yield path inside and outside of `source`, if it is a file, or of every file and link below it."""
    if source.is_file():
        yield place, source
    for folder, folders, names in os.walk(source):
        if "__pycache__" in folders:  # byte code differs from one compilation to the next: builds would too
            folders.remove("__pycache__")
        inside = os.path.normpath(os.path.join(place, os.path.relpath(folder, source)))
        for name in (*names, *(f for f in folders if os.path.islink(os.path.join(folder, f)))):
            yield f"{inside}/{name}", Path(folder, name)


def _tree(places: Mapping[str, Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    links: dict[str, str] = {}
    for inside, path in (found for place, source in places.items() for found in walk_files(place, source)):
        if path.is_symlink() and inside not in places:
            links[inside] = os.path.normpath(os.path.join(os.path.dirname(inside), os.readlink(path)))
        else:
            files[inside] = path
    for _ in range(8):  # a link may lead to a link
        for link, target in links.items():
            if target in files:
                files[link] = files[target]
    return files


def _imports(spec: JobSpec) -> set[str]:
    sources = [path.read_bytes() for path in spec.code if path.suffix == ".py"]
    sources += [spec.inline[1].encode()] if spec.inline[:1] == ("-c",) else []
    found: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError) as exc:
            raise InputError(f"the program is not Python: {exc}") from exc
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def _packages(site: Path, imported: set[str], *, extras: bool = True) -> set[str]:
    installed = {plain_name(d.metadata["Name"]): d for d in distributions(path=[str(site)])}
    owners: dict[str, set[str]] = {}
    for name, found in installed.items():
        for file in found.files or ():
            owners.setdefault(file.parts[0].partition(".")[0], set()).add(name)
    first = {name for module in imported for name in owners.get(module, ())}
    waiting, chosen = [(name, extras) for name in first], set[str]()
    while waiting:
        name, extras = waiting.pop()
        if name in installed and name not in chosen:
            chosen.add(name)
            waiting += [(other, False) for other in _required(installed[name], extras=extras)]
    kept = set()
    for name in chosen:
        for file in installed[name].files or ():
            if ".." not in file.parts:
                kept.add(f"{_SITE}/{file}")
    return kept


def _required(found: Distribution, *, extras: bool) -> Iterable[str]:
    for line in found.requires or ():
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name and (extra is None or (extras and not _TESTING_EXTRA.fullmatch(extra[1].lower()))):
            yield plain_name(name[0])
