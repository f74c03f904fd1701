"""Damage audio headers so that they claim a wrong length."""


def claim_wav_bytes(path, claim):
    """Make a wav file look as if written to a pipe, where a program cannot go back to fill in the length."""
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place:place + 4] = claim.to_bytes(4, "little")
    path.write_bytes(content)


def claim_mp3_frames(path, frames):
    """Set the number of frames in an MP3's Xing header."""
    content = bytearray(path.read_bytes())
    place = content.index(b"Xing") + 8
    content[place:place + 4] = frames.to_bytes(4, "big")
    path.write_bytes(content)


def claim_flac_samples(path, samples):
    """Set the number of samples in a flac's header, which has 36 bits; 0 means unknown."""
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
