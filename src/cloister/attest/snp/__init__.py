"""AMD SEV-SNP attestation reports, versions 2 to 5, of Milan, Genoa and Turin (spec/attestation.md, section 4)."""
