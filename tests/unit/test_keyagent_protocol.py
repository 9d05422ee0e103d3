"""Key agent frames: every value survives the trip, nothing cut off is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import DeniedError, InputError, IntegrityError, StrongroomError, UnavailableError
from strongroom.keyagent import protocol
from strongroom.keyagent.protocol import Operation

FIELDS = {1: 0, 2: 3, 3: 2, 4: 3, 5: 3, 6: 2, 7: 2, 8: 2, 9: 2, 10: 2, 11: 2, 12: 2, 13: 2}


@st.composite
def requests(draw: st.DrawFn) -> tuple[Operation, list[bytes]]:
    operation = draw(st.sampled_from(list(Operation)))
    count = FIELDS[operation]
    return operation, draw(st.lists(st.binary(max_size=300), min_size=count, max_size=count))


@given(requests())
def test_request_round_trip(request: tuple[Operation, list[bytes]]) -> None:
    operation, fields = request
    decoded = protocol.decode_request(protocol.encode_request(operation, *fields))
    assert (decoded.operation, list(decoded.fields)) == (operation, fields)


@given(requests())
def test_no_truncation_and_no_surplus_is_a_request(request: tuple[Operation, list[bytes]]) -> None:
    body = protocol.encode_request(request[0], *request[1])
    for size in range(len(body)):
        with pytest.raises(InputError):
            protocol.decode_request(body[:size])
    for more in (b"\0", b"\0\0\0\0", b"\0\0\0\1x"):
        with pytest.raises(InputError):
            protocol.decode_request(body + more)


@given(st.binary(max_size=200))
def test_noise_is_a_request_or_an_input_error(body: bytes) -> None:
    try:
        decoded = protocol.decode_request(body)
    except InputError:
        return
    assert protocol.encode_request(decoded.operation, *decoded.fields) == body


@pytest.mark.parametrize("body", [b"", b"\1", b"\2\1", b"\0\1", b"\1\0", b"\1\x0b", b"\1\xff"])
def test_other_versions_and_operations_are_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        protocol.decode_request(body)


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_reply_round_trip(fields: list[bytes]) -> None:
    assert list(protocol.decode_reply(protocol.encode_reply(*fields))) == fields


@pytest.mark.parametrize("kind", [DeniedError, IntegrityError, InputError, UnavailableError])
def test_refusals_keep_their_class_and_sentence(kind: type[StrongroomError]) -> None:
    with pytest.raises(kind, match=r"^because$"):
        protocol.decode_reply(protocol.encode_error(kind("because")))


def test_an_unknown_status_and_an_empty_reply_are_errors() -> None:
    with pytest.raises(UnavailableError):
        protocol.decode_reply(b"\x63")
    with pytest.raises(InputError):
        protocol.decode_reply(b"")


def test_typed_fields_are_checked() -> None:
    request = protocol.Request(operation=Operation.FINISH, fields=(b"\xff", b"p", b"1234567"))
    with pytest.raises(InputError, match="UTF-8"):
        request.text(0)
    with pytest.raises(InputError, match="8 bytes"):
        request.number(2)
    assert protocol.Request(operation=Operation.FINISH, fields=(protocol.number(7),)).number(0) == 7
