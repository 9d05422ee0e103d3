"""Volumes whose key lies at a stock KBS: read only, and pinned to one manifest by the job document.

A stock KBS keeps no heads and takes no commits, so nothing but the measured document says which state of the data set
is meant. Whoever owns the data set decides by the KBS' policy; our service is not asked about such a key.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from strongroom._secret import SecretBytes
from strongroom._unix import connect_unix
from strongroom.attest.attesters import Attester
from strongroom.attest.kbs import KBSKey, fetch_key
from strongroom.errors import InputError
from strongroom.guest.document import kbs_volumes
from strongroom.guest.session import Grant
from strongroom.storage.dataset import Head

__all__ = ["outward", "receive_kbs"]

PATIENCE_S = 30.0


class _OneKey:
    """A key without versions: a file of another key fails at its commitment."""

    def __init__(self, name: str, key: SecretBytes) -> None:
        self.name = name
        self._key = key

    def current(self) -> tuple[int, SecretBytes]:
        return 1, self._key

    def version(self, _number: int) -> SecretBytes:
        return self._key


def outward(launch: Mapping[str, object]) -> Callable[[str], socket.socket]:
    """Return what opens a socket to `host:port`, or to where `doors` of the host's launch file says that this is."""
    doors = launch.get("doors")

    def dial(at: str) -> socket.socket:
        there = str(doors.get(at, at)) if isinstance(doors, dict) else at
        if there.startswith("unix:"):
            return connect_unix(there.removeprefix("unix:"), PATIENCE_S)
        host, _, port = there.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S)

    return dial


def receive_kbs(
    document: Mapping[str, object],
    attester: Attester,
    init_data: str | None,
    dial: Callable[[str], socket.socket],
) -> dict[tuple[str, str], Grant]:
    """Return a grant for each volume of `document` whose key lies at a KBS, by the key's URL and name: all, or none.

    Raises:
        InputError: The document does not pin such a volume.
        StrongroomError: See `attest.kbs.fetch_key`.
    """
    grants: dict[tuple[str, str], Grant] = {}
    answered: set[str] = set()
    pins: dict[str, object] = {}
    for volume in kbs_volumes(document):
        url, name, manifest, epoch = (str(volume.get(k)) for k in ("owner", "key", "manifest", "epoch"))
        if volume.get("mode") != "ro" or not manifest.startswith("sha256:") or not epoch.isdecimal():
            raise InputError(f"volume {volume.get('name')}: a key at a KBS reads one pinned manifest")
        place = KBSKey.parse(url)
        dataset = str(volume["dataset"])
        # Heads are kept by data set, and a key is fetched once: a second pin would go unread.
        for what, pin in {f"data set {dataset}": (url, name, manifest, epoch), url: volume.get("certificate")}.items():
            if pins.setdefault(what, pin) != pin:
                raise InputError(f"volume {volume.get('name')}: expected one pin of {what:.200}, got two")
        heads = {dataset: Head(dataset=dataset, epoch=int(epoch), key=name, manifest=manifest, owner=url)}
        if (url, name) in grants:
            grants[url, name] = replace(grants[url, name], heads={**grants[url, name].heads, **heads})
            continue
        certificate, opened = str(volume.get("certificate")), partial(dial, place.address)
        key = fetch_key(place, certificate, attester, init_data, dial=opened, answered=answered)
        # A run id that nobody else knows: no file outside the manifest is taken for this run's own.
        grants[url, name] = Grant(ring=_OneKey(name, key), heads=heads, run_id=os.urandom(16), ends_at=math.inf)
    return grants
