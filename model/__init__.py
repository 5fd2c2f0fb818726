"""LaneLM: lane detection as autoregressive language modelling over a frozen feature pyramid."""
