"""The messages between the forwarder and the daemon: what is sent arrives, and nothing else is a message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import Invalid
from atoll.frontends.call import (
    ANSWER,
    CALL,
    HEAD,
    MOST,
    Answer,
    Call,
    decode_answer,
    decode_call,
    encode_answer,
    encode_call,
    failure,
    size_of,
)

TEXTS = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
NAMES = TEXTS.map(lambda text: "CNI_" + text.replace("=", ""))
CALLS = st.builds(
    Call,
    door=TEXTS,
    program=TEXTS,
    arguments=st.lists(TEXTS, max_size=5).map(tuple),
    environment=st.dictionaries(NAMES, TEXTS, max_size=5),
    stdin=st.binary(max_size=200),
    folder=TEXTS,
)
ANSWERS = st.builds(Answer, code=st.integers(0, 255), stdout=st.binary(max_size=200), stderr=st.binary(max_size=50), run=TEXTS)


@given(CALLS)
def test_a_call_arrives_as_it_was_sent(call: Call) -> None:
    data = encode_call(call)
    assert size_of(data[:HEAD], CALL) == len(data) - HEAD
    assert decode_call(data[HEAD:]) == call


@given(ANSWERS)
def test_an_answer_arrives_as_it_was_sent(answer: Answer) -> None:
    data = encode_answer(answer)
    assert size_of(data[:HEAD], ANSWER) == len(data) - HEAD
    assert decode_answer(data[HEAD:]) == answer


@given(st.binary(max_size=300))
def test_random_bytes_are_no_call_or_one_that_encodes_to_them(data: bytes) -> None:
    try:
        call = decode_call(data)
    except Invalid:
        return
    assert encode_call(call)[HEAD:] == data


@given(CALLS, st.data())
def test_a_call_that_is_cut_or_continued_is_refused(call: Call, data: st.DataObject) -> None:
    body = encode_call(call)[HEAD:]
    with pytest.raises(Invalid, match=r"shorter|announces"):
        decode_call(body[: data.draw(st.integers(0, len(body) - 1))])
    with pytest.raises(Invalid, match="longer"):
        decode_call(body + b"\0")


def _call(*, door: bytes = b"cni", variable: bytes = b"CNI_COMMAND=ADD", twice: bool = False) -> bytes:
    def field(data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + data

    variables = field(variable) * (2 if twice else 1)
    return field(door) + field(b"/bridge") + field(b"/") + struct.pack(">II", 0, 1 + twice) + variables + field(b"{}")


def test_the_message_that_the_other_tests_spoil_is_good() -> None:
    assert decode_call(_call()) == Call("cni", "/bridge", (), {"CNI_COMMAND": "ADD"}, b"{}", "/")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_call(door=b"cn\0i"), id="NUL"),
        pytest.param(_call(variable=b"CNI_COMMAND"), id="no value"),
        pytest.param(_call(variable=b"PATH=/bin"), id="another variable"),
        pytest.param(_call(variable=b"RUST_LOGS=1"), id="almost RUST_LOG"),
        pytest.param(_call(twice=True), id="twice"),
        pytest.param(b"\xff\xff\xff\xff", id="huge field"),
        pytest.param(_call()[:23] + b"\xff\xff\xff\xff", id="huge list"),
    ],
)
def test_what_the_forwarder_never_sends_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        decode_call(body)


@pytest.mark.parametrize("head", [b"GET / HT", b"ATC2\0\0\0\1", b"ATA1\0\0\0\1", b"ATC1" + struct.pack(">I", MOST + 1), b"\0" * 8])
def test_a_wrong_beginning_is_refused(head: bytes) -> None:
    with pytest.raises(Invalid):
        size_of(head, CALL)


def test_what_is_too_large_is_not_sent() -> None:
    with pytest.raises(Invalid, match="too large"):
        encode_call(Call("cni", "/bridge", stdin=bytes(MOST)))
    with pytest.raises(Invalid, match="too large"):
        encode_answer(Answer(stdout=bytes(MOST)))
    with pytest.raises(Invalid, match="code 256"):
        encode_answer(Answer(256))


def test_errors_are_in_the_clients_own_form() -> None:
    cni, netavark = failure("cni", 'no "such\udcff', code=5, details="x\n"), failure("netavark", "no such", details="x")
    assert cni == Answer(1, b'{"cniVersion":"1.0.0","code":5,"msg":"no \\"such?","details":"x\\n"}\n')
    assert netavark == Answer(1, b'{"error":"no such; x"}\n')
