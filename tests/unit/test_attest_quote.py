from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.attest_parts import CONFIG_ID, MEASUREMENT, NOW, REPORT_DATA, SIGNER, Platform
from tests.fakes.quote_parts import FORMATS, case

from strongroom.attest.quote import describe, parse_quote, trimmed, unpadded
from strongroom.errors import AttestationError, EvidenceError

PLATFORM = Platform()
SGX, TDX = PLATFORM.quote(), PLATFORM.quote_tdx()
ALL = {name: case(name).quote for name in FORMATS}


def test_sgx_fields_are_where_intel_puts_them() -> None:
    quote = parse_quote(SGX)
    offsets = {name: span[0] for name, span in quote.spans.items()}
    assert (quote.version, quote.tee, quote.debug) == (3, "sgx", False)
    assert offsets["header.qe_vendor_id"] == 12
    assert offsets["body.mr_enclave"] == 48 + 64
    assert offsets["body.mr_signer"] == 48 + 128
    assert offsets["body.config_id"] == 48 + 192
    assert offsets["body.isv_prod_id"] == 48 + 256
    assert offsets["body.report_data"] == 48 + 320
    assert offsets["auth.signature"] == 436
    assert (quote.measurement, quote.signer, quote.config_id) == (MEASUREMENT, SIGNER, CONFIG_ID)
    assert (quote.number("body.isv_prod_id"), quote.number("body.isv_svn")) == (7, 3)
    assert quote.report_data == REPORT_DATA
    assert len(quote.pck_chain) == 3


def test_tdx_fields_are_where_intel_puts_them() -> None:
    quote = parse_quote(TDX)
    offsets = {name: span[0] for name, span in quote.spans.items()}
    assert (quote.version, quote.tee) == (4, "tdx")
    assert offsets["body.td_attributes"] == 48 + 120
    assert offsets["body.mr_td"] == 48 + 136
    assert offsets["body.report_data"] == 48 + 520
    assert parse_quote(PLATFORM.quote_tdx(debug=True)).debug


@pytest.mark.parametrize("raw", ALL.values(), ids=ALL)
def test_every_byte_belongs_to_one_field(raw: bytes) -> None:
    quote = parse_quote(raw)
    assert b"".join(quote[name] for name in quote.spans) == raw
    at = 0
    for offset, size, _, _ in quote.spans.values():
        assert offset == at
        at += size


@pytest.mark.parametrize("raw", ALL.values(), ids=ALL)
@pytest.mark.parametrize("tail", [b"\0", b"\n", b"\0" * 39, b"x" * 3065])
def test_trailing_bytes_are_refused_and_can_be_trimmed(raw: bytes, tail: bytes) -> None:
    with pytest.raises(EvidenceError, match="trailing"):
        parse_quote(raw + tail)
    assert trimmed(raw + tail) == raw
    assert unpadded(raw + tail) == (raw + tail if any(tail) else raw)


@pytest.mark.parametrize("raw", ALL.values(), ids=ALL)
def test_no_prefix_is_a_quote(raw: bytes) -> None:
    for size in range(len(raw)):
        with pytest.raises(EvidenceError):
            parse_quote(raw[:size])


@given(st.binary(max_size=600))
def test_any_bytes_are_refused_in_order(raw: bytes) -> None:
    with pytest.raises(EvidenceError):
        parse_quote(raw)


@given(st.sampled_from(list(ALL.values())), st.data())
def test_altered_bytes_parse_or_are_refused(raw: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(raw) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    altered = (raw[:at] + patch + raw[at + len(patch) :])[: len(raw)]
    with contextlib.suppress(EvidenceError):
        assert parse_quote(altered).raw == altered


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["sgx", "tdx"]), st.data())
def test_no_flipped_bit_verifies(tee: str, data: st.DataObject) -> None:
    raw = SGX if tee == "sgx" else TDX
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    flipped = bytearray(raw)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AttestationError):
        _verify(bytes(flipped), tee)


def test_no_flipped_bit_at_any_edge_of_a_field_verifies() -> None:
    for offset, size, _, _ in parse_quote(SGX).spans.values():
        for at in {offset, offset + size - 1}:
            flipped = bytearray(SGX)
            flipped[at] ^= 0x20
            with pytest.raises(AttestationError):
                _verify(bytes(flipped), "sgx")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_flipped_bit_at_the_start_of_a_certificate_verifies() -> None:
    # Versions and serial numbers that X.509 forbids once escaped as errors that are not ours.
    for tag in (b"BEGIN CERTIFICATE-----\n", b"END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n"):
        start = SGX.index(tag) + len(tag)
        for bit in range(8 * 64):
            flipped = bytearray(SGX)
            flipped[start + bit // 8] ^= 1 << bit % 8
            with pytest.raises(AttestationError):
                _verify(bytes(flipped), "sgx")


def _verify(raw: bytes, tee: str) -> None:
    from strongroom.attest.evidence import Evidence

    PLATFORM.verifier.verify(Evidence(tee=tee, quote=raw), PLATFORM.endorsements(tee), now=NOW)


def test_a_chain_with_text_between_certificates_is_refused() -> None:
    for old, new in ((b"-----BEGIN", b"hello\n-----BEGIN"), (b"\n-----END", b"\n\n-----END")):
        chain = parse_quote(SGX)["auth.cert_data"]
        longer = chain.replace(old, new, 1)
        grown = len(longer) - len(chain)
        raw = bytearray(SGX.replace(chain, longer))
        for at in (432, SGX.index(chain) - 4):
            raw[at : at + 4] = (int.from_bytes(raw[at : at + 4], "little") + grown).to_bytes(4, "little")
        with pytest.raises(EvidenceError, match="PEM"):
            parse_quote(bytes(raw))


def test_describe_shows_words_and_offsets() -> None:
    rows = {row.name: row for row in describe(parse_quote(SGX))}
    assert rows["header.version"].value == "3"
    assert rows["body.mr_enclave"].value == MEASUREMENT.hex()
    assert (rows["body.report_data"].offset, rows["body.report_data"].size) == (368, 64)
    assert rows["auth.cert_data"].value.startswith("-----BEGIN CERTIFICATE-----")
    assert all(row.meaning for row in rows.values())
    assert "body.reserved1" not in rows  # zeros say nothing
