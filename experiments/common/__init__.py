"""What every command uses: flags and errors, files, progress, registries, the environment."""
