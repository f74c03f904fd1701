"""The log of a run: log.jsonl, TensorBoard curves and a progress bar."""

import json
import sys
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from ..files import shown, to_json, write_text

SECONDS_IN_A_FILE = 60.0  # between updates of the progress bar if the output is not a terminal


class RunLog:
    """The log of a run.

    Args:
        folder: the run's folder.
        step: number of steps already done. Entries of later steps, which will be repeated, are dropped.
        steps: number of steps of the whole run.
        clips: clips per step.
        active: If False, nothing is written, as in processes other than the first.
    """

    def __init__(self, folder, step, steps, clips, active=True):
        self.active = active
        if not active:
            return
        self.file, self.clips = Path(folder) / "log.jsonl", clips
        self.shown = {}
        self._drop_after(step)
        self.curves = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)
        every = {} if sys.stderr.isatty() else {"mininterval": SECONDS_IN_A_FILE, "maxinterval": SECONDS_IN_A_FILE}
        self.progress = tqdm(initial=step * clips, total=steps * clips, unit="clip", smoothing=0.05, dynamic_ncols=True,
                             **every)

    def advance(self):
        """Count a step."""
        if self.active:
            self.progress.update(self.clips)

    def record(self, step, kind, **values):
        """Log a line of numbers and add each to its curve; ``kind`` is "training", "validation", "probe" or "event".

        The progress bar shows the training values and the last probe's accuracy.
        """
        if not self.active:
            return
        with self.file.open("a") as file:
            file.write(to_json({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.curves.add_scalar(f"{kind}/{name}", value, step)
        texts = {name: shown(value, ".4g") if value is None or isinstance(value, float) else value
                 for name, value in values.items()}
        if kind == "training":
            self.shown |= texts
        else:
            if kind == "probe":
                self.shown["probe"] = texts["test_accuracy"]
            self.say(f"step {step} {kind}: {', '.join(f'{name} {text}' for name, text in texts.items())}")
        self.progress.set_postfix(self.shown, refresh=False)

    def say(self, sentence):
        """Print a sentence above the progress bar."""
        if self.active:
            self.progress.write(sentence)

    def close(self):
        if self.active:
            self.curves.close()
            self.progress.close()

    def _drop_after(self, step):
        if not self.file.exists():
            return
        kept = []
        for line in self.file.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # incomplete after an interruption
                continue
        write_text("".join(kept), self.file)
