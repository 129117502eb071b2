"""Finds what a check loads without all that the interpreter's own finder looks at.

For each module that finder asks for files of four kinds, and more than once for the directory: a
tenth of a check's own time. Here one ``open`` finds the compiled file, and one ``stat`` says
whether the source is still the one that was compiled. Wherever anything is otherwise, the
interpreter's finder is asked as always.

Interface: ``quicken``, called by the launchers in Python.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

PACKAGE = "greycheck."

# How a compiled file begins that holds as long as its source has the same time and size (PEP 552).
# These follow, and the code, from HEAD bytes on.
BEGINNING, HEAD = MAGIC_NUMBER + bytes(4), 16

CACHED = f".{sys.implementation.cache_tag}.pyc"


class Finder:
    """Finds and loads the compiled modules of PACKAGE: an entry of ``sys.meta_path``."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None", _target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        """Returns how to load the module NAME, or None for another finder to say.

        PATH is where its package is.
        """
        if not path or not name.startswith(PACKAGE):
            return None
        place, file = path[0], name.rpartition(".")[2]
        package = None
        code = compiled(place, file)
        if code is None:
            package, file = f"{place}/{file}", "__init__"
            code = compiled(package, file)
            if code is None:
                return None
        spec = ModuleSpec(
            name,
            Finder,  # type: ignore[arg-type]  # an abstract class of importlib's is slow to load
            origin=f"{package or place}/{file}.py",
            is_package=package is not None,
        )
        spec.loader_state = code
        if package is not None:
            spec.submodule_search_locations = [package]
        return spec

    @staticmethod
    def create_module(_spec: ModuleSpec) -> None:
        """The interpreter makes the module."""

    @staticmethod
    def exec_module(module: "ModuleType") -> None:
        """Fills MODULE."""
        spec = module.__spec__
        assert spec is not None
        exec(spec.loader_state, module.__dict__)


def compiled(directory: str, name: str) -> "CodeType | None":
    """Returns the code of the module NAME in DIRECTORY, if it is compiled and its source the same.

    Raises EOFError, ValueError or TypeError where the compiled file is damaged.
    """
    try:
        descriptor = posix.open(
            f"{directory}/__pycache__/{name}{CACHED}", posix.O_RDONLY | posix.O_CLOEXEC
        )
    except OSError:
        return None
    try:
        content = posix.read(descriptor, posix.fstat(descriptor).st_size)
        source = posix.stat(f"{directory}/{name}.py")
    except OSError:
        return None
    finally:
        posix.close(descriptor)
    # As the compiler writes them, in 32 bits each.
    of = int(source.st_mtime) & 0xFFFFFFFF, source.st_size & 0xFFFFFFFF
    head = BEGINNING + of[0].to_bytes(4, "little") + of[1].to_bytes(4, "little")
    if content[:HEAD] != head:
        return None
    code: CodeType = marshal.loads(memoryview(content)[HEAD:])
    return code


def quicken() -> None:
    """Has this process find the modules of a check so."""
    sys.meta_path.insert(0, Finder)
