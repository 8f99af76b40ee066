"""Durable storage: dumb atomic rows, and over them records that are sealed to their place."""
