"""What the log says: the state, the rules for what may be added, and what each entry does. Pure."""
