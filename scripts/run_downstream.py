"""s3prl's run_downstream.py with the ssamba entries; takes exactly its arguments."""

from ssamba_upstream.plugin.runner import main

if __name__ == "__main__":
    main()
