"""Unlearning: one objective a file, the removal of one backdoor at a time, and the controls.

To add an objective: write its file, add its line here, give it a YAML in `configs/unlearning/`.
"""

OBJECTIVES: dict[str, str] = {
    "gradient_difference": "casd.unlearning.gradient_difference:GradientDifference",
    "clean_target": "casd.unlearning.clean_target:CleanTarget",
}
