"""What goes wrong with object stores, as the port's errors: the only place that reads obstore's texts."""

from __future__ import annotations

import re
from typing import Final

from cloister.adapters.modelstore import failures
from cloister.adapters.modelstore.object_url import Kind, ObjectUrl
from cloister.base.errors import CloisterError, InvalidInput
from cloister.base.ids import ModelId

_STATUS: Final = re.compile(r"status code: (\d{3})")
_REASON: Final = re.compile(r"<Code>\s*([A-Za-z]{1,64})\s*</Code>")
_METADATA: Final = ("/latest/api/token", "/latest/meta-data", "computeMetadata", "/metadata/identity")
_NO_BUCKET: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"})
_NO_METADATA: Final = frozenset({400, 401, 403, 404})
_WRONG_REGION: Final = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_UNKNOWN: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthenticationFailed"}
)
_VARIABLES: Final = {
    Kind.S3: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    Kind.GCS: "GOOGLE_APPLICATION_CREDENTIALS",
    Kind.AZURE: "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}


def failure(error: Exception, url: ObjectUrl, model: ModelId, name: str) -> CloisterError:
    """What an error of obstore's means. The store's answer is in its text, so only known words are looked for."""
    text = str(error)
    found, said = _STATUS.search(text), _REASON.search(text)
    status = int(found[1]) if found else 0
    reason = said[1] if said else ""
    if any(mark in text for mark in _METADATA) and (status in _NO_METADATA or "kind: Connect" in text):
        return failures.denied(f"It found no credentials: set {_VARIABLES[url.kind]}, or anonymous=true.")
    if reason in _NO_BUCKET:
        return failures.misconfigured(
            "has no such bucket or container",
            "Create it, or check bucket, account, region and endpoint in the URL.",
        )
    if reason in _WRONG_REGION or "redirect without LOCATION" in text:
        return failures.misconfigured("has this bucket in another region", "Name it: ?region=... or AWS_REGION.")
    if reason in _UNKNOWN:
        return failures.denied("It does not accept these credentials: they are wrong, expired, or of another account.")
    if reason == "RequestTimeTooSkewed":
        return failures.denied("This machine's clock differs from the store's by more than 15 minutes.")
    if isinstance(error, FileNotFoundError):
        return failures.not_found(model, name)
    if status:
        return failures.of_status(status, model, name, hint=_denied_hint(url))
    if type(error).__name__ == "UnauthenticatedError":  # before anything was sent
        return failures.denied("Its credentials cannot be had any more: the file or service that gave them fails.")
    if "NotPartial" in text:
        return failures.misconfigured(
            "answers with a whole file where a range was asked for", "The endpoint must support range requests."
        )
    if "BadScheme" in text:
        return failures.misconfigured(
            "has an endpoint without TLS", "Write it into the URL: ?endpoint=http://..., not into the environment."
        )
    if "InvalidCertificate(" in text:
        return failures.misconfigured(
            "has a certificate that is not accepted",
            "Name a private authority by ?ca=FILE; the certificate must be of this host.",
        )
    return failures.unavailable("cannot be reached" if "kind: Connect" in text else "does not answer")


def unopened(error: Exception, url: ObjectUrl) -> InvalidInput:
    """The settings are not good enough to begin with."""
    hint = "Check the URL's options, the files it names, and the variables of the environment."
    if "No CA certificates" in str(error):
        hint = "This machine has no certificate authorities: install ca-certificates, or set SSL_CERT_FILE."
    return InvalidInput(
        "store-url-malformed", f"the {url.kind.value} store cannot be opened with these settings", hint=hint
    )


def _denied_hint(url: ObjectUrl) -> str:
    if url.anonymous:
        return "The URL says anonymous=true: let everybody read it, or give credentials."
    absent = " S3 says this of absent files, too, where listing is not allowed." if url.kind is Kind.S3 else ""
    return f"Check {_VARIABLES[url.kind]} and what they allow (docs/how-to/object-stores.md).{absent}"
