"""`strongroom model`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from strongroom.cli import output
from strongroom.cli.common import PATH, epilog, json_option, owner
from strongroom.cli.datasets import owned, seal_into, show_result
from strongroom.client.provenance import Provenance, check_attested, command_of, provenance, tables_in
from strongroom.crypto.keys import KeyRing
from strongroom.errors import InputError
from strongroom.models.record import RECORD_FILE, ModelRecord
from strongroom.models.scan import code_in
from strongroom.storage.dataset import Head, Manifest, load_manifest
from strongroom.storage.places import place
from strongroom.storage.reading import reading
from strongroom.storage.trees import open_tree, verify_tree

if TYPE_CHECKING:
    from strongroom.client.owner import OwnerClient

__all__ = ["command"]

_UNSAFE = click.option("--unsafe-pickle", is_flag=True, help="Take files that run code when they are loaded.")
_UNATTESTED = click.option("--accept-unattested", is_flag=True, help="Take a model that no attested job made.")


@click.group("model")
def command() -> None:
    """Models: data sets that say which attested job made them, and from what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """A sealed model as its owner finds it."""

    folder: str
    client: OwnerClient
    ring: KeyRing
    head: Head
    manifest: Manifest

    @classmethod
    def find(cls, folder: str) -> _Model:
        client = owner()
        info = owned(folder, client)
        ring, head = client.key_ring(info.key), client.current(info.dataset)
        manifest = load_manifest(folder, head, ring)
        if not manifest.entries:
            raise InputError(f"{folder} is empty: it holds no model", hint="did the job that was to write it end well?")
        return cls(folder=folder, client=client, ring=ring, head=head, manifest=manifest)

    def records(self) -> dict[str, ModelRecord]:
        """Return what the models' maker says of them, by folder; the top folder is `""`."""
        found = {}
        for path in (e.path for e in self.manifest.entries):
            folder, _, name = path.rpartition("/")
            if name != RECORD_FILE:
                continue
            with reading(place(self.folder), self.manifest, self.ring, path) as reader:
                found[folder] = ModelRecord.decode(reader.readall())
            file = f"{folder}/{found[folder].file}".lstrip("/")
            if not any(e.path == file or e.path.startswith(f"{file}/") for e in self.manifest.entries):
                raise InputError(f"{path} names {file}, which is not in {self.folder}")
        return found

    def code(self) -> Iterator[str]:
        """Yield each file that runs code when it is loaded."""
        for entry in self.manifest.entries:
            with reading(place(self.folder), self.manifest, self.ring, entry.path) as reader:
                if found := code_in(reader, entry.path):  # type: ignore[arg-type]  # a RawIOBase reads as well
                    yield f"{entry.path}: {found}"

    def verify(self, *, accept_unattested: bool, unsafe_pickle: bool) -> Provenance:
        """Check origin, record, every chunk of every file, and that no file runs code; return the origin."""
        origin = provenance(self.client, self.head)
        if not accept_unattested:
            check_attested(origin, what=self.folder)
        with output.ProgressLine("verifying") as progress:
            verify_tree(self.folder, self.ring, self.head, progress=progress)
        self.records()
        if not unsafe_pickle:
            _refuse_code(self.code())
        return origin


@command.command(
    "seal",
    epilog=epilog(
        "strongroom model seal llama/ sealed/llama --key models",
        "strongroom model seal old.pt sealed/old --key models --unsafe-pickle",
    ),
)
@click.argument("source", type=PATH)
@click.argument("target")
@click.option("--key", "key_name", required=True, help="The named key.")
@_UNSAFE
@json_option
def seal(source: Path, target: str, key_name: str, unsafe_pickle: bool, as_json: bool) -> None:
    """Seal a model of your own, a file or a folder of files, into the data set TARGET.

    It says that you sealed it and no attested job made it. Files that run code when they are loaded are refused.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist", hint="check the path")
    if not unsafe_pickle:
        _refuse_code(_code_below(source))
    show_result("sealed", seal_into(owner(), str(source), target, key_name), as_json, target=target)


@command.command("show", epilog=epilog("strongroom model show sealed/lenet"))
@click.argument("folder")
@json_option
def show(folder: str, as_json: bool) -> None:
    """Show what a model is and where it comes from: job, measurement, inputs, parameters, metrics."""
    model = _Model.find(folder)
    records, tables = model.records(), tables_in(model.folder, model.manifest, model.ring)
    origin = provenance(model.client, model.head)
    ran = command_of(model.client, origin.job)
    value = {
        "dataset": model.head.dataset,
        "epoch": model.head.epoch,
        "key": model.head.key,
        "files": [{"path": e.path, "size": e.size} for e in model.manifest.entries],
        "records": {folder: asdict(record) for folder, record in records.items()},
        "tables": tables,
        "command": ran,
        "provenance": origin.to_json(),
    }
    lines = [*_origin_lines(origin, ran), "", "in its maker's words:", *_model_lines(model, records, tables)]
    output.data(value, as_json, lines)


@command.command("verify", epilog=epilog("strongroom model verify sealed/lenet"))
@click.argument("folder")
@_UNATTESTED
@_UNSAFE
@json_option
def verify(folder: str, accept_unattested: bool, unsafe_pickle: bool, as_json: bool) -> None:
    """Check that an attested job made the model, that every byte is as it was made, and that no file runs code."""
    model = _Model.find(folder)
    origin = model.verify(accept_unattested=accept_unattested, unsafe_pickle=unsafe_pickle)
    value = {"dataset": model.head.dataset, "epoch": model.head.epoch, "provenance": origin.to_json()}
    size = sum(e.size for e in model.manifest.entries)
    text = f"verified {len(model.manifest.entries)} files, {size / 1e6:.1f} MB: {_made_by(origin)}"
    output.data(value, as_json, [text])


@command.command("open", epilog=epilog("strongroom model open sealed/lenet lenet/"))
@click.argument("folder")
@click.argument("target")
@_UNATTESTED
@_UNSAFE
@json_option
def open_(folder: str, target: str, accept_unattested: bool, unsafe_pickle: bool, as_json: bool) -> None:
    """Open a model into the folder TARGET, if `model verify` would have nothing against it."""
    model = _Model.find(folder)
    model.verify(accept_unattested=accept_unattested, unsafe_pickle=unsafe_pickle)
    with output.ProgressLine("opening") as progress:
        result = open_tree(folder, target, model.ring, model.head, progress=progress)
    show_result("opened", result, as_json, target=target)


def _code_below(source: Path) -> Iterator[str]:
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for path in files:
        with path.open("rb") as file:
            if found := code_in(file, path.relative_to(source.parent).as_posix()):
                yield f"{path}: {found}"


def _refuse_code(found: Iterator[str]) -> None:
    first = next(found, "")
    if first:
        raise InputError(
            f"{first}: it runs code when it is loaded",
            hint="save the model as safetensors (docs/guides/deep-learning.md), or, if you trust its maker with all "
            "that you can do: --unsafe-pickle",
        )


def _model_lines(
    model: _Model, records: Mapping[str, ModelRecord], tables: Mapping[str, Mapping[str, Mapping[str, object]]]
) -> list[str]:
    head, shown = model.head, 5
    files = ", ".join(f"{e.path} ({e.size:,} bytes)" for e in model.manifest.entries[:shown])
    left = len(model.manifest.entries) - shown
    facts: dict[str, object] = {
        "data set": f"{head.dataset}, epoch {head.epoch}",
        "key": head.key,
        "files": files + (f" and {left} more" if left > 0 else ""),
    }
    if not records:
        facts["record"] = f"none: its maker wrote no {RECORD_FILE} (strongroom.models.save)"
    lines = output.facts(facts)
    for folder, record in records.items():
        about = {
            "model": folder or ".",
            "kind": record.kind,
            "made with": _pairs(record.made_with),
            "parameters": _pairs(record.parameters),
            "metrics": _pairs(record.metrics),
        }
        lines += ["", *output.facts(about)]
    for folder in (f for f in tables if f not in records):
        said = {name: _pairs(table) for name, table in tables[folder].items()}
        lines += ["", *output.facts({"model": folder or ".", **said})]
    return lines


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "none"


def _origin_lines(origin: Provenance, ran: Sequence[str]) -> list[str]:
    if not origin.attested:
        return output.facts({"origin": f"UNKNOWN: {_made_by(origin)}", "audit record": origin.seq})
    claims = origin.claims
    facts = {
        "origin": _made_by(origin),
        "job": origin.job,
        **({"command": shlex.join(ran)} if ran else {}),
        "run": origin.run,
        "time": origin.time[:19],
        "measurement": claims.get("measurement"),
        "platform": f"{'SIMULATED ' if origin.simulated else ''}{claims.get('tee')}, {claims.get('tcb_status')}",
        "audit record": origin.seq,
    }
    read = [i for i in origin.inputs if i.get("epoch") or "dataset" not in i]
    rows = [
        (i.get("volume"), i.get("dataset", "another owner's"), i.get("epoch", ""), i.get("kbs") or i.get("key", ""))
        for i in read
    ]
    table = output.table(("input", "data set", "epoch", "key"), rows) if rows else ["it read no sealed data"]
    before = ["", f"on top of: {_made_by(origin.before)}, audit record {origin.before.seq}"] if origin.before else []
    return [*output.facts(facts), "", *table, *before]


def _made_by(origin: Provenance) -> str:
    if origin.attested:
        return f"made by an attested job{' (SIMULATED enclave)' if origin.simulated else ''}"
    return f"not made by an attested job, {origin.action} by {origin.actor}"
