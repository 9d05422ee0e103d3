"""Occlum's files against their grammar: the reviewed ones are taken, and everything that is a little off is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fakes.occlum_schema import refusals_of_bom, refusals_of_settings

GOLDEN = Path(__file__).parent.parent / "golden"
SETTINGS = (GOLDEN / "occlum-spark.json").read_text()
BOM = (GOLDEN / "occlum-spark-bom.yaml").read_text()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("occlum-*")), ids=lambda path: path.name)
def test_reviewed_files_are_taken(path: Path) -> None:
    check = refusals_of_settings if path.suffix == ".json" else refusals_of_bom
    assert check(path.read_text()) == []


def _put(*where: Any, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in where[:-1]:
            document = document[key]
        document[where[-1]] = value

    return change


def _drop(*where: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in where[:-1]:
            document = document[key]
        del document[where[-1]]

    return change


WRONG_SETTINGS = {
    "a misspelt field": (_put("metadata", "debugable", value=False), "Occlum.metadata.debugable: unknown"),
    "a field of 1.0": (_put("resource_limits", "num_of_cpus", value=8), "num_of_cpus: unknown"),
    "no table": (_drop("feature"), "Occlum.feature: missing"),
    "a text for a truth": (_put("metadata", "debuggable", value="false"), "debuggable: expected true or false"),
    "a number for a size": (_put("process", "default_heap_size", value=32), "default_heap_size: expected a size"),
    "a size without unit": (_put("process", "default_heap_size", value="32"), "default_heap_size: expected a size"),
    "a truth for a number": (_put("resource_limits", "max_num_of_threads", value=True), "expected a number"),
    "more than 16 bits": (_put("metadata", "version_number", value=1 << 16), "version_number: expected a number"),
    "a relative entry point": (_put("entry_points", 0, value="bin"), r"entry_points\[0\]: expected a whole path"),
    "no name in the environment": (_put("env", "default", 0, value="HOME"), "expected NAME=VALUE"),
    "an id that is no hex": (_put("metadata", "family_id", "high", value="high"), "expected 64 bits"),
    "a mount of no kind": (_put("mount", 1, "type", value="tmpfs"), "expected a file system of Occlum"),
    "an option of nothing": (_put("mount", 1, "options", value={"size": "1MB"}), "options.size: unknown"),
    "the host's folder, unnamed": (_drop("mount", 4, "source"), "hostfs has"),
    "a MAC of one's own": (_put("mount", 0, "options", "layers", 0, "options", "MAC", value="00"), "expected nothing"),
    "no image": (_drop("mount", 0, "options", "layers", 0), "expected one root of layers"),
    "no root": (_drop("mount", 0), "expected one root of layers"),
    "a place twice": (_put("mount", 2, "target", value="/work"), "mount: /work twice"),
    "less at most than at first": (_put("resource_limits", "user_space_max_size", value="1MB"), "user_space_size: "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_settings_that_are_a_little_off(name: str) -> None:
    change, reason = WRONG_SETTINGS[name]
    document = json.loads(SETTINGS)
    change(document)
    found = refusals_of_settings(json.dumps(document))
    assert found
    with pytest.raises(ValueError, match=reason):
        raise ValueError("\n".join(found))


WRONG_BOMS = {
    "a field of nothing": (_put("target", value=[]), "bom.target: unknown"),
    "a target without a place": (_drop("targets", 1, "target"), r"targets\[1\].target: missing"),
    "a place that is relative": (_put("targets", 1, "target", value="app"), "expected a whole path"),
    "a variable in a place": (_put("targets", 1, "target", value="/$HOME"), "expected a whole path"),
    "a link without a name": (_put("targets", 0, "createlinks", value=[{"src": "a"}]), "linkname: missing"),
    "a source that is a list": (_put("targets", 1, "copy", 0, "from", value=["a"]), "from: expected a path"),
    "a digest in small letters": (_put("targets", 1, "copy", 0, "files", 0, "hash", value="ab" * 32), "in capitals"),
    "a digest that is a number": (_put("targets", 1, "copy", 0, "files", 0, "hash", value=10**63), "in capitals"),
    "a file with a folder": (_put("targets", 1, "copy", 0, "files", 0, "name", value="a/b"), "expected one name"),
    "a misspelt option": (_put("targets", 1, "copy", 0, "files", 0, "autodeps", value=True), "autodeps: unknown"),
    "yes for true": (_put("targets", 1, "copy", 0, "files", 0, "autodep", value="yes"), "expected true or false"),
    "an include elsewhere": (_put("includes", 0, value="../base.yaml"), "expected a file beside"),
}


@pytest.mark.parametrize("name", WRONG_BOMS)
def test_boms_that_are_a_little_off(name: str) -> None:
    change, reason = WRONG_BOMS[name]
    document = yaml.safe_load(BOM)
    change(document)
    found = refusals_of_bom(yaml.safe_dump(document))
    assert found
    with pytest.raises(ValueError, match=reason):
        raise ValueError("\n".join(found))


def test_all_that_may_be_said_is_taken() -> None:
    targets = """
includes: [base.yaml]
excludes: [.git]
targets:
  - target: /
    mkdirs: [bin, lib/a]
    createlinks: [{src: ../a, linkname: b}]
    copy: [{from: ., dirs: [c], files: [Makefile, {name: d, rename: e}]}, {from: f}]
  - {target: /etc, copy: [{dirs: [/etc/opt/]}]}
"""
    assert refusals_of_bom(targets) == []


def test_what_is_there_twice_is_refused() -> None:
    assert "twice" in refusals_of_settings('{"mount": [], "mount": []}')[0]
    assert "twice" in refusals_of_bom("targets: []\ntargets: []\n")[0]
    file = "{name: a, hash: " + "AB" * 32 + "}"
    assert refusals_of_bom(f"targets: [{{target: /x, copy: [{{from: y, files: [{file}, {file}]}}]}}]") == [
        "/x/a: written twice"
    ]
    assert refusals_of_bom("targets: [") != []
    assert refusals_of_settings("{") != []
