import msgspec
import pytest

from deepseek_engine.config import EngineConfig
from deepseek_engine.framing import MAX_FRAME_BYTES, FrameError, FrameReader, encode_frame
from deepseek_engine.messages import (
    Cancel,
    Configure,
    Delta,
    EngineStats,
    FromCore,
    StartFailed,
    StepOutputs,
    Submit,
    ToCore,
    TokenLogprobs,
    TopLogprob,
)
from deepseek_engine.sampling_params import SamplingParams

STATS = EngineStats(num_running=1, num_waiting=2, num_free_blocks=3, num_blocks=4, num_preemptions=5, num_steps=6)
LOGPROBS = (TokenLogprobs(-0.5, (TopLogprob(1, -0.5),)),)
TO_CORE = [
    Configure(EngineConfig(model="smollm2", num_threads=2)),
    Submit("a", [1, 2, 2**31], SamplingParams(seed=2**64 - 1, stop=("x", "é"), logit_bias={3: -1.5}), (0,), "salt"),
    Cancel("a", 3),
    Cancel("b"),
]
FROM_CORE = [
    StartFailed("no such file"),
    StepOutputs((Delta(request_id="a", token_ids=(1,), logprobs=LOGPROBS),), STATS),
    StepOutputs((), STATS),
]


def reader(kind):
    return FrameReader(msgspec.msgpack.Decoder(kind))


@pytest.mark.parametrize(("kind", "messages"), [(ToCore, TO_CORE), (FromCore, FROM_CORE)])
def test_messages_come_back_equal_from_one_read(kind, messages):
    assert reader(kind).feed(b"".join(map(encode_frame, messages))) == messages


@pytest.mark.parametrize(("kind", "messages"), [(ToCore, TO_CORE), (FromCore, FROM_CORE)])
def test_messages_come_back_equal_however_the_bytes_are_cut(kind, messages):
    data = b"".join(map(encode_frame, messages))
    for cut in range(len(data) + 1):
        frames = reader(kind)
        assert frames.feed(data[:cut]) + frames.feed(data[cut:]) == messages
    frames = reader(kind)
    assert [message for byte in data for message in frames.feed(bytes([byte]))] == messages


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_is_read():
    with pytest.raises(FrameError, match="the limit is"):
        reader(ToCore).feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", b"", msgspec.msgpack.encode({"type": "Nonsense"}), msgspec.msgpack.encode({"type": "Cancel"})],
)
def test_a_frame_that_is_not_a_message_is_refused(payload):
    with pytest.raises(FrameError, match="not a message"):
        reader(ToCore).feed(len(payload).to_bytes(4, "big") + payload)


def test_a_message_for_the_other_side_is_refused():
    with pytest.raises(FrameError, match="not a message"):
        reader(ToCore).feed(encode_frame(StartFailed("x")))


def test_values_out_of_range_do_not_get_past_the_decoder():
    data = encode_frame(Submit("a", [1], SamplingParams(temperature=1.5)))
    bad = data.replace(msgspec.msgpack.encode(1.5), msgspec.msgpack.encode(9.5))
    assert bad != data
    with pytest.raises(FrameError, match=r"temperature=9\.5 is out of range"):
        reader(ToCore).feed(bad)
