"""Where encrypted models lie: a directory, or anything that answers HTTP range requests.

A store is hostile by assumption: it may withhold, and nothing else. Every byte is checked against the manifest.
"""
