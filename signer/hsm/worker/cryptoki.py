"""Signing and listing keys, straight on the module's function list: python-pkcs11 is too slow.

Its ``sign`` makes three C calls and several allocations for each signature; the hot
loop makes two calls into one buffer (docs/adr/0002). Its search makes an object and two
C calls for every key that it finds, known or not. Everything else uses python-pkcs11.
"""

import ctypes
import enum
from collections.abc import Sequence

from signer.hsm.mechanisms import Mechanism, low_s
from signer.hsm.spec import FailureKind

_ULONG = ctypes.c_ulong
# Indexes in CK_FUNCTION_LIST (PKCS#11 v2.40, section 6.1.1)
_C_FIND_INIT, _C_FIND, _C_FIND_FINAL, _C_SIGN_INIT, _C_SIGN = 26, 27, 28, 42, 43
_FUNCTIONS = 68
_CKA_CLASS, _CKA_TOKEN, _CKO_PRIVATE_KEY = 0, 1, 3
_HANDLES_AT_ONCE = 1024
MAX_SIGNATURE = 512


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * _FUNCTIONS))


class _Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", _ULONG), ("parameter", ctypes.c_char_p), ("length", _ULONG))


class _Attribute(ctypes.Structure):
    _fields_ = (("type", _ULONG), ("value", ctypes.c_void_p), ("length", _ULONG))


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
_CLASSES = {
    0x060: ErrorClass.REFUSED,  # CKR_KEY_HANDLE_INVALID
    0x062: ErrorClass.REFUSED,  # CKR_KEY_SIZE_RANGE
    0x063: ErrorClass.REFUSED,  # CKR_KEY_TYPE_INCONSISTENT
    0x068: ErrorClass.REFUSED,  # CKR_KEY_FUNCTION_NOT_PERMITTED
    0x070: ErrorClass.REFUSED,  # CKR_MECHANISM_INVALID
    0x071: ErrorClass.REFUSED,  # CKR_MECHANISM_PARAM_INVALID
    0x082: ErrorClass.REFUSED,  # CKR_OBJECT_HANDLE_INVALID
    0x0B0: ErrorClass.SESSION_LOST,  # CKR_SESSION_CLOSED
    0x0B3: ErrorClass.SESSION_LOST,  # CKR_SESSION_HANDLE_INVALID
    0x032: ErrorClass.SESSION_LOST,  # CKR_DEVICE_REMOVED
    0x0E0: ErrorClass.SESSION_LOST,  # CKR_TOKEN_NOT_PRESENT
    0x101: ErrorClass.SESSION_LOST,  # CKR_USER_NOT_LOGGED_IN
    0x002: ErrorClass.BUSY,  # CKR_HOST_MEMORY
    0x031: ErrorClass.BUSY,  # CKR_DEVICE_MEMORY
    0x0B1: ErrorClass.BUSY,  # CKR_SESSION_COUNT
}


class CryptokiError(Exception):
    """A call of the module failed. ``usable``: the session may go on (C_SignInit refused).

    ``failure``: why the worker leaves where it may not.
    """

    def __init__(self, call: str, value: int) -> None:
        self.call = call
        self.value = value
        self.error_class = _CLASSES.get(value, ErrorClass.MODULE_FATAL)
        self.failure = _FAILURES[self.error_class]
        self.usable = call == "C_SignInit" and self.error_class is ErrorClass.REFUSED
        super().__init__(f"{call} returned 0x{value:08x} ({self.error_class})")


class HotLoop:
    """Signs many inputs in one session of one module, in one thread."""

    def __init__(self, module: str, session: int) -> None:
        """Takes a module that the process has loaded, and the handle of an open session."""
        functions = _functions(module)
        prototype = ctypes.CFUNCTYPE
        self._init = prototype(_ULONG, _ULONG, ctypes.c_void_p, _ULONG)(functions[_C_SIGN_INIT])
        self._sign = prototype(
            _ULONG, _ULONG, ctypes.c_char_p, _ULONG, ctypes.c_void_p, ctypes.c_void_p
        )(functions[_C_SIGN])
        self._session = session
        self._buffer = ctypes.create_string_buffer(MAX_SIGNATURE)
        self._length = _ULONG(0)

    def sign(self, key: int, mechanism: Mechanism, inputs: Sequence[bytes]) -> list[bytes]:
        """Signs every input with the private key of this handle.

        Returns raw signatures, ECDSA with low s. Raises CryptokiError at the
        first call that fails.
        """
        parameter = mechanism.parameter
        struct = _Mechanism(mechanism.number, parameter or None, len(parameter))
        init, sign, session, prefix = self._init, self._sign, self._session, mechanism.prefix
        mechanism_at = ctypes.addressof(struct)
        buffer, buffer_at = self._buffer, ctypes.addressof(self._buffer)
        length, length_at = self._length, ctypes.addressof(self._length)
        view = memoryview(buffer).cast("B")
        signatures = []
        for item in inputs:
            data = prefix + item if prefix else item
            if value := init(session, mechanism_at, key):
                raise CryptokiError("C_SignInit", value)
            length.value = MAX_SIGNATURE
            if value := sign(session, data, len(data), buffer_at, length_at):
                raise CryptokiError("C_Sign", value)
            signatures.append(view[: length.value].tobytes())
        if (order := mechanism.order) is not None:
            signatures = [low_s(signature, order) for signature in signatures]
        return signatures


def private_keys(module: str, session: int) -> set[int]:
    """Returns the handles of the token's private keys; reads no attributes.

    Takes a module that the process has loaded, and the handle of an open session.
    Raises CryptokiError.
    """
    functions, prototype = _functions(module), ctypes.CFUNCTYPE
    init = prototype(_ULONG, _ULONG, ctypes.c_void_p, _ULONG)(functions[_C_FIND_INIT])
    find = prototype(_ULONG, _ULONG, ctypes.c_void_p, _ULONG, ctypes.c_void_p)(functions[_C_FIND])
    final = prototype(_ULONG, _ULONG)(functions[_C_FIND_FINAL])
    key_class, on_token = _ULONG(_CKO_PRIVATE_KEY), ctypes.c_ubyte(1)
    template = (_Attribute * 2)(
        _Attribute(_CKA_CLASS, ctypes.addressof(key_class), ctypes.sizeof(key_class)),
        _Attribute(_CKA_TOKEN, ctypes.addressof(on_token), ctypes.sizeof(on_token)),
    )
    batch, count = (_ULONG * _HANDLES_AT_ONCE)(), _ULONG(0)
    handles: set[int] = set()
    if value := init(session, ctypes.addressof(template), len(template)):
        raise CryptokiError("C_FindObjectsInit", value)
    try:
        while True:
            value = find(session, ctypes.addressof(batch), len(batch), ctypes.addressof(count))
            if value:
                raise CryptokiError("C_FindObjects", value)
            if not count.value:
                return handles
            handles.update(batch[: count.value])
    finally:
        final(session)


def _functions(module: str) -> Sequence[int]:
    """Returns the addresses of a module's functions; the process keeps it loaded."""
    pointer = ctypes.POINTER(_FunctionList)()
    if value := ctypes.CDLL(module).C_GetFunctionList(ctypes.byref(pointer)):
        raise CryptokiError("C_GetFunctionList", value)
    functions: Sequence[int] = pointer.contents.functions
    return functions
