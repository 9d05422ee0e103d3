"""Every attester: exactly the asked report data, in a quote that verifies."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.attest_parts import NOW, FakeAttester, Platform, gramine_folder, occlum_ioctl, serve_quotes

from strongroom.attest.attesters import Attester
from strongroom.attest.attesters.gramine import GramineAttester
from strongroom.attest.attesters.occlum import OcclumAttester
from strongroom.attest.attesters.simulated import SimulatedAttester
from strongroom.errors import InputError, UnavailableError

Factory = Callable[[Path], Attester]


def _fake(_folder: Path) -> Attester:
    return FakeAttester()


def _simulated(_folder: Path) -> Attester:
    ours, theirs = socket.socketpair()
    platform = Platform()
    serve_quotes(theirs, lambda data: b"\0" + platform.quote(report_data=data))
    return SimulatedAttester(ours)


def _gramine(folder: Path) -> Attester:
    return GramineAttester(gramine_folder(folder, lambda data: Platform().quote(report_data=data)))


def _occlum(folder: Path) -> Attester:
    (folder / "sgx").touch()
    return OcclumAttester(folder / "sgx", occlum_ioctl(lambda data: Platform().quote(report_data=data)))


@pytest.fixture(params=[_fake, _simulated, _gramine, _occlum], ids=["fake", "simulated", "gramine", "occlum"])
def attester(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Attester]:
    return request.param(tmp_path)


def test_carries_the_report_data(attester: Attester) -> None:
    platform = Platform()
    for data in (bytes(64), b"\xff" * 64, bytes(range(64))):
        evidence = attester.attest(data)
        claims = platform.verifier.verify(evidence, platform.endorsements(evidence.tee), now=NOW)
        assert claims.report_data == data


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_refuses_another_size(attester: Attester, size: int) -> None:
    with pytest.raises(InputError):
        attester.attest(bytes(size))


def test_the_sealing_key_stays_where_there_is_one(attester: Attester) -> None:
    if isinstance(attester, OcclumAttester):  # its measurement does not cover the files it runs
        with pytest.raises(UnavailableError, match="no sealing key"):
            attester.sealing_key()
        return
    first = attester.sealing_key()
    assert len(first) >= 16
    assert attester.sealing_key() == first
