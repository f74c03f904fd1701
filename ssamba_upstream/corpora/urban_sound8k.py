"""UrbanSound8K in its ten folds, for mixing into scenes with a class for every second."""

from .data_set import DataSet
from .labelled import read_table


def _read_urban_sound(root):
    rows = read_table(root / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fold", "class"))
    return [(root / "audio" / f"fold{row['fold']}" / row["slice_file_name"], row["class"], f"fold{row['fold']}")
            for _, row in rows], []


URBAN8K_SCENES = DataSet(
    title="UrbanSound8K",
    folder="UrbanSound8K",
    read=_read_urban_sound,
    released=dict(zip((f"fold{i}" for i in range(1, 11)), (873, 888, 925, 990, 936, 823, 838, 806, 816, 837))),
    classes=10,
    layout="""\
UrbanSound8K is at https://urbansounddataset.weebly.com/urbansound8k.html. Download and unpack it, and give the folder
ROOT with
  ROOT/metadata/UrbanSound8K.csv
  ROOT/audio/fold1/101415-3-0-2.wav and so on, to fold10""",
    scenes=True,
)
