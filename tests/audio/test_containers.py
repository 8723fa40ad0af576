"""What a file holds, against what its header claims: sizes never updated, wrapped, wrong; joined files; cut files."""

import hashlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from ssamba.audio import readers
from ssamba.audio.decode import AudioBytes, collect_remarks, decode, measure, probe, stream
from ssamba.audio.mpeg import mp3_frame
from ssamba.errors import AudioDecodeError, AudioHeaderWarning, AudioTruncatedWarning

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def pcm(medley):
    """Real recordings, 16 bits, 26 s."""
    return np.round(medley * 32767).astype("<i2")


def wav(coded, *, data=None, riff=None, before=b"", after=b"", tag=b"RIFF", channels=1, width=2, rate_hz=RATE_HZ):
    """A WAV with any sizes; None is the right one."""
    block = channels * width
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, rate_hz * block, block, 8 * width)
    size = len(coded) if data is None else data
    body = b"WAVE" + fmt + before + b"data" + struct.pack("<I", size) + coded + after
    return tag + struct.pack("<I", len(body) if riff is None else riff) + body


def chunk(name, content, pad=True):
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2 if pad else 0)


def encoded(samples, rate_hz=RATE_HZ, **kind):
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", rate_hz, 1, **kind) as file:
        for start in range(0, len(samples), 8192):
            file.write(samples[start : start + 8192])
    return target.getvalue()


FLAC = {"format": "FLAC", "subtype": "PCM_16"}
VORBIS = {"format": "OGG", "subtype": "VORBIS"}
OPUS = {"format": "OGG", "subtype": "OPUS"}
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III"}


def check(content, expected, verdict, reason=None, rate_hz=RATE_HZ, path=None, atol=0.0):
    """Check that every function agrees about a file: what is read, how long it is, and what is said."""
    source = AudioBytes("a", content) if path is None else path
    info = probe(source)
    assert info.verdict == verdict
    with collect_remarks() as remarks:
        read = decode(source, sample_rate_hz=rate_hz)
    assert len(read) == len(expected)
    np.testing.assert_allclose(read, expected, rtol=0, atol=atol)
    assert [found.verdict for found in remarks] == ([] if verdict == "whole" else [verdict])
    measured = measure(source)
    assert measured.duration_s == pytest.approx(len(expected) / rate_hz, abs=1e-9)
    assert (measured.remark is None) == (verdict == "whole")
    if reason is not None:
        assert reason in (info.reason or "")
        assert reason in remarks[0].reason
    if verdict != "whole":
        with pytest.warns(AudioHeaderWarning):
            decode(source, sample_rate_hz=rate_hz)
    with collect_remarks():
        np.testing.assert_array_equal(np.concatenate(list(stream(source, sample_rate_hz=rate_hz, block_s=0.7))), read)
        first = len(expected) * 2 // 3  # a part beyond what is claimed
        part = decode(source, sample_rate_hz=rate_hz, start_s=first / rate_hz, duration_s=0.1)
    np.testing.assert_allclose(part, read[first : first + round(0.1 * rate_hz)], rtol=0, atol=2e-3)


def check_cut(content, at_least, whole, reason):
    """Check that a file is refused with a reason, and read as far as it goes if that is asked for."""
    source = AudioBytes("a", content)
    assert probe(source).verdict == "cut"
    with pytest.raises(AudioDecodeError, match=reason) as error:
        decode(source)
    assert str(measure(source).duration_s) == str(error.value)
    with pytest.warns(AudioTruncatedWarning, match=reason):
        kept = decode(source, damaged="keep")
    assert at_least <= len(kept) < len(whole)
    measured = measure(source, damaged="keep")
    assert measured.duration_s == pytest.approx(len(kept) / RATE_HZ)
    assert measured.remark is not None
    assert measured.remark.verdict == "cut"
    return kept


SECOND = 2 * RATE_HZ  # bytes


@pytest.mark.parametrize(
    ("content", "verdict", "reason"),
    [
        pytest.param(
            lambda c: wav(c, data=SECOND, riff=36 + SECOND), "wrong header", "32,000 bytes", id="written-once"
        ),
        pytest.param(lambda c: wav(c, data=SECOND), "wrong header", "32,000 bytes", id="data-written-once"),
        pytest.param(lambda c: wav(c, data=0, riff=0), "whole", None, id="zeros"),
        pytest.param(lambda c: wav(c, data=0), "whole", None, id="data-zero"),
        pytest.param(lambda c: wav(c, riff=0), "whole", None, id="riff-zero"),
        pytest.param(lambda c: wav(c, data=0xFFFFFFFF, riff=0xFFFFFFFF), "whole", None, id="all-ones"),
        pytest.param(lambda c: wav(c, data=0x7FFFF000, riff=0x7FFFF024), "whole", None, id="sox-pipe"),
        pytest.param(lambda c: wav(c, data=len(c) + 44, riff=len(c) + 44), "wrong header", "claims", id="fl005"),
        pytest.param(lambda c: wav(c, data=len(c) + 44), "wrong header", "claims", id="data-and-header"),
        pytest.param(lambda c: wav(c, data=2 * len(c)), "wrong header", "claims", id="twice"),
        pytest.param(lambda c: wav(c, data=len(c) - 1), "wrong header", "claims", id="one-byte-less"),
        pytest.param(lambda c: wav(c, before=chunk(b"LIST", b"INFOodd", pad=False)), "whole", None, id="no-pad-before"),
        pytest.param(
            lambda c: wav(c, before=chunk(b"LIST", b"INFO" + b"x" * 99, pad=False), data=SECOND),
            "wrong header",
            "32,000",
            id="no-pad-and-written-once",
        ),
        pytest.param(lambda c: wav(c, after=chunk(b"LIST", b"INFOodd", pad=False)), "whole", None, id="no-pad-after"),
        pytest.param(
            lambda c: wav(c, data=SECOND, after=chunk(b"guan", b"|X:1\n" * 9)), "wrong header", "", id="guano"
        ),
        pytest.param(lambda c: wav(c, data=0, after=chunk(b"LIST", b"INFO" * 9)), "whole", None, id="zero-and-list"),
        pytest.param(lambda c: wav(c, data=0xFFFFFFFF) + b"TAG" + b"x" * 125, "whole", None, id="all-ones-and-tag"),
        pytest.param(lambda c: wav(c) + bytes(5000), "wrong header", "5,000 bytes after its samples", id="zeros-after"),
    ],
)
def test_wav_is_read_whole_whatever_its_sizes(content, verdict, reason, pcm):
    check(content(pcm.tobytes()), pcm / np.float32(32768), verdict, reason)


def test_big_endian_wav_is_read_whole(pcm):
    fmt = struct.pack(">4sIHHIIHH", b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    body = b"WAVE" + fmt + b"data" + struct.pack(">I", SECOND) + pcm.astype(">i2").tobytes()
    check(b"RIFX" + struct.pack(">I", len(body)) + body, pcm / np.float32(32768), "wrong header", "32,000 bytes")


def test_wav_beyond_4_gib_is_read_to_its_end_in_constant_memory(pcm, tmp_path):
    """Its sizes count modulo 4 GiB."""
    path, first = tmp_path / "night.wav", pcm[: 5 * RATE_HZ].tobytes()
    size = 2**32 + len(first)
    claimed = size % 2**32
    with path.open("wb") as file:  # sparse: takes no room
        file.write(wav(first, data=claimed, riff=(36 + claimed) % 2**32))
        file.truncate(44 + size - len(first))
        file.seek(0, 2)
        file.write(first)
    info = probe(path)
    assert (info.verdict, info.num_samples) == ("wrong header", size // 2)
    last = decode(path, start_s=size / 2 / RATE_HZ - 5, duration_s=5)
    np.testing.assert_array_equal(last, np.frombuffer(first, "<i2") / np.float32(32768))
    tracemalloc.start()
    for number, _ in enumerate(stream(path)):
        if number == 50:
            break
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_samples_that_were_never_written_stay_out_of_a_recording(pcm):
    """Chunks, tags and other bytes after a size that is too small, right, or not filled in."""
    coded, expected = pcm.tobytes(), pcm / np.float32(32768)
    for data, riff in ((SECOND, 36 + SECOND), (len(coded), None), (0, 0)):
        for after in (chunk(b"LIST", b"INFOICMT" + b"word " * 50), chunk(b"bext", bytes(700)), b"TAG" + b"x" * 125):
            verdict = "wrong header" if data == SECOND else "whole"
            check(wav(coded, data=data, riff=riff, after=after), expected, verdict)


@pytest.mark.parametrize(
    ("coding", "kind"),
    [
        ("<f4", "FLOAT"),
        ("<i4", "PCM_32"),
        ("u1", "PCM_U8"),
        (">i2", "AIFF"),
        (">i2", "AU"),
        ("<i2", "RF64"),
        ("<i2", "W64"),
    ],
)
def test_other_codings_and_containers_are_read_whole(coding, kind, medley, pcm):
    container = kind if kind in ("AIFF", "AU", "RF64", "W64") else "WAV"
    subtype = "PCM_16" if container != "WAV" else kind
    content = bytearray(encoded(medley, format=container, subtype=subtype))
    expected = soundfile.read(io.BytesIO(bytes(content)), dtype="float32")[0]
    at, code = {
        "WAV": (content.find(b"data") + 4, "<I"),
        "AIFF": (content.find(b"SSND") + 4, ">I"),
        "AU": (8, ">I"),
        "RF64": (28, "<Q"),
        "W64": (content.find(b"data") + 16, "<Q"),
    }[container]
    struct.pack_into(code, content, at, struct.unpack_from(code, content, at)[0] // 2)
    check(bytes(content), expected, "wrong header")


def test_adpcm_is_read_whole_behind_a_corrected_header(medley):
    content = bytearray(encoded(medley, format="WAV", subtype="MS_ADPCM"))
    expected = soundfile.read(io.BytesIO(bytes(content)), dtype="float32")[0]
    at = content.find(b"data") + 4
    (size,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at, size // 2)
    check(bytes(content), expected, "wrong header")


@pytest.mark.parametrize(
    "kind", [{"format": "WAV", "subtype": "PCM_16"}, {"format": "RF64", "subtype": "PCM_16"}, FLAC]
)
def test_joined_lossless_files_are_read_to_the_end(kind, pcm):
    parts = [pcm[: 4 * RATE_HZ], pcm[4 * RATE_HZ : 8 * RATE_HZ], pcm[8 * RATE_HZ : 15 * RATE_HZ]]
    expected = pcm[: 15 * RATE_HZ] / np.float32(32768)
    content = b"".join(encoded(part / 32768, **kind) for part in parts)
    check(content, expected, "wrong header", "3 recordings")
    assert probe(AudioBytes("a", content)).claimed_s == 4.0


def test_joined_wav_whose_sizes_were_never_filled_in_are_divided_at_the_headers(pcm):
    parts = [pcm[: 4 * RATE_HZ], pcm[4 * RATE_HZ : 8 * RATE_HZ]]
    for data in (0, 0xFFFFFFFF, SECOND):
        content = b"".join(wav(part.tobytes(), data=data, riff=data) for part in parts)
        check(content, pcm[: 8 * RATE_HZ] / np.float32(32768), "wrong header", "2 recordings")


@pytest.mark.parametrize("kind", [VORBIS, OPUS])
def test_chained_ogg_is_read_to_the_end(kind, medley):
    parts = [encoded(part, **kind) for part in (medley[:64000], medley[64000:96000], medley[96000:200000])]
    expected = np.concatenate([soundfile.read(io.BytesIO(part), dtype="float32")[0] for part in parts])
    check(b"".join(parts), expected, "whole", atol=1e-6)


def test_joined_mp3_are_read_to_the_end(medley):
    parts = [encoded(part, **MP3) for part in (medley[:64000], medley[64000:200000])]
    expected = np.concatenate([soundfile.read(io.BytesIO(part), dtype="float32")[0] for part in parts])
    tag = b"ID3\3\0\0\0\0\0\x10" + bytes(16)
    for content in (parts[0] + parts[1], parts[0] + tag + parts[1], parts[0] + b"TAG" + b"x" * 125 + parts[1]):
        read = decode(AudioBytes("a", content), sample_rate_hz=RATE_HZ)
        np.testing.assert_allclose(read, expected, atol=1e-6)


def test_recordings_of_different_rates_are_not_joined(pcm):
    content = encoded(pcm[:32000] / 32768, **FLAC) + encoded(pcm[:32000] / 32768, rate_hz=8000, **FLAC)
    kept = check_cut(content, 32000, pcm[:64000], "sampling rate changes from 16000 to 8000 Hz")
    assert len(kept) == 32000


@pytest.mark.parametrize("count", ["half", "double", "+1", "-1", "0", "maximum"])
@pytest.mark.parametrize("length", [100_000, 4096 * 20])
def test_flac_is_read_whole_whatever_its_count(count, length, pcm):
    """Also if the last block is a full one, so that only the MD5 digest tells that nothing is missing."""
    content = encoded(pcm[:length] / 32768, **FLAC)
    claimed = {
        "half": length // 2, "double": 2 * length, "+1": length + 1, "-1": length - 1, "0": 0, "maximum": 2**36 - 1,
    }[count]  # fmt: skip
    count_field = bytes([content[21] & 0xF0 | claimed >> 32]) + (claimed & 2**32 - 1).to_bytes(4, "big")
    changed = content[:21] + count_field + content[26:]
    check(changed, pcm[:length] / np.float32(32768), "whole" if count == "0" else "wrong header")


def test_flac_that_is_cut_between_two_frames_is_cut(pcm):
    content = encoded(pcm[: 4096 * 20] / 32768, **FLAC)
    at = content.rfind(b"\xff\xf8")
    check_cut(content[:at], 4096 * 18, pcm[: 4096 * 20], "claims 81,920 samples, its frames hold 77,824")


@pytest.mark.parametrize("frames", ["half", "0", "double", "-1", "maximum"])
def test_mp3_is_read_whole_whatever_its_count(frames, medley):
    content = bytearray(encoded(medley, **MP3))
    expected = soundfile.read(io.BytesIO(bytes(content)), dtype="float32")[0]
    tag = max(content.find(b"Xing", 0, 64), content.find(b"Info", 0, 64))
    (right,) = struct.unpack_from(">I", content, tag + 8)
    claimed = {"half": right // 2, "0": 0, "double": 2 * right, "-1": right - 1, "maximum": 2**32 - 1}[frames]
    struct.pack_into(">I", content, tag + 8, claimed)
    check(bytes(content), expected, "whole" if frames == "0" else "wrong header", atol=1e-6)


@pytest.mark.parametrize("change", [0, 1, 50, 4000, 200_000])
def test_mp3_is_read_whole_whatever_the_size_of_its_tag(change, medley):
    content = encoded(medley, **MP3)
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    frame = b"TIT2" + struct.pack(">IH", 11, 0) + b"\3recording!"
    size = bytes(change >> 7 * place & 127 for place in (3, 2, 1, 0))
    check(b"ID3\3\0\0" + size + frame + bytes(900) + content, expected, "whole", atol=1e-6)


# Cut files


def test_wav_that_lacks_its_end_is_cut(pcm):
    content = wav(pcm.tobytes())
    assert len(check_cut(content[:-4000], 0, pcm, "claims .* bytes of samples")) == len(pcm) - 2000
    # The end of the second of two.
    kept = check_cut(wav(pcm[:32000].tobytes()) + content[:-4000], 0, np.zeros(32000 + len(pcm)), "recording 2 of 2")
    np.testing.assert_array_equal(kept[:32000], pcm[:32000] / np.float32(32768))


@pytest.mark.parametrize("kind", [FLAC, VORBIS, OPUS, MP3])
def test_compressed_files_that_lack_their_end_are_cut(kind, medley):
    content = encoded(medley, **kind)
    check_cut(content[: len(content) * 2 // 3], len(medley) // 3, medley, "truncated or damaged")
    if kind is not MP3:
        check_cut(content + content[: len(content) * 2 // 3], len(medley), np.tile(medley, 2), "truncated or damaged")


@pytest.mark.parametrize("kind", [VORBIS, OPUS])
@pytest.mark.parametrize("damage", ["flipped", "missing", "zeroed"])
def test_damaged_ogg_pages_are_found(kind, damage, medley):
    content = bytearray(encoded(medley, **kind))
    pages = [at for at in range(len(content)) if content[at : at + 5] == b"OggS\0"]
    at, after = pages[len(pages) // 2], pages[len(pages) // 2 + 1]
    if damage == "missing":
        del content[at:after]
    elif damage == "flipped":
        content[at + 400] ^= 1
    else:
        content[at:after] = bytes(after - at)
    assert probe(AudioBytes("a", bytes(content))).verdict == "cut"
    with pytest.raises(AudioDecodeError, match="truncated or damaged"):
        decode(AudioBytes("a", bytes(content)))


def test_what_follows_a_file_and_cannot_be_read_is_reported(pcm):
    content = wav(pcm.tobytes()) + b"RIFF\1\2\3\4WAVE" + b"\x11\x22" * 5000
    kept = check_cut(content, 0, np.zeros(len(pcm) + 1), "the header at byte")
    assert len(kept) == len(pcm)


# What is remembered, and how much is read


def test_a_file_that_has_changed_is_looked_at_again(pcm, tmp_path):
    path = tmp_path / "a.wav"
    for length in (16000, 48000):
        path.write_bytes(wav(pcm[:length].tobytes(), data=SECOND, riff=36 + SECOND))
        with collect_remarks():
            assert len(decode(path)) == length
    assert len(readers._known) <= 4096


def test_a_healthy_file_is_read_by_libsndfile_alone(pcm, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PiecesFile", None)
    for name, kind in (("a.flac", FLAC), ("a.ogg", VORBIS), ("a.mp3", MP3), ("a.wav", {"format": "WAV"})):
        (tmp_path / name).write_bytes(encoded(pcm / 32768, **kind))
        assert len(decode(tmp_path / name)) == len(pcm)


def test_remarks_are_collected_in_place_of_warnings_and_say_both_lengths(pcm, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(pcm[:192000].tobytes(), data=SECOND, riff=36 + SECOND))
    with collect_remarks() as remarks:
        decode(path)
    assert [(found.path, found.verdict) for found in remarks] == [(str(path), "wrong header")]
    assert "12.00 s are read, not the 1.00 s that its header claims" in remarks[0].reason


def test_mp3_frames_of_known_headers_have_their_length():
    assert [mp3_frame(head, 0) for head in (b"\xff\xfb\x90\0", b"\xff\xf3\x40\0", b"\xff\x00\0\0")] == [417, 104, 0]


def test_md5_of_flac_is_that_of_its_samples(pcm):
    content = encoded(pcm[:5000] / 32768, **FLAC)
    assert content[26:42] == hashlib.md5(pcm[:5000].tobytes()).digest()


def test_samples_of_8_bits_that_read_as_text_are_samples_where_the_file_counts_them(pcm):
    coded = (pcm[: 2 * RATE_HZ] // 256 + 128).astype(np.uint8)
    coded[-44:] = np.frombuffer(b"[p[p[p\\p\\p\\p]q]q]q]q]q^q^q_r_r_r`r`r`rararas"[:44], np.uint8)
    content = wav(coded.tobytes(), data=len(coded) - 44, width=1, after=chunk(b"LIST", b"INFOICMT" + bytes(30)))
    check(content, (coded.astype(np.float32) - 128) / 128, "wrong header", "claims 31,956 bytes of samples")


@pytest.mark.parametrize("counted", [1, 2])
def test_a_size_that_counts_the_chunks_after_the_samples_makes_no_samples_of_them(pcm, counted):
    coded = pcm[: 2 * RATE_HZ].tobytes()
    chunks = [chunk(b"LIST", b"INFOICMT" + bytes(30)), chunk(b"id3 ", b"ID3" + bytes(21))]
    size = len(coded) + sum(map(len, chunks[:counted]))
    content = wav(coded, data=size, after=b"".join(chunks))
    check(content, pcm[: 2 * RATE_HZ] / 32768, "wrong header", f"claims {size:,} bytes of samples")


@pytest.mark.parametrize(
    ("form", "name", "subtype"), [("WAV", b"data", "PCM_U8"), ("AIFF", b"SSND", "PCM_S8"), ("W64", b"data", "PCM_U8")]
)
def test_a_last_sample_in_the_place_of_a_pad_byte_is_no_pad_byte(medley, form, name, subtype):
    samples = medley[RATE_HZ : 2 * RATE_HZ]  # an even number
    content = encoded(samples, format=form, subtype=subtype)
    at, code = {"WAV": (4, "<I"), "AIFF": (4, ">I"), "W64": (16, "<Q")}[form]
    at += content.rfind(name)
    (size,) = struct.unpack_from(code, content, at)
    content = content[:at] + struct.pack(code, size - 1) + content[at + struct.calcsize(code) :]
    check(content, np.round(samples * 128) / 128, "wrong header", "bytes of samples", atol=0.01)


def test_a_pad_byte_at_the_end_of_a_caf_is_nothing_to_mention(medley):
    samples = medley[RATE_HZ : RATE_HZ + 4001]
    content = encoded(samples, format="CAF", subtype="PCM_24")
    check(content, samples, "whole", atol=1e-6)
    check(encoded(samples, format="CAF", subtype="PCM_S8"), samples, "whole", atol=0.01)


def test_noise_behind_a_size_that_was_never_filled_in_is_read(pcm):
    coded = np.random.default_rng(0).integers(-32768, 32767, 9000).astype("<i2")
    check(wav(coded.tobytes(), data=1), coded / 32768, "wrong header", "claims 1 bytes")


def test_metadata_of_flac_that_claims_the_first_frames_takes_none_of_them(pcm):
    content = encoded(np.zeros(3 * RATE_HZ), **FLAC)
    info_end = 42
    assert content[info_end] & 127 == 4  # VORBIS_COMMENT
    size = int.from_bytes(content[info_end + 1 : info_end + 4], "big")
    frame = content.find(b"\xff\xf8", info_end + 4 + size + 2)
    assert frame > 0
    content = content[: info_end + 1] + (frame - info_end - 4).to_bytes(3, "big") + content[info_end + 4 :]
    check(content, np.zeros(3 * RATE_HZ), "whole")
