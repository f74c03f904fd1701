"""Pretraining, from a folder of audio to a checkpoint. Nothing here imports s3prl."""
