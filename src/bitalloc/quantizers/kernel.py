"""The C kernel of fake quantization: compiled with the system's compiler at its first use, and kept in the user's cache folder."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch

from bitalloc.errors import FileError
from bitalloc.files import replacing

# No option may change a value: no contraction into fused multiply-add, and nothing of -ffast-math but what floats cannot show.
FLAGS = ("-std=c11", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# Without -fopenmp where the compiler has no OpenMP: one thread, the same values.
OPENMP = ("-fopenmp", "-fopenmp-simd")
SECONDS = 120


class KernelUnavailable(Exception):
    """Why there is no compiled kernel; the message is the end of a sentence."""


@functools.cache
def load() -> ctypes.CDLL | KernelUnavailable:
    """The compiled kernel, or why there is none. The first call of a machine compiles it, which takes about 0.3 s.

    The file's name holds a digest of the source, the compiler and its options, and the file appears whole or not at all, so that
    processes may start together, and be killed, at any point.
    """
    try:
        return _load()
    except KernelUnavailable as reason:
        return reason
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError, FileError) as error:
        return KernelUnavailable(f"the kernel could not be compiled into the cache folder: {error}")


def _load() -> ctypes.CDLL:
    source = files("bitalloc.quantizers").joinpath("fake_quantize.c").read_bytes()
    compiler = _compiler()
    failure = "the compiler did not run"
    for openmp in OPENMP:
        command = [*compiler, *FLAGS, *_instructions(), openmp]
        path = _cache() / f"fake_quantize-{_digest(source, command)}.so"
        try:
            return _declared(_open(path) or _compile(source, command, path))
        except subprocess.CalledProcessError as error:
            failure = error.stderr.strip()[-500:] or str(error)
        except OSError as error:  # a file system without space or permission, or a library that does not fit this process
            failure = str(error)
    raise KernelUnavailable(f"{shlex.join(compiler)} could not make the kernel: {failure}")


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for candidate in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if found := shutil.which(candidate[0]):
            return [found, *candidate[1:]]
    raise KernelUnavailable(f"there is no C compiler ({named[0] if named else 'cc, gcc or clang'}) on the path")


def _instructions() -> list[str]:
    """Options for the vector units of this processor. A wider unit than AVX2 gains nothing: memory is the limit."""
    return ["-mavx2"] if torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"} else []


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitalloc"


def _digest(source: bytes, command: Sequence[str]) -> str:
    compiler = Path(command[0]).resolve()
    state = compiler.stat()
    told = repr((command, str(compiler), state.st_size, state.st_mtime_ns, platform.system(), platform.machine()))
    return hashlib.sha256(source + told.encode()).hexdigest()[:20]


def _open(path: Path) -> ctypes.CDLL | None:
    """The library that an earlier process left, None where there is none or it is damaged: it is made again."""
    try:
        content = path.read_bytes()
        # Loading a truncated library kills the process, so the digest that follows the library is checked first.
        return ctypes.CDLL(str(path)) if content == _sealed(content[:-32]) else None
    except OSError:
        return None


def _sealed(library: bytes) -> bytes:
    return library + hashlib.sha256(library).digest()


def _compile(source: bytes, command: Sequence[str], path: Path) -> ctypes.CDLL:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bitalloc-") as folder:
        code, compiled = Path(folder, "fake_quantize.c"), Path(folder, "fake_quantize.o")
        code.write_bytes(source)
        _run([*command, "-c", str(code), "-o", str(compiled)])
        # Linked without an OpenMP library of its own: the process has PyTorch's, and a second one would be a second pool of threads.
        library = Path(folder, path.name)
        _run([*command[:-1], "-shared", str(compiled), "-lm", "-o", str(library)])
        ctypes.CDLL(str(library))  # an OSError now rather than a file in the cache that does not load
        with replacing(path) as temporary:
            temporary.write_bytes(_sealed(library.read_bytes()))
    return ctypes.CDLL(str(path))


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.partial_sums.argtypes, library.partial_sums.restype = [size] * 3, size
    library.forward.argtypes, library.forward.restype = [*[pointer] * 3, *[size] * 3, number, number, ctypes.c_int, ctypes.c_int], None
    library.backward.argtypes = [*[pointer] * 6, *[size] * 3, number, number, ctypes.c_double, ctypes.c_int, ctypes.c_int]
    library.backward.restype = None
    return library
