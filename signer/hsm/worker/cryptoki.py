"""Signing, finding and unwrapping keys by the module's function list: python-pkcs11 is too slow.

Its ``sign`` makes three C calls and several allocations for each signature; the hot
loop makes two calls into one buffer (docs/adr/0002). Its search makes an object and two
C calls for every key that it finds. It opens tokens and creates and destroys keys.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from signer.algorithms import Algorithm
from signer.hsm.heartbeat import Heartbeat
from signer.hsm.mechanisms import Mechanism, low_s
from signer.hsm.worker.return_values import PARTLY_READ, CryptokiError
from signer.model import TokenObject, WrapMechanism

_ULONG = ctypes.c_ulong
_NOTHING = _ULONG(-1).value  # CK_UNAVAILABLE_INFORMATION
_CKU_USER = 1
# Indexes in CK_FUNCTION_LIST (PKCS#11 v2.40, section 6.1.1)
_C_GET_INFO, _C_LOGIN = 2, 18
_C_COPY, _C_DESTROY, _C_READ, _C_FIND_INIT, _C_FIND, _C_FIND_FINAL = 21, 22, 24, 26, 27, 28
_C_SIGN_INIT, _C_SIGN = 42, 43
_C_GENERATE_PAIR, _C_WRAP, _C_UNWRAP = 59, 60, 61
_FUNCTIONS = 68
_CKA_CLASS, _CKA_TOKEN, _CKA_PRIVATE, CKA_LABEL, CKA_ID = 0x000, 0x001, 0x002, 0x003, 0x102
_CKA_KEY_TYPE, _CKA_SENSITIVE, _CKA_EXTRACTABLE, _CKA_SIGN = 0x100, 0x103, 0x162, 0x108
_CKA_WRAP = 0x106
_OTHER_USES = (0x105, 0x107, 0x109, 0x10C)  # CKA_DECRYPT, _UNWRAP, _SIGN_RECOVER, _DERIVE
CKO_PUBLIC_KEY, CKO_PRIVATE_KEY, CKO_SECRET_KEY = (bytes(_ULONG(each)) for each in (2, 3, 4))
_TRUE, _FALSE = b"\1", b"\0"
_KEY_TYPES = {  # CKK_EC, CKK_EC_EDWARDS, CKK_RSA
    Algorithm.ES256: bytes(_ULONG(0x03)),
    Algorithm.ES384: bytes(_ULONG(0x03)),
    Algorithm.EDDSA: bytes(_ULONG(0x40)),
    Algorithm.RS256: bytes(_ULONG(0x00)),
    Algorithm.PS256: bytes(_ULONG(0x00)),
}
WRAP_MECHANISMS = {  # CKM_AES_KEY_WRAP_KWP and CKM_AES_KEY_WRAP_PAD: the first that a token has
    WrapMechanism.AES_KEY_WRAP_KWP: 0x210B,
    WrapMechanism.AES_KEY_WRAP_PAD: 0x210A,
}
_MAX_WRAPPED = 8192  # bytes; an RSA key of 4096 bits takes about 2,400
_HANDLES_AT_ONCE = 1024
_NAME_BYTES = 1024  # of an id or a label; ours have 16 and at most 150
_VALUE_BYTES = 1024  # of a public key's point or modulus; an RSA key of 4096 bits has 512
MAX_SIGNATURE = 512
_INFO_BYTES = 256  # more than CK_INFO has
_NOT_INITIALIZED = 0x190  # CKR_CRYPTOKI_NOT_INITIALIZED


class _FunctionList(ctypes.Structure):
    _fields_ = (("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * _FUNCTIONS))


class _Mechanism(ctypes.Structure):
    _fields_ = (("mechanism", _ULONG), ("parameter", ctypes.c_char_p), ("length", _ULONG))


class _Attribute(ctypes.Structure):
    _fields_ = (("type", _ULONG), ("value", ctypes.c_void_p), ("length", _ULONG))


class HotLoop:
    """Signs many inputs in one session of one module, in one thread."""

    def __init__(self, module: str, session: int, heartbeat: Heartbeat) -> None:
        """Takes a module that the process has loaded, and the handle of an open session."""
        functions = _functions(module)
        prototype = ctypes.CFUNCTYPE
        self._init = prototype(_ULONG, _ULONG, ctypes.c_void_p, _ULONG)(functions[_C_SIGN_INIT])
        self._sign = prototype(
            _ULONG, _ULONG, ctypes.c_char_p, _ULONG, ctypes.c_void_p, ctypes.c_void_p
        )(functions[_C_SIGN])
        self._session = session
        self._beats = heartbeat.counter
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
        beats = self._beats
        beat = beats[0]
        signatures = []
        for item in inputs:
            data = prefix + item if prefix else item
            beats[0] = beat = beat + 1
            if value := init(session, mechanism_at, key):
                raise CryptokiError("C_SignInit", value)
            beats[0] = beat = beat + 1
            length.value = MAX_SIGNATURE
            if value := sign(session, data, len(data), buffer_at, length_at):
                raise CryptokiError("C_Sign", value)
            signatures.append(view[: length.value].tobytes())
        beats[0] = beat + 1
        if (order := mechanism.order) is not None:
            signatures = [low_s(signature, order) for signature in signatures]
        return signatures


def is_shared(module: str) -> bool:
    """Returns whether our function list is of the module that the process has initialised.

    Some modules, among them those of p11-kit, give a module of its own to each caller of
    C_GetFunctionList: sessions of python-pkcs11 do not exist there.
    """
    call = ctypes.CFUNCTYPE(_ULONG, ctypes.c_char_p)(_functions(module)[_C_GET_INFO])
    return int(call(ctypes.create_string_buffer(_INFO_BYTES))) != _NOT_INITIALIZED


def login(module: str, session: int, pin: str) -> int:
    """Calls C_Login for the user, once; returns its value, 0 for success.

    Takes a module that the process has loaded, and the handle of an open session.
    """
    call = ctypes.CFUNCTYPE(_ULONG, _ULONG, _ULONG, ctypes.c_char_p, _ULONG)
    secret = pin.encode()
    return int(call(_functions(module)[_C_LOGIN])(session, _CKU_USER, secret, len(secret)))


class Objects:
    """The private keys of a token as handles: found, named and copied in one session.

    Every method raises CryptokiError.
    """

    def __init__(self, module: str, session: int, heartbeat: Heartbeat) -> None:
        """Takes a module that the process has loaded, and the handle of an open session."""
        functions, pointer = _functions(module), ctypes.c_void_p

        def function(index: int, *arguments: Any) -> Any:
            return ctypes.CFUNCTYPE(_ULONG, _ULONG, *arguments)(functions[index])

        self._session, self._heartbeat = session, heartbeat
        self._find_init = function(_C_FIND_INIT, pointer, _ULONG)
        self._find = function(_C_FIND, pointer, _ULONG, pointer)
        self._find_final = function(_C_FIND_FINAL)
        self._read = function(_C_READ, _ULONG, pointer, _ULONG)
        self._copy = function(_C_COPY, _ULONG, pointer, _ULONG, pointer)
        self._destroy = function(_C_DESTROY, _ULONG)
        self._generate = function(
            _C_GENERATE_PAIR, pointer, pointer, _ULONG, pointer, _ULONG, pointer, pointer
        )
        self._wrap = function(_C_WRAP, pointer, _ULONG, _ULONG, pointer, pointer)
        self._unwrap = function(
            _C_UNWRAP, pointer, _ULONG, ctypes.c_char_p, _ULONG, pointer, _ULONG, pointer
        )
        self._id, self._label = (ctypes.create_string_buffer(_NAME_BYTES) for _ in range(2))

    def find(
        self, wanted: Mapping[int, bytes], most: int | None = None, kind: bytes = CKO_PRIVATE_KEY
    ) -> list[int]:
        """Returns the handles of the token's keys with these attributes; ``most``: so many.

        A search reads no attributes.
        """
        template = _Template({_CKA_CLASS: kind, _CKA_TOKEN: _TRUE, **wanted})
        batch, count = (_ULONG * (most or _HANDLES_AT_ONCE))(), _ULONG(0)
        batch_at, count_at = ctypes.addressof(batch), ctypes.addressof(count)
        handles: list[int] = []
        self._call("C_FindObjectsInit", self._find_init, template.address, template.length)
        try:
            while most is None or len(handles) < most:
                self._call("C_FindObjects", self._find, batch_at, len(batch), count_at)
                if not count.value:
                    break
                handles += batch[: count.value]
        finally:
            self._find_final(self._session)
        return handles

    def names(self, handle: int) -> TokenObject | None:
        """Returns the id and the label of a key, read by one call; None if it has gone.

        A name that is absent, or longer than 1,024 bytes, is empty.
        """
        both = (_Attribute * 2)(
            _Attribute(CKA_ID, ctypes.addressof(self._id), _NAME_BYTES),
            _Attribute(CKA_LABEL, ctypes.addressof(self._label), _NAME_BYTES),
        )
        try:
            self._call("C_GetAttributeValue", self._read, handle, ctypes.addressof(both), 2)
        except CryptokiError as error:
            if error.dead_handle:
                return None
            if error.value not in PARTLY_READ:
                raise
        cka_id, label = (
            b"" if each.length == _NOTHING else buffer.raw[: each.length]
            for each, buffer in zip(both, (self._id, self._label), strict=True)
        )
        return TokenObject(cka_id, label.decode(errors="replace"))

    def flags(self, handle: int, kinds: Sequence[int]) -> list[bool | None]:
        """Returns boolean attributes of a key, read by one call; None: it does not have one."""
        read = (ctypes.c_ubyte * len(kinds))()
        base = ctypes.addressof(read)
        wanted = (_Attribute * len(kinds))(
            *(_Attribute(kind, base + at, 1) for at, kind in enumerate(kinds))
        )
        at, length = ctypes.addressof(wanted), len(kinds)
        try:
            self._call("C_GetAttributeValue", self._read, handle, at, length)
        except CryptokiError as error:
            if error.value not in PARTLY_READ:
                raise
        return [
            bool(value) if each.length == 1 else None
            for each, value in zip(wanted, read, strict=True)
        ]

    def octets(self, handle: int, kinds: Sequence[int]) -> list[bytes]:
        """Returns attributes of an object, read by one call.

        One that it does not have, or that is longer than 1,024 bytes, is empty.
        """
        buffers = [ctypes.create_string_buffer(_VALUE_BYTES) for _ in kinds]
        wanted = (_Attribute * len(kinds))(
            *(
                _Attribute(kind, ctypes.addressof(buffer), _VALUE_BYTES)
                for kind, buffer in zip(kinds, buffers, strict=True)
            )
        )
        try:
            self._call(
                *("C_GetAttributeValue", self._read, handle),
                *(ctypes.addressof(wanted), len(kinds)),
            )
        except CryptokiError as error:
            if error.value not in PARTLY_READ:
                raise
        return [
            b"" if each.length == _NOTHING else buffer.raw[: each.length]
            for each, buffer in zip(wanted, buffers, strict=True)
        ]

    def generate_pair(
        self, mechanism: int, public: Mapping[int, bytes], private: Mapping[int, bytes]
    ) -> tuple[int, int]:
        """Creates a key pair with these attributes; returns the handles of both keys.

        By one call: python-pkcs11 reads ten attributes of each of them afterwards.
        """
        struct = _Mechanism(mechanism, None, 0)
        halves = (
            _Template({_CKA_CLASS: CKO_PUBLIC_KEY, **public}),
            _Template({_CKA_CLASS: CKO_PRIVATE_KEY, **private}),
        )
        made = (_ULONG * 2)()
        at = ctypes.addressof(made)
        self._call(
            *("C_GenerateKeyPair", self._generate, ctypes.addressof(struct)),
            *(part for half in halves for part in (half.address, half.length)),
            *(at, at + ctypes.sizeof(_ULONG)),
        )
        return made[0], made[1]

    def copy(self, handle: int) -> int:
        """Copies a key as an object of the session; returns the handle of the copy."""
        template, made = _Template({_CKA_TOKEN: _FALSE}), _ULONG(0)
        at, length = template.address, template.length
        self._call("C_CopyObject", self._copy, handle, at, length, ctypes.addressof(made))
        return made.value

    def copy_to_wrap(self, handle: int) -> int:
        """Copies a wrapping key as an object of the session that may wrap; returns its handle."""
        template, made = _Template({_CKA_TOKEN: _FALSE, _CKA_WRAP: _TRUE}), _ULONG(0)
        at, length = template.address, template.length
        self._call("C_CopyObject", self._copy, handle, at, length, ctypes.addressof(made))
        return made.value

    def wrap(self, mechanism: WrapMechanism, wrapping_key: int, key: int) -> bytes:
        """Returns a key wrapped by a wrapping key, both by their handles."""
        struct = _Mechanism(WRAP_MECHANISMS[mechanism], None, 0)
        blob, length = ctypes.create_string_buffer(_MAX_WRAPPED), _ULONG(_MAX_WRAPPED)
        self._call(
            *("C_WrapKey", self._wrap, ctypes.addressof(struct), wrapping_key, key),
            *(ctypes.addressof(blob), ctypes.addressof(length)),
        )
        return blob.raw[: length.value]

    def unwrap(
        self,
        mechanism: WrapMechanism,
        wrapping_key: int,
        blob: bytes,
        algorithm: Algorithm,
        cka_id: bytes,
        *,
        to_sign: bool = True,
    ) -> int:
        """Unwraps a private key as an object of the session; returns its handle.

        It signs and cannot be read or wrapped; one that is not ``to_sign`` can be wrapped, and
        does nothing else.
        """
        signs, wrapped_again = (_TRUE, _FALSE) if to_sign else (_FALSE, _TRUE)
        template = _Template(
            {
                _CKA_CLASS: CKO_PRIVATE_KEY,
                _CKA_KEY_TYPE: _KEY_TYPES[algorithm],
                _CKA_TOKEN: _FALSE,
                _CKA_PRIVATE: _TRUE,
                _CKA_SENSITIVE: _TRUE,
                _CKA_EXTRACTABLE: wrapped_again,
                _CKA_SIGN: signs,
                **dict.fromkeys(_OTHER_USES, _FALSE),
                CKA_ID: cka_id,
            }
        )
        struct, made = _Mechanism(WRAP_MECHANISMS[mechanism], None, 0), _ULONG(0)
        self._call(
            *("C_UnwrapKey", self._unwrap, ctypes.addressof(struct), wrapping_key),
            *(blob, len(blob), template.address, template.length, ctypes.addressof(made)),
        )
        return made.value

    def destroy(self, handle: int) -> None:
        """Destroys an object; one that has gone is ignored."""
        try:
            self._call("C_DestroyObject", self._destroy, handle)
        except CryptokiError as error:
            if not error.dead_handle:
                raise

    def _call(self, name: str, function: Any, *arguments: int | bytes) -> None:
        self._heartbeat.beat()
        if value := function(self._session, *arguments):
            raise CryptokiError(name, value)


class _Template:
    """Attributes and their values, at an address that is valid as long as this object."""

    def __init__(self, values: Mapping[int, bytes]) -> None:
        self._values = list(values.values())
        self._attributes = (_Attribute * len(values))(
            *(
                _Attribute(kind, ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p), len(value))
                for kind, value in values.items()
            )
        )
        self.address = ctypes.addressof(self._attributes)
        self.length = len(values)


def _functions(module: str) -> Sequence[int]:
    """Returns the addresses of a module's functions; the process keeps it loaded."""
    pointer = ctypes.POINTER(_FunctionList)()
    if value := ctypes.CDLL(module).C_GetFunctionList(ctypes.byref(pointer)):
        raise CryptokiError("C_GetFunctionList", value)
    functions: Sequence[int] = pointer.contents.functions
    return functions
