"""Suite 1 over pyca/cryptography: HPKE, chunked AEAD, signatures, key derivation."""
