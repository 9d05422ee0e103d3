"""What servers are made of: Debian packages and source distributions, fetched once and kept between runs."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import tarfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

CACHE = Path.home() / ".cache/strongroom-tests"
_INDEX = "https://pypi.org/simple/"


def apt_install(*packages: str) -> None:
    """Install Debian packages, one process after the other; the error says what apt said."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt refuses a second one at a time
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *words], capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, f"apt-get install {' '.join(packages)}: {done.stderr[-1000:]}"


def need_fuse() -> None:
    """Make sure that libfuse is there, which mounting a store needs."""
    if not any(list(Path("/").glob(f"{lib}/*/libfuse.so.2")) for lib in ("lib", "usr/lib")):
        apt_install("libfuse2")


def java() -> str:
    """Return a Java 17: Hadoop 2.7 runs on it with a few flags."""
    found = sorted(Path("/usr/lib/jvm").glob("java-17-openjdk-*/bin/java"))
    if not found:
        apt_install("openjdk-17-jre-headless")
        found = sorted(Path("/usr/lib/jvm").glob("java-17-openjdk-*/bin/java"))
    return str(found[0])


def debian_file(package: str, path: str) -> Path:
    """Return one file of a Debian package that is not installed."""
    folder = CACHE / package
    if not (folder / path).exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False, timeout=200
        )
        if done.returncode:  # a machine whose package lists are old or not there
            subprocess.run(["apt-get", "update", "-qq"], check=True, timeout=200)
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, timeout=200)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", str(archive), str(folder)], check=True, timeout=60)
    return (folder / path).resolve()


def npm_package(name: str, version: str) -> Path:
    """Return the folder of a package from npm; nothing in it is run."""
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        if shutil.which("npm") is None:
            apt_install("npm")
        CACHE.mkdir(parents=True, exist_ok=True)
        words = ["npm", "pack", "--silent", "--pack-destination", str(CACHE), f"{name}@{version}"]
        subprocess.run(words, check=True, capture_output=True, timeout=300)
        archive, beside = CACHE / f"{name}-{version}.tgz", CACHE / f".{name}-{version}"
        shutil.rmtree(beside, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(beside, filter="data")
        beside.rename(folder)
        archive.unlink()
    return folder / "package"


def sdist_files(project: str, version: str, patterns: Sequence[str]) -> Path:
    """Return a folder with the files of a source distribution whose names match one of the patterns.

    pip would build what it downloads, and old packages do not build any more.
    """
    folder = CACHE / f"{project}-{version}"
    if not folder.exists():
        with urllib.request.urlopen(f"{_INDEX}{project}/", timeout=60) as answer:
            page = answer.read().decode()
        name = rf"{project}-{re.escape(version)}\.(?:tar\.gz|zip)"
        found = re.search(rf'href="([^"#]*/{name})#sha256=([0-9a-f]{{64}})"', page)
        assert found, f"{_INDEX}{project}/ does not list version {version}"
        CACHE.mkdir(parents=True, exist_ok=True)
        archive, beside = CACHE / found[1].rsplit("/", 1)[1], CACHE / f".{project}-{version}"
        address = urllib.parse.urljoin(f"{_INDEX}{project}/", found[1])
        with urllib.request.urlopen(address, timeout=300) as answer, open(archive, "wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)
        with open(archive, "rb") as raw:
            assert hashlib.file_digest(raw, "sha256").hexdigest() == found[2], f"{archive} is not what the index lists"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for name, source in _members(archive):
            if any(re.fullmatch(pattern, name) for pattern in patterns):
                with open(beside / name, "wb") as out:
                    shutil.copyfileobj(source, out)
        beside.rename(folder)
        archive.unlink()
    return folder


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name, without its folders, and content of each file in a source distribution."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as pack:
            for info in pack.infolist():
                if not info.is_dir():
                    with pack.open(info) as source:
                        yield Path(info.filename).name, source
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                with tar.extractfile(member) as source:  # type: ignore[union-attr]
                    yield Path(member.name).name, source
