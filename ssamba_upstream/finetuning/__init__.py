"""Fine-tuning: a labelled set and a checkpoint -> a classifier."""
