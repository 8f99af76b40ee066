"""Fakes that pass the same contract tests as the real adapters, shipped so that users can test."""
