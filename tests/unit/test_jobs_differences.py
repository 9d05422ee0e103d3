"""Bundles that somebody else built are compared, whatever is in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from strongroom.client.seen import Seen
from strongroom.errors import InputError, IntegrityError
from strongroom.jobs.differences import read_build


@pytest.mark.parametrize("name", ["measured.json", "job.manifest.template"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "3",
        '"text"',
        '[["a"]]',
        "sgx = 3",
        "[sgx]",
        '[sgx]\ntrusted_files = [{ uri = "a" }]\n[fs]',
        "\x00",
        "\xff",
    ],
)
def test_a_bundle_that_is_none_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"{name} is not what a build writes"):
        read_build(tmp_path)


@pytest.mark.parametrize("name", ["measured.json", "reference.json", "job.json"])
@pytest.mark.parametrize("value", ["[" * 600 + "]" * 600, '{"a":' * 600 + "1" + "}" * 600, "9" * 400, '"\\ud800"'])
def test_T387_a_bundle_that_nobody_can_walk_or_print_is_refused(name: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "reference.json").write_text('{"measurement": "00", "places": {}}')
    (tmp_path / name).write_text('{"measurement": "00", "places": ' + value + "}")
    with pytest.raises(InputError, match=r"nested more than 32|2\*\*53|UTF-8"):
        read_build(tmp_path)


@pytest.mark.parametrize("name", ["job.json", "reference.json", "job.manifest.template", "job.manifest", "job.sig"])
@pytest.mark.parametrize("kind", ["pipe", "link", "large"])
def test_T387_only_files_of_the_bundle_are_read(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "reference.json").write_text('{"measurement": "00", "places": {}}')
    if name in ("job.manifest", "job.sig"):
        (tmp_path / "job.manifest.template").write_text("[sgx]\ntrusted_files = []\n[fs]\nmounts = []\n")
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate((64 << 20) + 1)
    with pytest.raises(InputError, match=r"no file of at most|not readable|not what a build writes"):
        read_build(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"head": null, "epochs": "x"}', '{"head": null, "epochs": []}'])
def test_a_damaged_memory_of_the_service_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text(text)
    with pytest.raises(IntegrityError, match="is damaged"):
        Seen.load(tmp_path / "seen.json")
