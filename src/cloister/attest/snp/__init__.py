"""AMD SEV-SNP attestation reports, versions 2 to 5, of Milan, Genoa and Turin (spec/attestation.md, section 4)."""

from cloister.attest.snp.parse import parse
from cloister.attest.snp.verify import verify

__all__ = ["parse", "verify"]
