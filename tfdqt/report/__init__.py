"""Looking at runs: one HTML page with their curves, evaluations, games and texts."""
