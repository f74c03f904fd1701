"""Fine-tuning a checkpoint on a labelled set, giving a classifier."""
