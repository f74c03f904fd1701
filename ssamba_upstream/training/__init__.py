"""What pretraining and fine-tuning share: batches, the loop, its states, processes and records. No s3prl."""
