"""Environments that jobs bring along: Python packages in a folder that is measured with the job.

An environment is *built* from a requirements file that names a hash for every package: the same file gives the same
digest, whoever builds it where, for one version of Python and one platform. Nothing is built from sources, and nothing
is kept that names the machine. What pip fetches is checked by those hashes, so the package index is not trusted.
"""

from __future__ import annotations

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
from strongroom.jobs.runtimes import BUILT_FILE, finish_env

__all__ = ["Environment", "build", "inspect", "lock"]

_FORMAT = 1
_HASHED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[^\]]*\])?==\S+(\s*;.*?)?(\s+--hash=sha256:[0-9a-f]{64})+")
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
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
        requirements: `sha256:<hex>` of the requirements file.
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
        requirements: As pip takes them: `pandas>=2`, or `-r FILE`.

    Raises:
        InputError: pip finds none that fit together; says what pip says.
    """
    words = ["install", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", "-", *requirements]
    report = parse_json(_pip(words).encode(), "pip's report", max_bytes=64 << 20)
    lines = []
    for item in report["install"] if isinstance(report, dict) else []:
        found = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if not found:
            raise InputError(f"{name} {version} comes with no hash", hint="take it from a package index")
        lines.append(f"{name}=={version} --hash=sha256:{found}")
    return "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def build(requirements: Path, folder: Path) -> Environment:
    """Install what `requirements` lists into `folder`, which must not exist, and return what came of it.

    Raises:
        InputError: A package has no hash or another one, there is no wheel of it, or the folder exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists", hint="an environment is never changed: remove it or name another folder")
    text = _read_locked(requirements)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        packages = beside / "lib" / _python() / "site-packages"
        packages.mkdir(parents=True)
        words = ["install", "--require-hashes", "--only-binary", ":all:", "--no-compile", "--target", str(packages)]
        _pip([*words, "-r", str(requirements)])
        _forget_machine(packages)
        finish_env(beside)
        about = {"format": _FORMAT, "python": _python().removeprefix("python"), "requirements": sha256_id(text)}
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


def _python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _read_locked(requirements: Path) -> bytes:
    try:
        raw = requirements.read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{requirements} is not readable: {exc}", hint="name a requirements file") from exc
    lines = [line.partition(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    for line in lines:
        if line and not line.startswith("#") and not _HASHED.fullmatch(line):
            raise InputError(
                f"{requirements}: {line[:100]!r} has no version with hashes",
                hint=f"strongroom env lock -r {requirements} --output locked.txt",
            )
    return raw


def _pip(words: Sequence[str]) -> str:
    environment = {n: v for n, v in os.environ.items() if n not in ("PIP_TARGET", "PIP_PREFIX", "PIP_USER")}
    done = subprocess.run([sys.executable, *_PIP, *words], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.partition("ERROR: ")[2] or done.stderr[-300:]
        what = " ".join(said.replace("ERROR: ", "").split())[:1000]
        raise InputError(f"pip: {what}", hint="check names, versions and hashes, and that the index is reached")
    return done.stdout


def _forget_machine(packages: Path) -> None:
    # Scripts name the interpreter of the machine that installed them; what lists them goes with them.
    shutil.rmtree(packages / "bin", ignore_errors=True)
    for record in packages.glob("*.dist-info/RECORD"):
        kept = [line for line in record.read_text().splitlines() if not re.match(r'"?(\.\./)*bin/', line)]
        record.write_text("".join(f"{line}\n" for line in sorted(kept)))
    for cached in packages.rglob("__pycache__"):
        shutil.rmtree(cached)


def _compile(folder: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", _COMPILE, str(folder)], env=environment, capture_output=True, check=False)
