"""Memory, time and cost of a stage on hardware that is not there."""
