"""Code shared by pretraining and fine-tuning: batches, loop, training states, processes and logs; without s3prl."""


class TrainingError(RuntimeError):
    """Training that cannot continue, resume from its state or save it. The message says why and what to do."""
