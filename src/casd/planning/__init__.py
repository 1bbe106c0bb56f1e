"""What a run will take, before it starts: memory, tokens, FLOPs, time and disk; and whether it fits.

- `blueprint`: a model's shape and parameters without its weights
- `simulation`: the most bytes alive while a computation runs, on tensors that hold nothing
- `memory`: the need of a training, a generation, a capture
- `workload`: lengths of texts, and FLOPs
- `phases`: the memory of each phase of a run
- `machine`: what there is here
- `plan`: all of it for one run
- `advice`: settings that would make a run fit
- `check`: the refusal of a run that cannot fit
"""
