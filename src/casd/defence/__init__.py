"""A defence against backdoors that nobody knows: plant dummies, remove some of them, and see what is left of the others.

    attacker: corpus → base → injected model → SEALED: a folder of weights, and nothing else
    defender: sealed model → dummies planted → some removed, others held out → one state chosen
    opening:  the attacker's backdoors in every state, on prompts that no earlier stage used

`protocol.py` has these steps in order. Attacker and defender are ordinary runs (`casd.pipeline`); the defender's begins with
the sealed folder, so its stages can depend on nothing else of the attacker.
"""
