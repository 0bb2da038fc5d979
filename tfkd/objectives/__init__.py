"""What a student learns from a teacher. One file, one class, one objective; this table is the whole list."""

from tfkd.objectives.kl_divergence import KLDivergence
from tfkd.objectives.objective import Objective, ResponseObjective

OBJECTIVES = {objective.default_name: objective for objective in (KLDivergence,)}

__all__ = ["OBJECTIVES", "KLDivergence", "Objective", "ResponseObjective"]
