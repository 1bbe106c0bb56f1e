"""What every package may use: errors, seeds, registry, progress, processes, disk."""
