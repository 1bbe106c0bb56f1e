"""The one training loop that pretraining, injection and removal share.

- `batches`: rows of tokens: their parts and their shares
- `losses`: negative log-likelihoods of such batches
- `checkpoints`: the log of a training, and how one goes on where it was
- `sharding`: a model divided over several devices
- `gradients`: those of a step, over processes and micro-batches
- `loop`: the steps
"""
