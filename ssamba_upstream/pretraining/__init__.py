"""Pretraining, from a folder of audio to a checkpoint; without s3prl."""
