"""s3prl's run_downstream.py with the ssamba entries, and with the same arguments."""

from ssamba_upstream.plugin.runner import main

if __name__ == "__main__":
    main()
