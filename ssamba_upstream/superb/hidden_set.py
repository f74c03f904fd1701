"""The folder for SUPERB's hidden-set track: a checkpoint and an ``expert.py`` that loads it."""

import functools
import itertools
import math
from dataclasses import asdict, fields, replace

import torch
from torch import nn

from ..checkpoint import describe_size, load_model, save_model
from ..extras import NOT_INSTALLED, installed_version
from ..files import new_folder, write_text
from ..frames import FrameEncoder, UpstreamOptions
from ..plugin.expert import UpstreamExpert
from ..plugin.repairs.frames import LONGEST_HOPS, RunError
from .tasks import TASKS

PACKAGE = "ssamba-upstream"

KEYS = tuple("QbE" if name == "qbe" else name.upper() for name in TASKS)
"""The track's names for the tasks."""


class HiddenSetExpert(UpstreamExpert):
    """An upstream whose hop depends on the task, for s3prl without this package's runner.

    The track reads a task's hidden states and hop by the task's name. Tasks that work with any hop get the
    checkpoint's default hop; other tasks get a shorter hop if they need one. If no task is named, which is s3prl's
    default, the hop is short enough for every task.

    Args:
        ckpt, model_config, refresh, options: see :class:`UpstreamExpert`. A ``time_stride`` applies to all tasks.

    Raises:
        ValueError, CheckpointError: see :class:`UpstreamExpert`.
    """

    def __init__(self, ckpt=None, model_config=None, refresh=False, **options):
        options = UpstreamOptions.read(model_config, **options)
        super().__init__(ckpt, **asdict(options))
        self._one_hop = options.time_stride is not None
        strides = {self._time_stride(key) for key in (*KEYS, "hidden_states")} - {self.windowing.time_stride}
        self.other_strides = nn.ModuleDict(
            {str(stride): FrameEncoder.from_model(self.model, replace(options, time_stride=stride))
             for stride in sorted(strides)})
        self._last_read = "hidden_states"

    def _time_stride(self, key):
        if self._one_hop:
            return self.windowing.time_stride
        return max(1, min(self.windowing.hop, _longest_hop(key)) // self.windowing.front_end.shift_samples)

    def get_downsample_rates(self, key: str = None) -> int:
        """Return the hop in samples at 16 kHz, for a task such as "PR" or for "hidden_states".

        Raises:
            RunError: If the frames are too far apart for the task.
        """
        hop, longest = self._time_stride(key) * self.windowing.front_end.shift_samples, _longest_hop(key)
        if key in KEYS and hop > longest:
            advice = ("Remove time_stride from the options, so that each task gets its own." if self._one_hop else
                      "Use a checkpoint whose fbank frames are closer together.")
            raise RunError(f"{key} needs a frame at least every {longest / 16:g} ms, but this upstream gives one every "
                           f"{hop / 16:g} ms. {advice}")
        return hop

    def forward(self, wavs):
        """Encode waveforms.

        Args:
            wavs: see :meth:`FrameEncoder.forward`.

        Returns:
            StatesByKey with ``hidden_states``, ``last_hidden_state`` and, for every task, a list of depth + 1 tensors
            (utterances, frames, width). The key last read from an earlier output is computed immediately.
        """
        encode = functools.cache(lambda stride: self._encode(wavs, stride))

        def compute(key):
            self._last_read = key
            states = encode(self._time_stride(key))
            return states["last_hidden_state" if key == "last_hidden_state" else "hidden_states"]

        output = StatesByKey(("hidden_states", "last_hidden_state", *KEYS), compute)
        output[self._last_read]
        return output

    def _encode(self, wavs, stride):
        if stride == self.windowing.time_stride:
            return super().forward(wavs)
        output = self.other_strides[str(stride)](wavs)
        return {"hidden_states": list(output.hidden_states), "last_hidden_state": output.last_hidden_state}


class StatesByKey(dict):
    """A dict that computes a value when it is first read, with gradients only if they were enabled at construction.

    s3prl runs a frozen upstream without gradients, but reads its output with gradients enabled.

    Args:
        keys: all keys.
        compute: function that takes a key and returns its value.
    """

    def __init__(self, keys, compute):
        super().__init__(dict.fromkeys(keys))
        self._compute, self._gradients = compute, torch.is_grad_enabled()

    def __getitem__(self, key):
        if super().__getitem__(key) is None:
            with torch.set_grad_enabled(self._gradients):
                self[key] = self._compute(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        return self[key] if key in self else default

    def values(self):
        return [self[key] for key in self]

    def items(self):
        return [(key, self[key]) for key in self]


def _longest_hop(key):
    """Return the longest hop in samples with which a task works; for other keys, with which all tasks work."""
    if key in KEYS:
        return LONGEST_HOPS.get(TASKS[key.lower()].downstream, math.inf)
    return min(LONGEST_HOPS.values())


EXPERT = '''"""The upstream for SUPERB's hidden-set track and s3prl's `--hub huggingface`.

`UpstreamExpert(ckpt="model.pt")` comes from ssamba_upstream. Every task gets frames that are close enough together;
`get_downsample_rates(task)` raises an error if the options prevent this.
"""

from ssamba_upstream.superb.hidden_set import HiddenSetExpert

__all__ = ["UpstreamExpert"]

OPTIONS = {options!r}


class UpstreamExpert(HiddenSetExpert):
    """HiddenSetExpert with OPTIONS, unless `model_config` is given."""

    def __init__(self, ckpt=None, model_config=None, **others):
        super().__init__(ckpt, model_config, **({{}} if model_config else OPTIONS), **others)
'''

README = """---
library_name: s3prl
tags:
- speech
- superb
---

# SSAMBA as an upstream for SUPERB

Self-Supervised Audio Mamba (arXiv 2405.11831), {size}, {parameters:,} parameters.

| file | |
|---|---|
| `expert.py` | `UpstreamExpert`, from the package ssamba-upstream |
| `model.pt` | configuration and weights; `torch.load` reads it with `weights_only=True` |
| `requirements.txt` | the package version that wrote this folder |

```python
from expert import UpstreamExpert

upstream = UpstreamExpert(ckpt="model.pt")
hidden_states = upstream(wavs)["PR"]  # wavs: a list of (samples,) tensors at 16 kHz
hop = upstream.get_downsample_rates("PR")
```

`hidden_states` is a list of {states} tensors (utterances, frames, {width}): the input of the first layer and
the output of each layer. All tasks share the network; the hop between frames depends on the task:

| hop (samples) | keys |
|---|---|
{hops}

A task's hidden states are computed when its key is read. Neither a GPU nor a compiler is needed.

s3prl loads this repository with `run_downstream.py --hub huggingface -u <user>/<repository>` and selects a task's
hidden states with `-s`, such as `-s PR`.
"""


def export_hidden_set(checkpoint, out, options=None) -> None:
    """Write the folder of the hidden-set track: ``expert.py``, ``model.pt``, ``requirements.txt``, ``README.md``.

    s3prl's ``--hub huggingface`` downloads such a folder from a Hugging Face repository. Only the checkpoint's
    encoder is written, without its heads.

    Args:
        checkpoint: checkpoint in any format, see :func:`ssamba_upstream.checkpoint.load_model`.
        out: a new folder.
        options: UpstreamOptions. Default: the default options, with the hop that each task needs.

    Raises:
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
        FileExistsError: If ``out`` exists and is not an empty folder.
        RunError: If, with these options, the frames are too far apart for a task.
        ValueError: If this package is not installed and so has no version to require, or if an option is out of range.
    """
    version = installed_version(PACKAGE)
    if version == NOT_INSTALLED:
        raise ValueError(f"{PACKAGE} is not installed, so requirements.txt cannot name its version. Run "
                         "`pip install .` in its checkout.")
    options = options or UpstreamOptions()
    changed = {field.name: value for field in fields(options)
               if (value := getattr(options, field.name)) != field.default}
    with new_folder(out) as folder:
        save_model(load_model(checkpoint), folder / "model.ckpt")
        (folder / "model.ckpt").rename(folder / "model.pt")
        write_text(EXPERT.format(options=changed), folder / "expert.py")
        write_text(f"{PACKAGE}=={version}\n", folder / "requirements.txt")
        write_text(_describe(HiddenSetExpert(folder / "model.pt", **changed)), folder / "README.md")


def _describe(expert: HiddenSetExpert) -> str:
    config = expert.model.config
    keys = sorted(("hidden_states", *KEYS), key=expert.get_downsample_rates)
    hops = [f"| {hop} | {', '.join(same)} |" for hop, same in itertools.groupby(keys, expert.get_downsample_rates)]
    return README.format(
        size=describe_size(config),
        parameters=sum(parameter.numel() for parameter in expert.parameters()),
        states=config.num_hidden_layers + 1,
        width=expert.width,
        hops="\n".join(hops),
    )
