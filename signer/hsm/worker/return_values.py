"""What a return value of the module means for the worker, and the error that it is raised as."""

import enum

from signer.hsm.spec import FailureKind


class ErrorClass(enum.StrEnum):
    """How we treat a return value. Codes are not portable; unknown ones are fatal."""

    REFUSED = "refused"
    SESSION_LOST = "session_lost"
    BUSY = "busy"
    MODULE_FATAL = "module_fatal"


_FAILURES = {
    ErrorClass.REFUSED: FailureKind.MODULE_FATAL,  # where the session goes on, nothing fails
    ErrorClass.SESSION_LOST: FailureKind.SESSION_LOST,
    ErrorClass.BUSY: FailureKind.BUSY,
    ErrorClass.MODULE_FATAL: FailureKind.MODULE_FATAL,
}
"""Why a worker leaves after an error of a class."""
_DEAD_HANDLE = (0x060, 0x082, 0x0F0, 0x113)
"""CKR_KEY_HANDLE_INVALID, CKR_OBJECT_HANDLE_INVALID, CKR_UNWRAPPING_KEY_HANDLE_INVALID,
CKR_WRAPPING_KEY_HANDLE_INVALID."""
_NOT_UNWRAPPED = (
    *(0x005, 0x006, 0x007),  # CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED, CKR_ARGUMENTS_BAD
    *(0x013, 0x040, 0x041),  # CKR_ATTRIBUTE_VALUE_INVALID, CKR_ENCRYPTED_DATA_INVALID, _LEN_RANGE
    *(0x0F1, 0x0F2),  # CKR_UNWRAPPING_KEY_SIZE_RANGE, _TYPE_INCONSISTENT
    *(0x110, 0x112, 0x150),  # CKR_WRAPPED_KEY_INVALID, _LEN_RANGE, CKR_BUFFER_TOO_SMALL
    *(0x0D0, 0x0D1),  # CKR_TEMPLATE_INCOMPLETE, CKR_TEMPLATE_INCONSISTENT
)
"""What modules answer to C_UnwrapKey where a blob was changed or another key has wrapped it;
SoftHSM: CKR_GENERAL_ERROR. The session goes on, if the module still answers in it."""
_NOT_GENERATED = (
    *(0x010, 0x011, 0x012, 0x013),  # CKR_ATTRIBUTE_READ_ONLY, _SENSITIVE, _TYPE_, _VALUE_INVALID
    *(0x0D0, 0x0D1, 0x130),  # CKR_TEMPLATE_INCOMPLETE, _INCONSISTENT, CKR_DOMAIN_PARAMS_INVALID
    *(0x0B5, 0x0E2, 0x200),  # CKR_SESSION_READ_ONLY, CKR_TOKEN_WRITE_PROTECTED, _FUNCTION_REJECTED
)
"""What modules answer to C_GenerateKeyPair for a key that they do not make; the session goes on."""
_DEVICE_MEMORY, _MECHANISM_INVALID = 0x031, 0x070
PARTLY_READ = (0x011, 0x012, 0x150)
"""CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID, CKR_BUFFER_TOO_SMALL: C_GetAttributeValue
has read the other attributes."""
_CLASSES = {
    0x054: ErrorClass.REFUSED,  # CKR_FUNCTION_NOT_SUPPORTED
    0x060: ErrorClass.REFUSED,  # CKR_KEY_HANDLE_INVALID
    0x062: ErrorClass.REFUSED,  # CKR_KEY_SIZE_RANGE
    0x063: ErrorClass.REFUSED,  # CKR_KEY_TYPE_INCONSISTENT
    0x068: ErrorClass.REFUSED,  # CKR_KEY_FUNCTION_NOT_PERMITTED
    0x070: ErrorClass.REFUSED,  # CKR_MECHANISM_INVALID
    0x071: ErrorClass.REFUSED,  # CKR_MECHANISM_PARAM_INVALID
    0x082: ErrorClass.REFUSED,  # CKR_OBJECT_HANDLE_INVALID
    0x0F0: ErrorClass.REFUSED,  # CKR_UNWRAPPING_KEY_HANDLE_INVALID
    0x113: ErrorClass.REFUSED,  # CKR_WRAPPING_KEY_HANDLE_INVALID
    0x069: ErrorClass.REFUSED,  # CKR_KEY_NOT_WRAPPABLE
    0x06A: ErrorClass.REFUSED,  # CKR_KEY_UNEXTRACTABLE
    0x0B0: ErrorClass.SESSION_LOST,  # CKR_SESSION_CLOSED
    0x0B3: ErrorClass.SESSION_LOST,  # CKR_SESSION_HANDLE_INVALID
    0x032: ErrorClass.SESSION_LOST,  # CKR_DEVICE_REMOVED
    0x0E0: ErrorClass.SESSION_LOST,  # CKR_TOKEN_NOT_PRESENT
    0x101: ErrorClass.SESSION_LOST,  # CKR_USER_NOT_LOGGED_IN
    0x002: ErrorClass.BUSY,  # CKR_HOST_MEMORY
    0x031: ErrorClass.BUSY,  # CKR_DEVICE_MEMORY
    0x0B1: ErrorClass.BUSY,  # CKR_SESSION_COUNT
}


def error_class(value: int) -> ErrorClass:
    """Returns how we treat a return value."""
    return _CLASSES.get(value, ErrorClass.MODULE_FATAL)


class CryptokiError(Exception):
    """A call of the module failed. ``usable``: the session may go on (C_SignInit refused).

    ``dead_handle``: the key of this handle does not exist any more. ``not_unwrapped``: the
    module can have found a fault in what it was to unwrap. ``not_wrappable``: it does not wrap
    such a key. ``full``: the token has no room for a key pair; the session goes on.
    ``no_mechanism``: the token does not make such a key pair. ``failure``: why the worker leaves
    if it may not go on.
    """

    def __init__(self, call: str, value: int) -> None:
        self.call = call
        self.value = value
        generates = call == "C_GenerateKeyPair"
        refused = generates and value in _NOT_GENERATED
        self.error_class = ErrorClass.REFUSED if refused else error_class(value)
        self.full = generates and value == _DEVICE_MEMORY
        self.no_mechanism = generates and value == _MECHANISM_INVALID
        self.failure = _FAILURES[self.error_class]
        self.dead_handle = call != "C_Sign" and value in _DEAD_HANDLE
        self.usable = call == "C_SignInit" and self.error_class is ErrorClass.REFUSED
        self.not_wrappable = call == "C_WrapKey" and self.error_class is ErrorClass.REFUSED
        self.not_unwrapped = call == "C_UnwrapKey" and (
            value in _NOT_UNWRAPPED or self.error_class is ErrorClass.REFUSED
        )
        super().__init__(f"{call} returned 0x{value:08x} ({self.error_class})")
