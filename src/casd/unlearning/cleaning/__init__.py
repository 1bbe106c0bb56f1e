"""Cleaning: methods that need no trigger and train on clean text alone, one per file; what removals are compared with.

To add a method, write its file and add a line here.
"""

CLEANINGS: dict[str, str] = {
    "fine_tuning": "casd.unlearning.cleaning.fine_tuning:FineTuning",
    "fine_pruning": "casd.unlearning.cleaning.fine_pruning:FinePruning",
    "crow": "casd.unlearning.cleaning.crow:Crow",
    "averaging": "casd.unlearning.cleaning.averaging:Averaging",
}
