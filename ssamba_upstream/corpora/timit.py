"""TIMIT: read sentences with their phones, as s3prl's ``timit_phone`` downstreams use them."""

from pathlib import Path

from .alignments import AlignedSet, Segment, check_order
from .labelled import LabelledSetError

RATE = 16000  # sampling rate in Hz for the sample numbers in .PHN files

# The core test set of TIMIT's readme.doc; the other speakers of TEST are dev, as in s3prl's ``timit_phone``.
CORE_TEST_SPEAKERS = frozenset(
    "MDAB0 MWBT0 FELC0 MTAS1 MWEW0 FPAS0 MJMP0 MLNT0 FPKT0 MLLL0 MTLS0 FJLM0 "
    "MBPM0 MKLT0 FNLP0 MCMJ0 MJDH0 FMGD0 MGRT0 MNJM0 FDHC0 MJLN0 MPAM0 FMLD0".split()
)

# TIMIT's 61 phones as 39 classes: Lee and Hon, "Speaker-independent phone recognition using hidden Markov models"
# (1989). A phone that is not listed is its own class, except the glottal stop q, which has none.
CLASSES = {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m", "en": "n",
    "nx": "n", "eng": "ng", "zh": "sh", "ux": "uw",
    **dict.fromkeys(("pcl", "tcl", "kcl", "bcl", "dcl", "gcl", "h#", "pau", "epi"), "sil"),
}
UNLABELLED = "q"
PHONES = frozenset(
    "iy ih eh ae ix ax ah ax-h uw ux uh ao aa ey ay oy aw ow l el r y w er axr m em n nx en ng eng ch jh dh b d dx g p "
    "t k z zh v f th s sh hh hv pcl tcl kcl bcl dcl gcl q epi pau h#".split()
)


def read_timit(root) -> AlignedSet:
    """Read TIMIT's phones.

    Only SI and SX sentences are read, because SA sentences are the same for all speakers. TRAIN is train; in TEST, the
    24 speakers of the core test set are test and the others dev.

    Args:
        root: folder with ``TRAIN/DR1/FCJF0/SI1027.WAV``, ``SI1027.PHN`` next to it, and so on; in upper or lower case,
            and with any extensions after ``.WAV``.

    Returns:
        AlignedSet. Its groups are the speakers. A sentence whose ``.PHN`` is missing or damaged is skipped and listed
        in ``skipped``.

    Raises:
        LabelledSetError: If there are no such files.
    """
    segments, splits, groups, skipped = {}, {}, {}, []
    for path in _sentences(Path(root)):
        try:
            segments[path] = _read_phones(path)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        part, _, groups[path] = (folder.upper() for folder in path.parts[-4:-1])
        splits[path] = "train" if part == "TRAIN" else "test" if groups[path] in CORE_TEST_SPEAKERS else "dev"
    if not segments:
        unusable = f": {skipped[0]}" if skipped else ""
        raise LabelledSetError(f"{root} contains no sentences TRAIN/DR1/FCJF0/SI1027.WAV with SI1027.PHN next to them"
                               f"{unusable}. Give TIMIT's folder")
    return AlignedSet(segments, splits, skipped, groups)


def _sentences(root):
    """Return the recordings in TRAIN and TEST without SA, one per sentence; some copies have two formats of each."""
    found = {}
    for path in sorted(root.rglob("*/*/*/*")):
        sentence, *endings = path.name.upper().split(".")
        if sentence[:2] in ("SI", "SX") and endings[:1] == ["WAV"] and path.parts[-4].upper() in ("TRAIN", "TEST"):
            found.setdefault((path.parent, sentence), path)
    return found.values()


def _read_phones(recording):
    """Return the segments in the .PHN next to a recording; raises OSError or ValueError."""
    candidates = [recording.with_name(recording.name.split(".")[0] + ending) for ending in (".PHN", ".phn")]
    file = next(filter(Path.is_file, candidates), candidates[0])
    segments = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            start, end, phone = line.split()
            segment = Segment(int(start) / RATE, int(end) / RATE, CLASSES.get(phone, phone))
        except ValueError:
            phone, segment = None, None
        if phone not in PHONES or not 0 <= segment.start < segment.end:
            raise LabelledSetError(f"{file}, line {number}: expected a start, an end and a phone, such as "
                                   f"'2260 4149 sh'; got {line[:60]!r}")
        if phone != UNLABELLED:
            segments.append(segment)
    if not segments:
        raise LabelledSetError(f"{file} lists no phones")
    check_order(segments, file)
    return segments
