"""Where a data set, such as a model, comes from: the record of the commit that made it what it is.

The trust service wrote it when the job committed, from what the job's evidence proved: measurement, job digest, and the
heads of what the job read. Its signature is the audit log's, and the log is checked whole before it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from strongroom._encoding import parse_json
from strongroom.attest.policies import job_digest
from strongroom.client.owner import OwnerClient
from strongroom.crypto.keys import KeyRing
from strongroom.errors import InputError, IntegrityError
from strongroom.models.record import MAX_RECORD_BYTES
from strongroom.storage.dataset import Head, Manifest
from strongroom.storage.places import place
from strongroom.storage.reading import reading

__all__ = ["Provenance", "check_attested", "command_of", "provenance", "tables_in"]

_COMMITS = ("commit", "hold", "accept-epoch")
"""`hold`: of a job whose output waited for the owner, who approved it since it is the head."""
_TABLES = ("parameters.json", "metrics.json")
"""Written by programs that know of no records: plain JSON objects beside their models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Who made a data set what it is now.

    Attributes:
        seq: Of the audit record.
        time: When, as the service's clock said.
        actor: Who, as the audit log calls it.
        action: `commit`, `hold` or `accept-epoch`.
        job: The job digest, "" if no job made it.
        run: Of that job, "" likewise.
        claims: What its evidence proved; empty likewise.
        before: Who made the same data set what it was when the job began, None if it was empty.
        inputs: What the job read: volume, data set, key, epoch, manifest; of other owners' the volume alone; `kbs`
            is the URL of a key at a KBS.
    """

    seq: int
    time: str
    actor: str
    action: str
    job: str
    run: str
    claims: Mapping[str, object]
    inputs: Sequence[Mapping[str, object]]
    before: Provenance | None = None

    @property
    def attested(self) -> bool:
        """Whether an attested job made it."""
        return bool(self.job and self.claims)

    @property
    def simulated(self) -> bool:
        """Whether its evidence was SIMULATED."""
        return self.claims.get("simulated") is not False

    def to_json(self) -> dict[str, object]:
        """Return it as JSON-ready data."""
        before = None if self.before is None else self.before.to_json()
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"attested": self.attested, **own, "before": before}


def provenance(client: OwnerClient, head: Head) -> Provenance:
    """Return the record of the commit that made `head`.

    Raises:
        IntegrityError: The log does not hold, or has no such record.
    """
    commits = []
    for entry in client.verified_audit()[1]:
        text = str(entry.get("record") or "null")
        record = parse_json(text, "an audit record", max_bytes=len(text.encode()))
        if isinstance(record, dict) and record.get("action") in _COMMITS and record.get("allowed") is True:
            commits.append(record)
    return _find(commits, head.dataset, head.epoch, head.manifest)


def _find(commits: list[dict[str, object]], dataset: str, epoch: object, manifest: object) -> Provenance:
    chain: list[Provenance] = []
    while epoch:
        found = _take(commits, dataset, epoch, manifest)
        chain.append(found)
        own = next((one for one in found.inputs if one.get("dataset") == dataset), {})
        epoch, manifest = own.get("epoch"), own.get("manifest")
    before = None
    for found in reversed(chain):
        before = replace(found, before=before)
    if before is None:
        raise IntegrityError(f"data set {dataset} is empty: nobody has made it what it is")
    return before


def _take(commits: list[dict[str, object]], dataset: str, epoch: object, manifest: object) -> Provenance:
    while commits:
        record = commits.pop()
        details = record.get("details")
        assert isinstance(details, dict)
        made = details.get("dataset") or str(record.get("subject")).removeprefix("data set ")
        if (made, details.get("epoch"), details.get("manifest")) == (dataset, epoch, manifest):
            return _from(record, details)
    raise IntegrityError(
        f"the audit log has no commit of data set {dataset} at epoch {epoch}: nobody says where it comes from"
    )


def command_of(client: OwnerClient, job: str) -> list[str]:
    """Return command and arguments of the job with digest `job`, which its owner approved; nothing if that is gone."""
    requests = client.call("GET", "/v1/requests")["requests"]
    for document in (r.get("job_document") for r in requests if isinstance(r, dict)):  # type: ignore[attr-defined]
        if isinstance(document, dict) and job_digest(document) == job:  # of the record, which is signed
            parts = document.get("command"), document.get("arguments")
            return [str(word) for part in parts if isinstance(part, list) for word in part]
    return []


def tables_in(folder: str, manifest: Manifest, ring: KeyRing) -> dict[str, dict[str, Mapping[str, object]]]:
    """Return what programs without a record say of the models in a data set, by their folder and by file."""
    found = dict[str, dict[str, Mapping[str, object]]]()
    for entry in manifest.entries:
        at, _, name = entry.path.rpartition("/")
        if name in _TABLES and entry.size <= MAX_RECORD_BYTES:
            with suppress(InputError), reading(place(folder), manifest, ring, entry.path) as reader:
                if isinstance(table := parse_json(reader.readall(), name, max_bytes=MAX_RECORD_BYTES), dict):
                    found.setdefault(at, {})[name.removesuffix(".json")] = table
    return found


def check_attested(found: Provenance, *, what: str) -> None:
    """Refuse what no attested job made.

    Raises:
        IntegrityError: Says what is missing.
    """
    at: Provenance | None = found
    while at is not None:  # a job that added a line to a file of yours has not made the model
        if not at.attested:
            raise IntegrityError(
                f"{what} is of unknown origin: expected a commit by an attested job, got {at.action} by {at.actor} "
                f"(audit record {at.seq}); job digest, measurement and inputs are missing",
                hint="--accept-unattested takes it all the same, if you know where it comes from",
            )
        at = at.before


def _from(record: Mapping[str, object], details: Mapping[str, object]) -> Provenance:
    seq, claims, inputs = record.get("seq"), details.get("claims"), details.get("inputs")
    return Provenance(
        seq=seq if isinstance(seq, int) else 0,
        time=str(record.get("time")),
        actor=str(record.get("actor")),
        action=str(record.get("action")),
        job=str(details.get("job") or ""),
        run=str(details.get("run") or ""),
        claims=claims if isinstance(claims, dict) else {},
        inputs=[one for one in inputs if isinstance(one, dict)] if isinstance(inputs, list) else [],
    )
