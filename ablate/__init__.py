"""An experiment ablation orchestrator for LaneLM: studies in, ranked and explained configs out."""
