"""What confirms a log head from outside: witnesses, and a majority of replicas before them (claim S7)."""
