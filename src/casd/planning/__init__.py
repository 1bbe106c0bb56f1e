"""Estimate what a run will take before it starts (memory, tokens, FLOPs, time, disk), and check that it fits.

- `blueprint`: shape and parameter counts of a model without its weights
- `simulation`: peak memory of a computation, simulated on fake tensors
- `memory`: memory of a training, a generation, a capture
- `workload`: lengths of texts, and FLOPs
- `phases`: memory of each phase of a run
- `machine`: available memory and disk
- `plan`: the plan of a run
- `advice`: settings with which a run would fit
- `check`: refuse a run that cannot fit
"""
