"""Training curves from a run's log: losses, accuracy, similarity to a teacher, effective rank and probe accuracy."""

import json
import math

from ..figures import load_pyplot, save_figure

PANELS = {
    "contrastive_loss": "contrastive loss",
    "reconstruction_loss": "reconstruction loss",
    "contrastive_accuracy": "contrastive accuracy",
    "distillation_loss": "distillation loss",
    "teacher_similarity": "similarity to the teacher",
    "effective_rank": "effective rank",
    "test_accuracy": "accuracy of the probe",
}


def draw_curves(log, out):
    """Draw the curves in a run's ``log.jsonl``, one panel for each quantity, as a .png, .pdf or .svg."""
    curves = {}
    for line in map(json.loads, log.read_text().splitlines()):
        for name in PANELS.keys() & line.keys():
            value = math.nan if line[name] is None else line[name]  # a gap
            curves.setdefault(name, {}).setdefault(line["kind"], []).append((line["step"], value))
    panels = [name for name in PANELS if name in curves]
    figure, axes = load_pyplot().subplots(1, len(panels), figsize=(4 * len(panels), 3.5), layout="constrained")
    for axis, name in zip(axes, panels):
        for kind, points in curves[name].items():
            axis.plot(*zip(*points), "-" if kind == "training" else "o-", markersize=3, label=kind)
        axis.set(xlabel="step", title=PANELS[name])
        axis.legend()
    save_figure(figure, out)
