"""The cloister command: thin wrappers over the services and the client."""
