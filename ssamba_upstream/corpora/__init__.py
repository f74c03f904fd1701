"""What recordings there are, and what is said in them: manifests, labelled sets and the layouts of corpora. No s3prl."""
