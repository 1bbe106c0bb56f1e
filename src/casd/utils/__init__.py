"""Utilities of all packages: errors, seeds, registry, progress, processes, disk."""
