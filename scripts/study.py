"""Compare pretraining recipes on real recordings, using probes trained on few labels.

    python scripts/study.py AUDIO OUT [RECIPE...] [--seed N]    # files or names in study.yaml; default: all names

AUDIO contains the Free Spoken Digit Dataset in ``fsdd/recordings`` and ESC-10 as ``esc10/CLASS/FOLD-*.ogg``. Each
recipe is pretrained without labels in OUT/RECIPE, or in OUT/RECIPE-N if --seed is given. The training audio is the
digits except takes 0 to 6 (0 to 4 are the test set), ESC-10, and any ``more/**/*.wav`` in AUDIO, which
scripts/distilled_audio.py creates. Probes then read the frozen layers at a hop of 20 ms, as averages over time, and as
averages and standard deviations. Frames at the end are weighted by the share of audio in them. The log-mel and the
network before its first step are probed in the same way. Run the same command again to continue an interrupted study.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
import yaml

from ssamba_upstream.audio import identity
from ssamba_upstream.checkpoint import load_model
from ssamba_upstream.corpora.labelled import members_of_splits, rotate_folds
from ssamba_upstream.files import markdown_table, write_text
from ssamba_upstream.network.pretraining import SsambaForPreTraining
from ssamba_upstream.pretraining.recipe import PretrainingRecipe
from ssamba_upstream.pretraining.trainer import pretrain
from ssamba_upstream.probing.cache import remembered
from ssamba_upstream.probing.features import log_mel_averages, time_averages
from ssamba_upstream.training.recipe import read_recipe

VARIATIONS = Path(__file__).with_suffix(".yaml")
DRAWS = 10
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)  # multiples of the mean of the Gram matrix's diagonal
LABELS = (3, 10)  # per class
TEST, CHOOSING, VALIDATION, READ = range(5), range(5, 10), range(5, 7), range(30)  # takes of a digit and speaker
HOP = 2  # log-mel frames
READING = {"deviations": True, "by_audio": True}  # arguments of time_averages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", type=Path, nargs="*")
    parser.add_argument("--seed", type=int, help="seed to use instead of the recipes' seeds")
    options = parser.parse_args()
    audio, out = options.audio.resolve(), options.out
    out.mkdir(parents=True, exist_ok=True)
    digits, sounds = sorted(audio.glob("fsdd/recordings/*.wav")), sorted(audio.glob("esc10/*/*.ogg"))
    if not digits or not sounds:
        parser.error(f"{audio} contains no fsdd/recordings/*.wav, or no esc10/*/*.ogg")
    overrides, suffix = write_manifests(out, audio, digits, sounds), ""
    if options.seed is not None:
        overrides, suffix = [*overrides, f"seed={options.seed}"], f"-{options.seed}"
    compared = [("log-mel", None, lambda: log_mel_averages)]
    for path in recipe_files(options.recipes, out / "recipes"):
        recipe, name = read_recipe(path, PretrainingRecipe, overrides), path.stem + suffix
        compared += [(f"{name}, random weights", recipe.to_dict(), partial(untrained, recipe)),
                     (name, recipe.to_dict(), partial(pretrained, recipe, out / name))]
    read = [digit for digit in digits if take(digit) in READ]
    audio_read, table = [identity(file) for file in [*read, *sounds]], []
    for name, recipe, reader in compared:
        description = {"compared": name, "recipe": recipe, "audio": audio_read, "hop": HOP, **READING}
        rows = remembered(out / "results", description, lambda reader=reader: measure(reader(), read, sounds))
        table += [{"recipe": name, **row} for row in rows]
    rows = [[f"{cell:.1f}" if isinstance(cell, float) else cell for cell in row.values()] for row in table]
    write_text(markdown_table(list(table[0]), rows) + "\n", out / "results.md")
    print(f"wrote {out / 'results.md'}")


def recipe_files(names, folder):
    """Return the recipes' files; all variations in study.yaml are written into a folder, so one can extend another."""
    variations = yaml.safe_load(VARIATIONS.read_text(encoding="utf-8"))
    for name, fields in variations.items():
        base = fields.get("extends")
        file = {**fields, "extends": f"{base}.yaml"} if base in variations else fields
        write_text(yaml.safe_dump(file), folder / f"{name}.yaml")
    return [folder / f"{name}.yaml" if str(name) in variations else name for name in names or sorted(variations)]


def take(digit):
    """Return a recording's number among the recordings of its digit and speaker."""
    return int(digit.stem.split("_")[2])


def write_manifests(out, audio, digits, sounds):
    """Write the manifests for pretraining and validation; return overrides of a recipe that name them."""
    validation = [digit for digit in digits if take(digit) in VALIDATION] + sounds[::20]
    train = [file for file in digits + sounds if file not in validation and (file in sounds or take(file) not in TEST)]
    if more := sorted(audio.glob("more/**/*.wav")):  # six times as long
        train = [file for file in train for _ in range(2 if file in sounds else 3)] + more
    overrides = []
    for name, files in (("train", train), ("validation", validation)):
        lines = "".join(f"{file.relative_to(audio)}\t0\n" for file in files)
        write_text(f"{audio}\n{lines}", out / f"{name}.tsv")
        overrides.append(f"{name}={out / name}.tsv")
    return overrides


def untrained(recipe):
    """Return a function from recordings to averages over time, for a recipe's network before its first step."""
    config = recipe.config()
    config.time_stride = hop_of(config)
    torch.manual_seed(recipe.seed)
    return averages_of(SsambaForPreTraining(config).ssamba)


def pretrained(recipe, run):
    """Finish a recipe's pretraining run if necessary, and return :func:`averages_of` its network."""
    if not pretrain(recipe, run, resume=True):
        raise SystemExit("Interrupted. Run the same command again to continue.")
    network = load_model(run / "last", time_stride=hop_of(recipe.config()))
    return averages_of(network)


def averages_of(network):
    """Return a function from recordings to averages over time, in windows as long as the pretraining clips."""
    config = network.config
    window_secs = None if config.causal else config.front_end.seconds_of(config.pretraining_frames)
    return partial(time_averages, network, window_secs=window_secs, **READING)


def hop_of(config):
    """Return HOP, or the width of a network's patches if that is less."""
    return min(HOP, config.patch_size[1])


def measure(read, digits, sounds):
    """Return two dicts of accuracies in percent: for averages only, and for averages and deviations."""
    digit_features, sound_features, rows = read(digits), read(sounds), []
    for pooling in ("mean", "mean and deviation"):
        parts = 2 if pooling == "mean" else 1
        row = {"pooling": pooling}
        features = digit_features[..., :digit_features.shape[2] // parts]
        for task, field in (("digits", 0), ("speakers", 1)):
            labels = [digit.stem.split("_")[field] for digit in digits]
            for count in LABELS:
                row[f"{task}, {count} labels"] = few_labels(features, labels, [take(digit) for digit in digits], count)
        features = sound_features[..., :sound_features.shape[2] // parts]
        row["ESC-10, folds"] = cross_validate(features, [s.parent.name for s in sounds], [s.name[0] for s in sounds])
        rows.append(row)
    return rows


def few_labels(features, labels, takes, count):
    """Return the mean accuracy over draws of ``count`` training recordings per class."""
    choosing = [i for i, number in enumerate(takes) if number in CHOOSING]
    test = [i for i, number in enumerate(takes) if number in TEST]
    accuracies = []
    for draw in range(DRAWS):
        drawn, train = {}, []
        for i in torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw)).tolist():
            if takes[i] not in TEST and takes[i] not in CHOOSING and drawn.get(labels[i], 0) < count:
                drawn[labels[i]] = drawn.get(labels[i], 0) + 1
                train.append(i)
        accuracies.append(probe(features, labels, train, choosing, test))
    return 100 * mean(accuracies)


def cross_validate(features, labels, folds):
    """Return the mean accuracy over folds; each is the test set once, and the next one chooses layer and penalty."""
    return 100 * mean(probe(features, labels, *members_of_splits(splits).values()) for _, splits in rotate_folds(folds))


def probe(features, labels, train, choosing, test):
    """Return the test accuracy of the layer and penalty that are best on the ``choosing`` recordings.

    The probe is a ridge regression onto the classes, in its dual form, which is exact and fast for few training
    recordings.
    """
    classes = sorted(set(labels))
    targets = torch.tensor([classes.index(label) for label in labels])
    deviation, average = torch.std_mean(features[:, train], dim=1, keepdim=True, correction=0)
    deviation = deviation.masked_fill(deviation <= 1e-6 * average.abs(), torch.inf)
    known, *asked = ((features[:, part] - average) / deviation for part in (train, choosing, test))
    gram = (known @ known.mT).double()
    scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    wanted = F.one_hot(targets[train], len(classes)).double()
    share = wanted.mean(0)
    found = []
    for penalty in PENALTIES:
        ridge = penalty * scale * torch.eye(len(train), dtype=torch.float64)
        weights = torch.linalg.solve(gram + ridge, (wanted - share).expand(len(gram), -1, -1))
        scores = ((part @ known.mT).double() @ weights + share for part in asked)
        found.append([(score.argmax(2) == targets[part]).double().mean(1)
                      for score, part in zip(scores, (choosing, test))])
    choice, result = (torch.stack(accuracies).flatten() for accuracies in zip(*found))
    return result[choice.argmax()].item()


if __name__ == "__main__":
    main()
