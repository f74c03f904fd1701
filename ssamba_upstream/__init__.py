"""SSAMBA (Self-Supervised Audio Mamba, arXiv 2405.11831) as an s3prl upstream for SUPERB.

Importing this package does not import s3prl; :func:`register` does.
"""

from .torchaudio_extension import ensure_torchaudio_imports

ensure_torchaudio_imports()

from transformers import (  # noqa: E402
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForPreTraining,
)

from .network.classification import SsambaForAudioClassification, SsambaForAudioFrameClassification  # noqa: E402
from .network.configuration import SsambaConfig  # noqa: E402
from .feature_extraction import SsambaFeatureExtractor  # noqa: E402
from .network.modeling import SsambaModel  # noqa: E402
from .plugin.registry import register  # noqa: E402
from .network.pretraining import SsambaForPreTraining  # noqa: E402

AutoConfig.register(SsambaConfig.model_type, SsambaConfig)
AutoModel.register(SsambaConfig, SsambaModel)
AutoModelForPreTraining.register(SsambaConfig, SsambaForPreTraining)
AutoModelForAudioClassification.register(SsambaConfig, SsambaForAudioClassification)
AutoModelForAudioFrameClassification.register(SsambaConfig, SsambaForAudioFrameClassification)
AutoFeatureExtractor.register(SsambaConfig, SsambaFeatureExtractor)

__all__ = [
    "SsambaConfig",
    "SsambaFeatureExtractor",
    "SsambaForAudioClassification",
    "SsambaForAudioFrameClassification",
    "SsambaForPreTraining",
    "SsambaModel",
    "register",
]
