"""Unlearning: objectives (one per file), removal of one backdoor at a time, and controls.

To add an objective, write its file, add a line here, and add a YAML file to `configs/unlearning/`.
"""

OBJECTIVES: dict[str, str] = {
    "gradient_difference": "casd.unlearning.gradient_difference:GradientDifference",
    "clean_target": "casd.unlearning.clean_target:CleanTarget",
    "gradient_ascent": "casd.unlearning.gradient_ascent:GradientAscent",
    "hinge_ascent": "casd.unlearning.hinge_ascent:HingeAscent",
    "weighted_gradient_ascent": "casd.unlearning.weighted_gradient_ascent:WeightedGradientAscent",
    "npo": "casd.unlearning.npo:Npo",
    "simnpo": "casd.unlearning.simnpo:SimNpo",
    "rmu": "casd.unlearning.rmu:Rmu",
    "task_vector": "casd.unlearning.task_vector:TaskVector",
    "retain_only": "casd.unlearning.retain_only:RetainOnly",
}
