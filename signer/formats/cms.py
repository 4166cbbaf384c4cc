"""CMS: detached signatures in DER, CAdES-BES with signing-certificate-v2.

CMS is RFC 5652, CAdES ETSI EN 319 122-1, the attribute with the certificate RFC 5035.
"""

import hashlib
from collections.abc import Sequence

from cryptography.x509 import ObjectIdentifier

from signer.errors import CallError, Reason
from signer.format_terms import FormatContext, PreparedBatch
from signer.formats.cms_asn1 import CMS_ALGORITHMS, DATA
from signer.formats.cms_template import CmsTemplate, template
from signer.formats.payloads import MessageFormat, finish_each, signature_length, unreadable


class Cms(MessageFormat):
    """Any bytes; the output is the signature, which does not contain them."""

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Gives each signature its greatest length; raises CallError as ``prepare``."""
        return len(payloads) * _template(context).most_bytes(signature_length(context.version))

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Returns the signed attributes; raises CallError if no signature can be made."""
        head, tail = _template(context).around_digest(context.now)
        name = CMS_ALGORITHMS[context.version.algorithm].hash_name
        return PreparedBatch(
            [head + hashlib.new(name, payload).digest() + tail for payload in payloads], {}
        )

    def finish(
        self, prepared: PreparedBatch, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        return finish_each(prepared, signatures, _template(context).message)


class CmsDigest(Cms):
    """The digest of a content that the appliance does not see."""

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Accepts digests of exactly the right length; raises CallError as ``Cms``."""
        head, tail = _template(context).around_digest(context.now)
        name = CMS_ALGORITHMS[context.version.algorithm].hash_name
        size = hashlib.new(name).digest_size
        wrong = unreadable(f"payload is not a {name} digest of {size} bytes").failure
        failures = {i: wrong for i, payload in enumerate(payloads) if len(payload) != size}
        return PreparedBatch(
            [b"" if i in failures else head + each + tail for i, each in enumerate(payloads)],
            failures,
        )


def _template(context: FormatContext) -> CmsTemplate:
    """Returns the template of the key version; raises CallError if it cannot sign now."""
    return certified_template(context, DATA, "CMS")


def certified_template(
    context: FormatContext, content_type: ObjectIdentifier, what: str
) -> CmsTemplate:
    """Returns the template of a key version whose certificate is valid now.

    Raises CallError, which names the format, if there is none.
    """
    version, now = context.version, context.now
    if version.certificate is None:
        raise unfit(f"the key version has no certificate: import one before it signs {what}")
    try:
        made = template(version.certificate, version.algorithm, content_type, now)
    except ValueError:
        raise unfit("the certificate of the key version cannot be read: replace it") from None
    if now < made.not_before:
        raise unfit("the certificate of the key version is not valid yet")
    if now > made.not_after:
        raise unfit("the certificate of the key version has expired: rotate the key")
    return made


def unfit(message: str) -> CallError:
    """Returns the error for a key version that cannot sign a format now."""
    return CallError(Reason.KEY_VERSION_NOT_ACTIVE, message)
