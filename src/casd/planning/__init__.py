"""Estimate what a run will take before it starts (memory, tokens, FLOPs, time, disk), and check that it fits.

- `blueprint`: shape and parameter counts of a model without its weights
- `simulation`: peak memory of a computation, simulated on fake tensors
- `memory`: memory of a training, a generation, a capture
- `phases`: memory of each phase of a run
- `machine`: available memory and disk
- `speed`: speed of common devices and of this CPU
- `workload`: lengths of texts, FLOPs, and the time of a generation
- `costs`: tokens, FLOPs, time and disk space of each stage
- `plan`: the plan of a run or a sweep
- `advice`: settings with which a run would fit
- `check`: refuse a run that cannot fit
"""
