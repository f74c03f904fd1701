"""s3prl's upstreams as teachers for pretraining."""

import importlib

from ..pretraining.teachers import Teacher, TeacherError
from .compat import register
from .kept_states import KeptUpstream, NoSuchFeature, describe


class S3prlTeacher(Teacher):
    """An s3prl upstream given by its name, or by NAME:CHECKPOINT if it reads a checkpoint.

    s3prl does not specify where a frame's audio lies; its centre is assumed to be half a hop after its start.
    """

    def __init__(self, model, device):
        register()
        self.name, _, checkpoint = model.partition(":")
        entry = getattr(importlib.import_module("s3prl.hub"), self.name, None) if self.name else None
        if entry is None:
            raise TeacherError(f"s3prl has no upstream {self.name!r}. Write s3prl:NAME or s3prl:NAME:CHECKPOINT.")
        self.upstream = KeptUpstream(entry(**{"ckpt": checkpoint} if checkpoint else {}).to(device).eval(), store=None)
        self.device = device
        self.hop = self.upstream.get_downsample_rates("hidden_states")
        self.centre = self.hop / 2

    def description(self):
        return describe(self.upstream.module, self.name)

    def hidden_states(self, wav):
        try:
            return self.upstream.compute([wav.to(self.device)])[0]
        except NoSuchFeature:
            raise TeacherError(f"s3prl's {self.name} returns no hidden states. Use another upstream.") from None
