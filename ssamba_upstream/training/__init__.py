"""What pretraining and fine-tuning share: batches, the loop, its states, processes and records. No s3prl."""


class TrainingError(RuntimeError):
    """Training cannot go on, or cannot go on from its state, or cannot save it; the message says why and what to do."""
