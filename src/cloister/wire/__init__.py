"""Bytes on the network: strict, versioned codecs for everything the specification defines."""
