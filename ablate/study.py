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
]
