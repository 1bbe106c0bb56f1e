"""Models: families, files, the hub, weights and adapters, sharding, and the one model in memory."""
