"""What a job's readings mean: the door to the criteria, the gates and the diagnosis. Pure."""

from model.criteria import CRITERIA, Condition, Criterion, Gate, gates
from model.diagnosis import Finding, diagnose

__all__ = ["CRITERIA", "Condition", "Criterion", "Finding", "Gate", "diagnose", "gates"]
