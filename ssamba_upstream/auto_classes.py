"""Register the package's models with transformers' Auto classes, on import."""

from .torchaudio_extension import ensure_torchaudio_imports

ensure_torchaudio_imports()  # before transformers, which imports torchaudio

from transformers import (  # noqa: E402
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForAudioFrameClassification,
    AutoModelForPreTraining,
)

from .feature_extraction import SsambaFeatureExtractor  # noqa: E402
from .network.classification import SsambaForAudioClassification, SsambaForAudioFrameClassification  # noqa: E402
from .network.configuration import SsambaConfig  # noqa: E402
from .network.modeling import SsambaModel  # noqa: E402
from .network.pretraining import SsambaForPreTraining  # noqa: E402

AutoConfig.register(SsambaConfig.model_type, SsambaConfig)
AutoModel.register(SsambaConfig, SsambaModel)
AutoModelForPreTraining.register(SsambaConfig, SsambaForPreTraining)
AutoModelForAudioClassification.register(SsambaConfig, SsambaForAudioClassification)
AutoModelForAudioFrameClassification.register(SsambaConfig, SsambaForAudioFrameClassification)
AutoFeatureExtractor.register(SsambaConfig, SsambaFeatureExtractor)
