"""What ``plugin.compat`` puts in the place of what s3prl lacks, a file to each subject."""
