"""Real models to try the system with: the three vision networks of the SeSeMI paper, and a classifier of patients."""
