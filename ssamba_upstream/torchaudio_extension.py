"""Import torchaudio where its compiled extension cannot be loaded.

Published torchaudio wheels link against CUDA. Beside a CPU-only torch, ``import torchaudio`` fails although nothing
that this package, transformers or s3prl needs of it is compiled. Transformers imports torchaudio as well, so this
repair has to come before transformers is imported.
"""

import importlib
import sys
import types


def ensure_torchaudio_imports() -> bool:
    """Import torchaudio, without its compiled extension if that cannot be loaded.

    Returns:
        True when the extension had to be replaced by a stand-in that declares it absent.

    Raises:
        ImportError, OSError: torchaudio is missing, or broken in another way than its extension.
    """
    try:
        importlib.import_module("torchaudio")
        return False
    except OSError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
    sys.modules["torchaudio._extension"] = _absent_extension()
    importlib.import_module("torchaudio")
    return True


def _absent_extension() -> types.ModuleType:
    extension = types.ModuleType("torchaudio._extension", "Stand-in for an extension that could not be loaded.")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension._IS_ALIGN_AVAILABLE = False
    extension.fail_if_no_align = _fail_without_alignment
    return extension


def _fail_without_alignment(function):
    def unavailable(*args, **kwargs):
        raise RuntimeError(f"torchaudio.functional.{function.__name__} needs torchaudio's compiled extension, "
                           "which cannot be loaded beside this torch; install matching builds of the two.")
    return unavailable
