"""Teachers: frozen models whose frames a student learns to predict.

Upstreams of s3prl can also be teachers. Since only ``plugin/`` may import s3prl, ``ssamba pretrain`` passes them from
:mod:`ssamba_upstream.plugin.teachers` to :func:`ssamba_upstream.pretraining.trainer.pretrain`.
"""

import ctypes
import importlib.metadata
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import cached_file

from ..audio import SAMPLE_RATE
from ..files import file_hash
from ..store import state_hash

SHORTEST = 1600
"""Samples to which shorter waveforms are zero-padded, because speech models need one or two windows."""


class TeacherError(ValueError):
    """A teacher that cannot be used. The message says what to do."""


class Teacher:
    """A frozen model that maps waveforms to frames.

    Frame i of a waveform describes the audio around sample ``centre + i * hop``.

    Attributes:
        hop, centre: hop and first centre in samples at 16 kHz.
        name, license: name and licence of the model; the licence is None if it is not stated.
        layers, width: number of hidden states, and number of their features.
    """

    hop: int
    centre: float
    name: str
    license: str | None = None

    def hidden_states(self, wav):
        """Map a single waveform, (samples,) float32 at 16 kHz, to (layers, frames, width)."""
        raise NotImplementedError

    def description(self):
        """Return everything that determines the hidden states, for a store, including ``upstream`` and ``weights``."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, wavs):
        """Map a list of waveforms, (samples,) float32 at 16 kHz, to a list of (layers, frames, width) float32 on the
        CPU. A waveform's frames do not depend on the others."""
        return [self.hidden_states(F.pad(wav, (0, max(0, SHORTEST - len(wav))))).float().cpu() for wav in wavs]

    def measure(self):
        """Determine ``layers`` and ``width``, and check the hop, on one second of silence."""
        self.layers, frames, self.width = self([torch.zeros(SAMPLE_RATE)])[0].shape
        if abs(frames - SAMPLE_RATE / self.hop) > 2:
            raise TeacherError(f"{self.name} gives {frames} frames for a second, but its hop is {self.hop} samples. "
                               "Use a teacher whose hidden states follow one another in time.")
        return self

    @property
    def credit(self):
        """Name and licence as text."""
        return f"{self.name} ({self.license or 'licence not stated: ask its authors'})"


class GoogleSpeechEmbedding(Teacher):
    """Google's speech embedding (arXiv 2002.01322), 96 numbers every 80 ms, from the package ``pyopen-wakeword``.

    A frame sees a window of 76 log-mel frames, 775 ms, around its centre. Both networks are fully convolutional and
    process a whole waveform in one call, padded with digital silence at both ends.
    """

    hop, centre = 1280, 640
    name, license = "Google's speech embedding", "apache-2.0"

    MEL_HOP, MEL_WINDOW, MEL_BANDS = 160, 512, 32
    WINDOW = 75 * MEL_HOP + MEL_WINDOW
    """Receptive field of a frame in samples."""

    def __init__(self, model, device):
        try:
            from pyopen_wakeword import OpenWakeWordFeatures
        except ImportError as error:
            raise TeacherError("Google's speech embedding needs the package pyopen-wakeword. Install it with pip "
                               "install 'ssamba-upstream[distillation]'.") from error
        self.networks = OpenWakeWordFeatures.from_builtin()

    def description(self):
        files = self.networks.mel_path, self.networks.emb_path
        return {"upstream": "google_speech_embedding", "weights": "".join(file_hash(file)[:32] for file in files),
                "pyopen-wakeword": importlib.metadata.version("pyopen-wakeword")}

    def hidden_states(self, wav):
        frames = math.ceil(len(wav) / self.hop)
        before = self.WINDOW // 2 - self.centre
        samples = (frames - 1) * self.hop + self.WINDOW
        heard = F.pad(wav.cpu(), (before, samples - before - len(wav))) * 2 ** 15  # in the scale of int16
        log_mel = self._run(self.networks.mel_interpreter, heard.numpy()[None])
        log_mel = log_mel.reshape(1, -1, self.MEL_BANDS, 1) / 10 + 2  # as the embedding was trained
        embedding = self._run(self.networks.emb_interpreter, log_mel)
        return torch.from_numpy(embedding.reshape(1, frames, -1))

    def _run(self, interpreter, values):
        """Run a TensorFlow Lite network on an array of any length, through its C interface."""
        library = self.networks.lib
        values = np.ascontiguousarray(values, np.float32)
        shape = (ctypes.c_int32 * values.ndim)(*values.shape)
        failed = library.TfLiteInterpreterResizeInputTensor(interpreter, 0, shape, values.ndim)
        failed = failed or library.TfLiteInterpreterAllocateTensors(interpreter)
        if not failed:
            tensor = library.TfLiteInterpreterGetInputTensor(interpreter, 0)
            failed = library.TfLiteTensorCopyFromBuffer(tensor, _address(values), ctypes.c_size_t(values.nbytes))
        if failed or library.TfLiteInterpreterInvoke(interpreter):
            raise TeacherError(f"TensorFlow Lite cannot run Google's speech embedding on an input of {values.shape}. "
                               "Install the version of pyopen-wakeword that the extra distillation requires.")
        tensor = library.TfLiteInterpreterGetOutputTensor(interpreter, 0)
        shape = [library.TfLiteTensorDim(tensor, axis) for axis in range(library.TfLiteTensorNumDims(tensor))]
        result = np.empty(shape, np.float32)
        library.TfLiteTensorCopyToBuffer(tensor, _address(result), ctypes.c_size_t(result.nbytes))
        return result


def _address(values):
    return values.ctypes.data_as(ctypes.c_void_p)


class TransformersTeacher(Teacher):
    """An audio model of transformers, given by folder or by name on the Hugging Face hub.

    Supported are models whose frames come from a stack of convolutions over samples, such as wav2vec 2.0, HuBERT, WavLM
    and Data2Vec, and the encoders of Whisper.
    """

    def __init__(self, model, device):
        if not model:
            raise TeacherError("A teacher from transformers needs a folder or a name. Write transformers:NAME.")
        self.name, self.license = Path(model).name if Path(model).is_dir() else model, _license(model)
        self.extractor = AutoFeatureExtractor.from_pretrained(model)
        network = AutoModel.from_pretrained(model, dtype=torch.float32)
        network = network.get_encoder() if network.config.is_encoder_decoder else network
        self.network, self.device = network.to(device).eval(), device
        self.hop, self.centre = self._framing()

    def _framing(self):
        config = self.network.config
        if hasattr(config, "conv_stride"):
            centre, hop = 0.5, 1
            for kernel, stride in zip(config.conv_kernel, config.conv_stride):
                centre, hop = centre + (kernel - 1) / 2 * hop, hop * stride
            return hop, centre
        if config.model_type == "whisper":
            hop = self.extractor.hop_length * self.network.conv1.stride[0] * self.network.conv2.stride[0]
            return hop, hop / 2
        raise TeacherError(f"{self.name} is a {config.model_type}, whose hidden states may not be frames. Use a model "
                           "such as HuBERT or Whisper, or an upstream of s3prl.")

    def description(self):
        return {"upstream": "transformers", "weights": state_hash(self.network),
                "extractor": self.extractor.to_json_string()}

    def hidden_states(self, wav):
        inputs = self.extractor(wav.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        name = self.extractor.model_input_names[0]
        output = self.network(inputs[name].to(self.device), output_hidden_states=True)
        states = torch.cat(output.hidden_states)
        return states[:, :math.ceil(len(wav) / self.hop)]  # Whisper pads to 30 s


def _license(model):
    """Return the licence stated in the model's card, or None."""
    folder = Path(model)
    try:
        card = folder / "README.md" if folder.is_dir() else cached_file(model, "README.md")
        return ModelCard.load(card).data.license
    except (OSError, ValueError):
        return None


KINDS = {"google_speech_embedding": GoogleSpeechEmbedding, "transformers": TransformersTeacher}
"""Kinds of teachers that do not need s3prl."""


def load_teacher(teacher, device, more_kinds=None):
    """Load a teacher.

    Args:
        teacher: "KIND" or "KIND:MODEL", see :class:`ssamba_upstream.pretraining.recipe.PretrainingRecipe`.
        device: device of the teacher, if it is a torch network.
        more_kinds: classes of kinds other than :data:`KINDS`, by name. A class is called with MODEL and device.

    Raises:
        TeacherError: If the kind is unknown, or the model cannot be used.
    """
    kinds = {**KINDS, **(more_kinds or {})}
    kind, _, model = teacher.partition(":")
    if kind not in kinds:
        raise TeacherError(f"{kind!r} is not a kind of teacher. Use one of {', '.join(sorted(kinds))}.")
    return kinds[kind](model, device).measure()
