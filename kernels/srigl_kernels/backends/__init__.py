"""One file or folder for each way to run a condensed layer."""
