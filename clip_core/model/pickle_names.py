"""Names that the pickle of a weight file may mention, and what stands for each; none of them is ever looked up.

Classes are inert: an `argparse.Namespace`, a Lightning callback or a path beside the weights is passed over, whatever
library it is of. Functions are refused unless they are listed here.
"""

from enum import Enum, auto


class Role(Enum):
    """What is done with a name that a pickle mentions."""

    DICT = auto()  # called: a dict
    TENSOR = auto()  # called with a storage, offset, shape and stride
    TYPED_TENSOR = auto()  # called with these, and a dtype in seventh place
    PARAMETER = auto()  # called with a tensor
    SUBCLASS = auto()  # called with a function, a type, and the function's arguments
    FIRST = auto()  # called: its first argument
    ENCODE = auto()  # called with text: its bytes
    IGNORED = auto()  # called or built: nothing that weights need
    MODULE = auto()  # a TorchScript class: a holder of attributes
    VALUE = auto()  # a storage type, a dtype, torch.Size, torch.device
    OBJECT = auto()  # any other class: its objects are passed over, and it is not called
    REFUSED = auto()  # would give a pickle power over the process


_TENSORS: dict[str, Role] = {
    "collections.OrderedDict": Role.DICT,
    "collections.defaultdict": Role.DICT,
    "builtins.dict": Role.DICT,
    "torch._utils._rebuild_tensor": Role.TENSOR,
    "torch._utils._rebuild_tensor_v2": Role.TENSOR,
    "torch._utils._rebuild_tensor_v3": Role.TYPED_TENSOR,
    "torch._utils._rebuild_parameter": Role.PARAMETER,
    "torch._utils._rebuild_parameter_with_state": Role.PARAMETER,
    "torch._tensor._rebuild_from_type_v2": Role.SUBCLASS,
    "torch.storage.UntypedStorage": Role.VALUE,
    "torch.Size": Role.VALUE,
    "torch.device": Role.VALUE,
    "_codecs.encode": Role.ENCODE,
}

# Called beside the weights in training checkpoints: learning rates of NumPy (open_clip before 2.30), random states,
# arguments, times.
_NUMPY = (
    "dtype", "ndarray", "core.multiarray.scalar", "core.multiarray._reconstruct", "core.numeric._frombuffer",
    "random._pickle.__randomstate_ctor", "random._pickle.__generator_ctor", "random._pickle.__bit_generator_ctor",
    "random.bit_generator.__pyx_unpickle_SeedSequence",
)  # fmt: skip
_IGNORED = frozenset(
    [
        *(f"numpy.{name}" for name in _NUMPY),
        *(f"numpy._{name}" for name in _NUMPY if name.startswith("core.")),
        "builtins.complex", "builtins.frozenset", "builtins.range", "builtins.set", "builtins.slice",
        "__builtin__.complex", "__builtin__.frozenset", "__builtin__.set", "__builtin__.xrange",
        "collections.Counter", "collections.deque", "datetime.date", "datetime.datetime", "datetime.time",
        "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction", "pathlib.PosixPath",
        "pathlib.PurePosixPath", "pathlib.PureWindowsPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath", "pathlib._local.PurePosixPath", "torch._utils._rebuild_device_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_sparse_tensor",
        "functools.partial", "operator.itemgetter", "types.SimpleNamespace", "torch.serialization._get_layout",
        "torch.torch_version.TorchVersion", "uuid.UUID",
    ]
)  # fmt: skip
_TORCHSCRIPT_FIRST = frozenset(
    f"torch.jit._pickle.{name}"
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
)
_DTYPES = frozenset(
    [
        "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64",
        "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
        "uint16", "uint32", "uint64",
    ]
)  # fmt: skip

# Types that a pickle mentions as they are, as OmegaConf's do.
_BUILTIN_TYPES = frozenset(["bool", "bytes", "float", "int", "list", "object", "str", "tuple", "type", "NoneType"])
_BUILTINS = ("builtins", "__builtin__")
# Modules through which a pickle acts; a file that mentions one was made to do harm. That list need not be complete:
# nothing is looked up or called, and it only makes the message plain.
_POWER = frozenset(
    [
        "asyncio", "bdb", "cgi", "code", "codeop", "commands", "concurrent", "ctypes", "distutils", "dill",
        "cloudpickle", "fcntl", "ftplib", "functools", "gc", "http", "httplib", "imaplib", "importlib", "inspect",
        "io", "joblib", "linecache", "marshal", "mmap", "multiprocessing", "nt", "operator", "os", "pdb", "pickle",
        "_pickle", "pip", "pkgutil", "platform", "posix", "pprint", "profile", "pty", "pydoc", "requests", "resource",
        "runpy", "shlex", "shutil", "signal", "site", "smtplib", "socket", "ssl", "subprocess", "sys", "sysconfig",
        "tempfile", "telnetlib", "threading", "timeit", "trace", "tracemalloc", "types", "urllib", "urllib2",
        "venv", "webbrowser", "xmlrpc", "zipimport"
    ]
)  # fmt: skip


def role_of(module: str, name: str, *, torchscript: bool) -> Role:
    """What is done with a name; `torchscript`: in the pickle of a TorchScript archive."""
    full = f"{module}.{name}"
    if full in _TENSORS:
        return _TENSORS[full]
    if module == "torch" and (name.endswith("Storage") or name in _DTYPES):
        return Role.VALUE
    if torchscript:
        if full in _TORCHSCRIPT_FIRST:
            return Role.FIRST
        return Role.MODULE if module == "__torch__" or module.startswith("__torch__.") else Role.REFUSED
    if full in _IGNORED:
        return Role.IGNORED
    if module in _BUILTINS:
        return Role.OBJECT if name in _BUILTIN_TYPES else Role.REFUSED
    if module.partition(".")[0] in _POWER:
        return Role.REFUSED
    return Role.OBJECT


def is_class(module: str, name: str) -> bool:
    """Whether a name that is called reads like a class, as of an enumeration, outside of PyTorch and NumPy."""
    return name[:1].isupper() and module.partition(".")[0] not in ("torch", "numpy")
