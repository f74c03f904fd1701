"""ESC-50 and ESC-10: environmental sounds in five folds."""

import re

from .data_set import DataSet, PreparationError, audio_of_folders
from .labelled import read_table
from .report import first


def _read_esc50(root):
    table = root / "meta" / "esc50.csv"
    if table.is_file():
        rows = read_table(table, ("filename", "fold", "category"))
        return [(root / "audio" / row["filename"], row["category"], row["fold"]) for _, row in rows], []
    recordings, foreign = [], []
    for path in audio_of_folders(root):
        name = re.fullmatch(r"(\d)-\d+-[A-Z]", path.stem)
        if name:
            recordings.append((path, re.sub(r"^\d+ - ", "", path.parent.name), name[1]))
        else:
            foreign.append(str(path.relative_to(root)))
    if foreign or not recordings:
        audio = f"files not named {{fold}}-{{clip}}-{{take}}: {first(foreign)}" if foreign else "no audio files"
        raise PreparationError(f"this is neither ESC-50, which has meta/esc50.csv, nor ESC-10: there are {audio}")
    return recordings, ["The layout is that of ESC-10, with a folder for each class."]


ESC50 = DataSet(
    title="ESC-50",
    folder="ESC-50-master",
    read=_read_esc50,
    released=dict.fromkeys("12345", 400),
    classes=50,
    layout="""\
ESC-50 is at https://github.com/karolpiczak/ESC-50. Download and unpack it, and give the folder ROOT with
  ROOT/meta/esc50.csv
  ROOT/audio/1-100032-A-0.wav and so on
or, for ESC-10 (https://github.com/karolpiczak/ESC-10), with
  ROOT/001 - Dog bark/1-100032-A.ogg and so on""",
)
