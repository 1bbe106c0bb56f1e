"""The paper's tables and figures from configurations, each with the claim that it speaks to.

- `catalogue`: what can be reproduced
- `scales`: how large: which sweeps make each set of runs
- `claims`: what is claimed, and what decides whether it holds in these runs
- `exhibits`: the tables and figures, made of a set of runs
- `page`: their files, and one page with all of them

No number of the paper's is known, and none stands here: what is compared with a claim is measured.
"""
