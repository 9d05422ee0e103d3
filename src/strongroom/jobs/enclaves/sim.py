"""Enclave kind `sim`: a bundle for the simulated platform.

SIMULATED: real evidence formats under a root that this workspace made; it protects against mistakes only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from strongroom._encoding import labelled_hash
from strongroom._unix import write_whole
from strongroom.attest.simulated.measure import tree_digest
from strongroom.attest.simulated.platform import FUSE, bundle_measurement
from strongroom.errors import InputError
from strongroom.jobs.differences import keep_build
from strongroom.jobs.plan import Bundle, LaunchPlan
from strongroom.jobs.runtimes import Runtimes
from strongroom.jobs.spec import Location, kbs_addresses

__all__ = ["SimulatedEnclave"]


class SimulatedEnclave:
    """Builds bundles for the simulated platform.

    Args:
        runtimes: Where runtimes come from.
        cache: Digest cache.
        service: Folder with the trust service's guest socket.
        identity_pem: The service's identity certificate; the guest checks it against the measured SPKI id.
    """

    def __init__(self, runtimes: Runtimes, *, cache: Path, service: Path, identity_pem: str) -> None:
        self._runtimes = runtimes
        self._cache = cache
        self._service = service
        self._identity_pem = identity_pem

    def build(self, plan: LaunchPlan, folder: Path) -> Bundle:
        """Write the bundle of `plan` below `folder`."""
        spec = plan.spec
        for volume in spec.volumes:
            if isinstance(volume.location, Path) and not volume.location.is_dir():
                raise InputError(f"volume {volume.name}: {volume.location} is not a folder")
        places, peers = self._runtimes.places(plan.command.runtimes, spec.venv), plan.command.worker is not None
        views = plan.command.staged and os.access(FUSE, os.R_OK | os.W_OK)
        name = plan.job.removeprefix("sha256:")[:16]
        if spec.venv is not None:  # two jobs may differ in it alone, and the job document does not name it
            name += f"-{labelled_hash('strongroom-bundle-v1', [str(places['/opt/env']).encode()]).hex()[:8]}"
        target = folder / name
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(target / "init-data.toml", plan.init_data)
        launch = {"service": "unix:/trust/service/guest.sock", "identity": self._identity_pem}
        write_whole(target / "launch.json", json.dumps(launch, indent=1))
        bundle = {
            "format": 1,
            "runtimes": {place: str(source) for place, source in places.items()},
            "code": {path.name: str(path.resolve()) for path in spec.code},
            "volumes": [[v.name, _location(v.location), v.mode] for v in spec.volumes],
            "staged": plan.command.staged,
            "service": str(self._service),
            "network": spec.sandbox.network,
            "scratch_mb": spec.sandbox.scratch_mb,
            "views": views,
            "listen": "127.0.0.1:0" if peers else "",
            "outward": kbs_addresses(spec),
        }
        write_whole(target / "bundle.json", json.dumps(bundle, indent=1))
        write_whole(target / "job.json", json.dumps(dict(plan.document), indent=1, ensure_ascii=False))

        def measure() -> str:
            measurement = bundle_measurement(
                places, network=spec.sandbox.network, cache=self._cache, peers=peers, views=views
            ).hex()
            digests = {place: tree_digest(source, self._cache).hex() for place, source in places.items()}
            reference = {"job": plan.job, "measurement": measurement, "simulated": True, "places": digests}
            keep_build(target / "reference.json", json.dumps(reference, indent=1))
            return measurement

        stores = {v.name: (v.location, v.mode) for v in spec.volumes if isinstance(v.location, str)}
        return Bundle(folder=target, job=plan.job, simulated=True, measure=measure, stores=stores)


def _location(location: Location) -> str:
    return str(location.resolve()) if isinstance(location, Path) else location
