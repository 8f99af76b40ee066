"""The enclave runtime: caches, scheduling, isolation, inference. Runs inside a TEE."""
