"""SSAMBA (Self-Supervised Audio Mamba, arXiv 2405.11831) as an s3prl upstream for SUPERB."""

from .torchaudio_extension import ensure_torchaudio_imports

ensure_torchaudio_imports()
