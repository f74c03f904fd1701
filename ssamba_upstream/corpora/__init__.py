"""What recordings there are, and their labels: manifests, labelled sets, and corpora, a file to each. No s3prl."""
