"""Environments that jobs bring along: Python packages in a folder that is measured with the job.

An environment is *built* from a requirements file that names version and hash of one wheel for every package: the same
file gives the same digest, whoever builds it where, for one version of Python. No code of a package runs meanwhile, and
nothing is kept that names the machine. What pip fetches is checked by those hashes, so the index is not trusted. The
file is somebody else's: pip reads only lines that are written anew here from what was understood of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from strongroom._encoding import parse_json, sha256_id
from strongroom.attest.simulated.measure import tree_digest
from strongroom.errors import InputError
from strongroom.jobs.runtime_env import BUILT_FILE, PYTHON, finish_env, forget_machine

__all__ = ["Environment", "build", "inspect", "lock", "plain_name"]

_FORMAT = 1
_LOCKED = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[A-Za-z0-9._,-]+\])?==[A-Za-z0-9.!+_-]+\s+--hash=sha256:[0-9a-f]{64}"
)
_WANTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?\s*[A-Za-z0-9.!+_*<>=~, -]*")
# -P: a `pip.py` in the current folder is not pip.
_PIP = ("-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
# One process, one order, one seed: what `marshal` writes depends on what the process has seen before.
_COMPILE = (
    "import compileall, py_compile, sys; compileall.compile_dir(sys.argv[1], quiet=2, stripdir=sys.argv[1], "
    "prependdir='/opt/env', invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A built environment.

    Attributes:
        folder: Where it lies; the enclave shows it at /opt/env.
        digest: Of everything in it, 64 hex digits; what a measurement is made from.
        python: Version it was built for, such as `3.11`.
        requirements: `sha256:<hex>` of the requirements, comments and line breaks left out.
        packages: Name and version of each, sorted.
    """

    folder: Path
    digest: str
    python: str
    requirements: str
    packages: tuple[tuple[str, str], ...]


def lock(requirements: Sequence[str]) -> str:
    """Return a requirements file with version and hash of each package that `requirements` need, on this platform.

    Args:
        requirements: Names with bounds, such as `pandas>=2`; no addresses, files or options.

    Raises:
        InputError: Something else, or pip finds none that fit together; says what pip says.
    """
    for wanted in requirements:
        if not _WANTED.fullmatch(wanted):
            raise InputError(f"{wanted[:100]!r} is not a package with bounds", hint="strongroom env lock 'pandas>=2'")
    words = ["install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", "-", *requirements]
    report = parse_json(_pip(words).encode(), "pip's report", max_bytes=64 << 20)
    lines = []
    for item in report["install"] if isinstance(report, dict) else []:
        found = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if not found or item.get("is_direct"):
            raise InputError(f"{name} {version} does not come from a package index", hint="leave out what needs it")
        lines.append(f"{name}=={version} --hash=sha256:{found}")
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def build(requirements: Path, folder: Path) -> Environment:
    """Install what `requirements` lists into `folder`, which must not exist, and return what came of it.

    Raises:
        InputError: A package has no hash or another one, there is no wheel of it, or the folder exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists", hint="an environment is never changed: remove it or name another folder")
    lines = _read_locked(requirements)
    text = "".join(f"{line}\n" for line in sorted(lines.values()))
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        packages = beside / "lib" / PYTHON / "site-packages"
        packages.mkdir(parents=True)
        understood = beside / "requirements.txt"
        understood.write_text(text)
        words = ["install", "--require-hashes", "--only-binary", ":all:", "--no-compile", "--target", str(packages)]
        _pip([*words, "-r", str(understood)])
        understood.unlink()
        there = {plain_name(d.metadata["Name"]) for d in distributions(path=[str(packages)])}
        if there != set(lines):
            raise InputError(f"pip installed {sorted(there)}, expected {sorted(lines)}")
        _remove_scripts(packages)
        forget_machine(packages)
        finish_env(beside)
        about = {
            "format": _FORMAT,
            "python": PYTHON.removeprefix("python"),
            "requirements": sha256_id(text.encode()),
        }
        (beside / BUILT_FILE).write_text(json.dumps(about, indent=1) + "\n")
        _compile(beside)
        beside.chmod(0o755)
        beside.rename(folder)
    except OSError as exc:
        raise InputError(f"the environment {folder} cannot be built: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return inspect(folder)


def inspect(folder: Path, cache: Path | None = None) -> Environment:
    """Return what the built environment in `folder` is.

    Args:
        folder: Of `build`.
        cache: Digest cache; None reads every byte.

    Raises:
        InputError: `build` did not make it.
    """
    folder = folder.resolve()  # a link's own digest would be that of its text
    try:
        about = parse_json((folder / BUILT_FILE).read_bytes(), BUILT_FILE)
    except OSError as exc:
        raise InputError(f"{folder} is no built environment", hint=f"strongroom env build FILE {folder}") from exc
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise InputError(f"{folder}/{BUILT_FILE} is not of format {_FORMAT}")
    python = str(about.get("python"))
    there = distributions(path=[str(folder / "lib" / f"python{python}" / "site-packages")])
    return Environment(
        folder=folder,
        digest=tree_digest(folder, cache).hex(),
        python=python,
        requirements=str(about.get("requirements")),
        packages=tuple(sorted((d.metadata["Name"], d.version) for d in there)),
    )


def _read_locked(requirements: Path) -> dict[str, str]:
    """Return plain name -> line, for each package of a requirements file."""
    try:
        text = "\n".join(requirements.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{requirements} is not readable: {exc}", hint="name a requirements file") from exc
    # pip ends a comment at its line's end, whatever it ends in: comments go before lines are joined.
    without = "\n".join(re.sub(r"(^|\s)#.*", "", line) for line in text.split("\n"))
    lines: dict[str, str] = {}
    for line in without.replace("\\\n", " ").split("\n"):
        said = " ".join(line.split())
        if not said:
            continue
        found = _LOCKED.fullmatch(said)
        if found is None or plain_name(found["name"]) in lines:
            raise InputError(
                f"{requirements}: {said[:100]!r}: expected each package once, as NAME==VERSION --hash=sha256:HEX",
                hint="`strongroom env lock` writes such files",
            )
        lines[plain_name(found["name"])] = said
    return lines


def plain_name(name: str) -> str:
    """Return the one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(words: Sequence[str]) -> str:
    if importlib.util.find_spec("pip") is None:
        raise InputError("there is no pip beside strongroom", hint="python -m ensurepip")
    # How to reach an index may be said by the environment; what is done and where to, not.
    kept = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT", "PIP_PROXY", "PIP_CACHE_DIR")
    environment = {n: v for n, v in os.environ.items() if n in kept or not n.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run([sys.executable, *_PIP, *words], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.partition("ERROR: ")[2] or done.stderr[-300:]
        what = " ".join(said.replace("ERROR: ", "").split())[:1000]
        raise InputError(f"pip: {what}", hint="check names, versions and hashes, and that the index is reached")
    return done.stdout


def _remove_scripts(packages: Path) -> None:
    for record in packages.glob("*.dist-info/RECORD"):
        for line in record.read_text().splitlines():
            if script := re.match(r'"?\.\./\.\./bin/([^,"/]+)', line):
                (packages / "bin" / script[1]).unlink(missing_ok=True)
    if (packages / "bin").is_dir() and not any((packages / "bin").iterdir()):
        (packages / "bin").rmdir()


def _compile(folder: Path) -> None:
    command = [sys.executable, "-P", "-c", _COMPILE, str(folder)]
    done = subprocess.run(command, env={"PYTHONHASHSEED": "0"}, capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"the environment's byte code could not be made: the compiler ended with {done.returncode}")
