"""Headers of audio files that claim other lengths than the files have."""


def claim_wav_bytes(path, claim):
    """A wav file as a program leaves it that writes to a pipe, and cannot go back to fill in the length."""
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[4:8] = content[place:place + 4] = claim.to_bytes(4, "little")
    path.write_bytes(content)


def claim_mp3_frames(path, frames):
    """An MP3 whose Xing header counts so many frames."""
    content = bytearray(path.read_bytes())
    place = content.index(b"Xing") + 8
    content[place:place + 4] = frames.to_bytes(4, "big")
    path.write_bytes(content)


def claim_flac_samples(path, samples):
    """A flac whose header gives it so many samples, in 36 bits; 0 stands for an unknown number."""
    content = bytearray(path.read_bytes())
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
