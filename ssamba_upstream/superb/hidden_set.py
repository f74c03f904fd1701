"""The folder that SUPERB's hidden-set track wants: a checkpoint and an ``expert.py`` that loads it."""

import importlib.metadata
from pathlib import Path

from ..checkpoint import load_model, save_model
from ..files import new_folder, write_text
from ..frames import FrameEncoder

PACKAGE = "ssamba-upstream"

EXPERT = '''"""The upstream as SUPERB's hidden-set track and s3prl's `--hub huggingface` load it.

`UpstreamExpert(ckpt="model.pt")` is ssamba_upstream's, with the options that it has by default.
"""

from ssamba_upstream.plugin.expert import UpstreamExpert

__all__ = ["UpstreamExpert"]
'''

README = """---
library_name: s3prl
tags:
- speech
- superb
---

# SSAMBA as an upstream for SUPERB

Self-Supervised Audio Mamba (arXiv 2405.11831), {size}: {layers} Mamba layers, {parameters:,} parameters.

| file | |
|---|---|
| `expert.py` | `UpstreamExpert`, from the package ssamba-upstream |
| `model.pt` | configuration and weights; `torch.load` reads it with `weights_only=True` |
| `requirements.txt` | the package, in the version that wrote this folder |

```python
from expert import UpstreamExpert

upstream = UpstreamExpert(ckpt="model.pt")
hidden_states = upstream(wavs)["hidden_states"]  # wavs: a list of (samples,) tensors at 16 kHz
```

`hidden_states` is a list of {states} tensors (utterances, frames, {width}): the input of the first layer and
the output of each. There is a frame every {hop} samples, for every task. Neither a GPU nor a compiler is
needed.

s3prl loads this repository with `run_downstream.py --hub huggingface -u <user>/<repository>`.
"""


def export_hidden_set(checkpoint, out) -> None:
    """Write the folder of the hidden-set track: ``expert.py``, ``model.pt``, ``requirements.txt``, ``README.md``.

    s3prl's ``--hub huggingface`` downloads such a folder as a repository of the Hugging Face hub. Heads
    that the checkpoint has beside the encoder are left out.

    Args:
        checkpoint: of any format, see :func:`ssamba_upstream.checkpoint.load_model`.
        out: a new folder.

    Raises:
        CheckpointError: see :func:`ssamba_upstream.checkpoint.load_model`.
        FileExistsError: ``out`` exists and is not an empty folder.
        ValueError: this package is not installed, so that there is no version to require.
    """
    requirement = f"{PACKAGE}=={_version()}\n"
    with new_folder(out) as folder:
        save_model(load_model(checkpoint), folder / "model.ckpt")
        (folder / "model.ckpt").rename(folder / "model.pt")
        write_text(EXPERT, folder / "expert.py")
        write_text(requirement, folder / "requirements.txt")
        write_text(_describe(folder / "model.pt"), folder / "README.md")


def _version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{PACKAGE} is not installed, so that requirements.txt cannot name its version; "
                         "run `pip install .` in its checkout") from None


def _describe(checkpoint: Path) -> str:
    encoder = FrameEncoder.from_checkpoint(checkpoint)
    config = encoder.model.config
    return README.format(
        size=f"the {config.size} size" if config.size else f"width {config.hidden_size}",
        layers=config.num_hidden_layers,
        parameters=sum(parameter.numel() for parameter in encoder.model.parameters()),
        states=config.num_hidden_layers + 1,
        width=encoder.width,
        hop=encoder.windowing.hop,
    )
