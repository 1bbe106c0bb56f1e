"""The training loop shared by pretraining, injection and unlearning.

- `losses`: negative log-likelihoods of batches
- `gradients`: gradients of a step, over processes and micro-batches
- `checkpoints`: the training log, and checkpoints to resume from
- `loop`: `train`
"""
