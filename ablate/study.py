"""A study in one import: its nouns, `load_study` that reads one, `plan` that makes its jobs."""

from ablate.nouns import (
    Arm,
    Condition,
    Criterion,
    Design,
    Factor,
    Finding,
    Gate,
    Job,
    Level,
    Options,
    Plan,
    Result,
    Settings,
    State,
    Study,
    StudyError,
)
from ablate.plan import plan
from ablate.reader import load_study

__all__ = [
    "Arm",
    "Condition",
    "Criterion",
    "Design",
    "Factor",
    "Finding",
    "Gate",
    "Job",
    "Level",
    "Options",
    "Plan",
    "Result",
    "Settings",
    "State",
    "Study",
    "StudyError",
    "load_study",
    "plan",
]
