"""From log-mel to tokens: the encoder and its heads. Touches no files, no audio and no s3prl."""
