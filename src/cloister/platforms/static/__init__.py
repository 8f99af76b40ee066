"""Instances that somebody else starts: compose files, service managers, people. See ``driver``."""
