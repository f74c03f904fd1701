"""All between log-mel and tokens: the encoder and its heads. No files, no audio, no s3prl."""
