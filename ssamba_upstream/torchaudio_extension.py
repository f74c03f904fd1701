"""Import torchaudio even if its compiled extension cannot be loaded.

Published torchaudio wheels link against CUDA. With a CPU-only torch, ``import torchaudio`` fails, although this
package, transformers and s3prl need none of its compiled parts. Transformers imports torchaudio as well, so this repair
must run before transformers is imported.
"""

import importlib
import sys
import types


def ensure_torchaudio_imports() -> bool:
    """Import torchaudio, without its compiled extension if that cannot be loaded.

    Returns:
        True if the extension was replaced by a stand-in that declares it absent.

    Raises:
        ImportError, OSError: If torchaudio is missing, or fails for a reason other than its extension.
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
        raise RuntimeError(f"torchaudio.functional.{function.__name__} needs torchaudio's compiled extension, which "
                           "cannot be loaded with this torch. Install matching builds of torch and torchaudio.")
    return unavailable
