"""Instances as actions of an OpenWhisk namespace: one action each, invoked over the platform's REST API.

The Platform port's promises, and how far OpenWhisk can keep them, are in docs/adr/0008-openwhisk.md.
"""
