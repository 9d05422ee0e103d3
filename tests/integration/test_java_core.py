"""The Java part against Python: formats, refusals, and what the file system inherits."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from tests.fakes import java_support
from tests.fakes.java_agent import CHUNK, PREFIX, FakeAgent, FakeVolume, derive, header, sealed_size

SIZES = [0, 1, 16383, 16384, 16385, 2 * 16384, 2**20 + 7]
KEY = bytes(range(32))
HEADER = header("sales", 3, b"d" * 16, b"r" * 16)


def python_seals(plain: bytes) -> bytes:
    sealer = Cobblestone256Encryptor(KEY, HEADER)
    return HEADER + sealer.update(plain) + sealer.finalize()


def python_opens(sealed: bytes) -> bytes:
    opener = Cobblestone256Decryptor(KEY, sealed[:128])
    return opener.update(sealed[128:]) + opener.finalize()


def java_files(commands: list[str]) -> list[str]:
    return java_support.checks("files", lines="\n".join(commands) + "\n").splitlines()


def test_java_opens_what_python_seals_and_the_reverse(tmp_path: Path) -> None:
    commands = []
    for size in SIZES:
        plain = os.urandom(size)
        sealed = python_seals(plain)
        assert len(sealed) == sealed_size(size)
        (tmp_path / f"{size}.plain").write_bytes(plain)
        (tmp_path / f"{size}.sealed").write_bytes(sealed)
        secret, commitment = derive(KEY, sealed[:PREFIX])
        assert commitment == sealed[152:PREFIX]
        commands.append(f"open {secret.hex()} {tmp_path}/{size}.sealed {tmp_path}/{size}.opened {size} {size}")
        prefix = HEADER + os.urandom(24)
        secret, commitment = derive(KEY, prefix)
        out = f"{tmp_path}/{size}.java"
        commands.append(f"seal {secret.hex()} {(prefix + commitment).hex()} {tmp_path}/{size}.plain {out} {size}")
        commands.append(f"open {secret.hex()} {out} {tmp_path}/{size}.again {size} {size}")
    assert java_files(commands) == ["ok"] * len(commands)
    for size in SIZES:
        plain = (tmp_path / f"{size}.plain").read_bytes()
        assert (tmp_path / f"{size}.opened").read_bytes() == plain
        assert (tmp_path / f"{size}.again").read_bytes() == plain
        assert python_opens((tmp_path / f"{size}.java").read_bytes()) == plain


def test_java_refuses_changed_files(tmp_path: Path) -> None:
    size = 3 * CHUNK + 100
    sealed = python_seals(os.urandom(size))
    secret, _ = derive(KEY, sealed[:PREFIX])
    chunk = CHUNK + 16

    def flip(at: int) -> bytes:
        return sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]

    swapped = sealed[:PREFIX] + sealed[PREFIX + chunk : PREFIX + 2 * chunk] + sealed[PREFIX : PREFIX + chunk]
    bad = {
        "flip-first": flip(PREFIX),
        "flip-middle": flip(PREFIX + chunk + 5),
        "flip-tag": flip(len(sealed) - 1),
        "cut-border": sealed[: PREFIX + 3 * chunk],
        "cut-border-2": sealed[: PREFIX + chunk],
        "cut-one": sealed[:-1],
        "cut-prefix": sealed[:PREFIX],
        "empty": b"",
        "trailing": sealed + b"\0",
        "trailing-chunk": sealed + sealed[PREFIX : PREFIX + chunk],
        "swapped": swapped + sealed[PREFIX + 2 * chunk :],
        "full-for-last": sealed[: PREFIX + 3 * chunk] + sealed[PREFIX : PREFIX + 116],
    }
    commands, names = [], []
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        commands.append(f"open {secret.hex()} {tmp_path}/{name} {tmp_path}/out {size} 1")
        names.append(name)
    # A size that the file does not have, as a lying agent or manifest would give it.
    (tmp_path / "good").write_bytes(sealed)
    for lie in (size - 1, size + 1, size - CHUNK, size + CHUNK, 0, 3 * CHUNK):
        commands.append(f"open {secret.hex()} {tmp_path}/good {tmp_path}/out {lie} 1")
        names.append("good")
    answers = java_files(commands)
    for name, answer in zip(names, answers, strict=True):
        assert answer.startswith("refused"), (name, answer)
        assert name in answer, (name, answer)
    assert not (tmp_path / "out").exists()


def test_every_inherited_method_has_a_reason() -> None:
    found = set(java_support.checks("methods").splitlines())
    allowed: dict[str, str] = {}
    reason = ""
    for line in (java_support.ROOT / "java/inherited.txt").read_text().splitlines():
        if line.startswith("# "):
            reason = line
        elif line and not line.startswith("#"):
            assert reason, f"{line} stands under no reason"
            assert line not in allowed, f"{line} stands twice"
            allowed[line] = reason
    wild = tuple(line[:-1] for line in allowed if line.endswith("*"))
    missing = {m for m in found - allowed.keys() if not m.startswith(wild)}
    assert not missing, "neither overridden nor in java/inherited.txt:\n" + "\n".join(sorted(missing))
    stale = {m for m in allowed if not m.endswith("*")} - found
    assert not stale, "in java/inherited.txt, but overridden or gone:\n" + "\n".join(sorted(stale))


@pytest.fixture
def volumes(tmp_path: Path) -> list[FakeVolume]:
    made = []
    for name, mode in (("rw", "rw"), ("ro", "ro")):
        physical = tmp_path / "sealed" / name
        (physical / ".dataset").mkdir(parents=True)
        (physical / ".dataset/id.json").write_text("{}")
        made.append(FakeVolume(name=name, logical=f"{tmp_path}/work/{name}", physical=physical, mode=mode))
    (tmp_path / "outside").mkdir()
    return made


def test_volume_behaves_as_hadoop_expects(tmp_path: Path, volumes: list[FakeVolume]) -> None:
    with FakeAgent(tmp_path / "agent.sock", volumes) as agent:
        out = java_support.checks(
            "volume", agent.path, volumes[0].logical, volumes[1].logical, tmp_path / "outside", volumes[0].physical
        )
    assert out.split()[-1] == "ok"
    assert not volumes[0].open
    assert not (tmp_path / "work").exists()
    on_disk = {p.relative_to(volumes[0].physical).as_posix() for p in volumes[0].physical.rglob("*") if p.is_file()}
    on_disk.remove(".dataset/id.json")
    assert on_disk == set(volumes[0].files)
    for path in on_disk:
        data = (volumes[0].physical / path).read_bytes()
        assert len(data) == sealed_size(volumes[0].files[path][0])
        opener = Cobblestone256Decryptor(agent.key, data[:128])
        assert len(opener.update(data[128:]) + opener.finalize()) == volumes[0].files[path][0]


@pytest.mark.skipif(shutil.which("javac") is None, reason="no javac here: the rebuild cannot be compared")
def test_committed_jars_are_what_the_sources_give(tmp_path: Path) -> None:
    script, jars = java_support.ROOT / "java/build.sh", java_support.jars()
    version = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=True).stdout
    if not version.startswith("javac 17."):
        pytest.skip(f"the committed jars are built by javac 17, here is {version}")
    subprocess.run([script, "--check", jars, java_support.MAIN_JAR], check=True)
    environment = os.environ | {"SOURCES": "test", "MAIN_JAR": str(java_support.MAIN_JAR)}
    subprocess.run([script, "--check", jars, java_support.CHECKS_JAR], check=True, env=environment)
    for name in ("one.jar", "two.jar"):
        subprocess.run([script, jars, tmp_path / name], check=True)
    assert (tmp_path / "one.jar").read_bytes() == (tmp_path / "two.jar").read_bytes()
