"""The KeyService: holds keys, decides releases. Runs inside a TEE."""
