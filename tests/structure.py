"""Check the structure of the project: layers, circles, lengths. `make lint` runs it.

    python tests/structure.py [ROOT]

A room is a folder of python/clusterucb; its modules may import those of their own room and of rooms on lower floors
(`FLOORS`), never of the same floor. Type-only imports count, too, but for `EXCEPTIONS`. Prints every violation; exits
with 1 if there is one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

# From the ground up. "root" is the modules that lie in the package itself.
FLOORS = (
    ("root",),
    ("samples", "kernels", "engine", "model"),
    ("policies", "clusterers", "features", "options"),
    ("plugins",),
    ("testing", "run", "workers"),
    ("gradients", "report"),
    ("jobs",),
    ("demo", "training"),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# The engine imports these modules and nothing else of the package.
ENGINE_MAY = {"errors", "wording", "lazy"}
# The facade and the entry point name what lies above them; hook specifications name the classes that hooks return.
EXCEPTIONS = {"__init__", "__main__", "hookspecs"}
ROOT_MODULES = 12
FUNCTION_LINES, FILE_LINES, PARAMETERS = 60, 400, 10


@cache
def parsed(text: str) -> tuple[list[ast.AST], list[ast.AST]]:
    """Return all nodes of a module, and those that run when it is imported, without conditions at its top."""
    tree = ast.parse(text)
    running, left = [], [node for node in tree.body if not isinstance(node, ast.If)]
    while left:
        running.append(node := left.pop())
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left += ast.iter_child_nodes(node)
    return list(ast.walk(tree)), running


def modules(package: Path) -> dict[str, Path]:
    """Return the package's modules by their name below it; a package is named as its folder is."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def room_of(module: str) -> str:
    """Return the room of a module."""
    head = module.partition(".")[0]
    return head if head in FLOOR else "root"


def imports(nodes: Iterable[ast.AST], known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of every module of the package that nodes import."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative import"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "clusterucb":
            inside = (node.module or "").removeprefix("clusterucb").lstrip(".")
            for alias in node.names:
                name = f"{inside}.{alias.name}".lstrip(".")
                yield node.lineno, name if name in known else inside or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "clusterucb":
                    yield node.lineno, alias.name.removeprefix("clusterucb").lstrip(".") or "__init__"


def layer_faults(package: Path) -> Iterator[str]:
    """Yield imports that run upwards, and rooms or root modules that the table does not know."""
    known = modules(package)
    for folder in sorted(path for path in package.iterdir() if path.is_dir() and any(path.glob("*.py"))):
        if folder.name not in FLOOR:
            yield f"{folder.name}/ is no room: expected one of {', '.join(FLOOR)} (tests/structure.py)"
    in_root = [module for module in known if "." not in module and module not in FLOOR]
    if len(in_root) > ROOT_MODULES:
        yield f"the root has {len(in_root)} modules; expected at most {ROOT_MODULES}"
    for module, path in known.items():
        if module in EXCEPTIONS:
            continue
        own = room_of(module)
        for line, imported in imports(parsed(path.read_text())[0], known):
            where = f"{path.relative_to(package.parent)}:{line}"
            room = room_of(imported)
            if imported == "a relative import":
                yield f"{where}: {imported}; expected clusterucb.…"
            elif imported == "__init__":
                if own not in ("testing", "demo", "jobs"):
                    yield f"{where}: imports the facade; expected the module that has the name"
            elif room != own and FLOOR[room] >= FLOOR[own]:
                yield f"{where}: {own}/ imports {imported}; expected rooms on lower floors only"
            elif own == "engine" and room != own and imported not in ENGINE_MAY:
                yield f"{where}: engine/ imports {imported}; expected only {', '.join(sorted(ENGINE_MAY))}"


def circles(package: Path) -> Iterator[str]:
    """Yield circles of imports at the top of modules; an import in a function or for types closes none."""
    known = modules(package)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        running = parsed(path.read_text())[1]
        graph[module] = {name for _, name in imports(running, known) if name in known and name != module}
    state: dict[str, str] = {}

    def visit(module: str, trail: list[str]) -> Iterator[str]:
        state[module] = "open"
        for following in sorted(graph[module]):
            if state.get(following) == "open":
                yield f"a circle of imports: {' -> '.join([*trail[trail.index(following) :], following])}"
            elif following not in state:
                yield from visit(following, [*trail, following])
        state[module] = "done"

    for module in graph:
        if module not in state:
            yield from visit(module, [module])


def length_faults(root: Path) -> Iterator[str]:
    """Yield functions and files that are too long, and public functions with too many parameters."""
    for path in sorted([*(root / "python").rglob("*.py"), *(root / "plugins").glob("*/src/**/*.py")]):
        name, text = str(path.relative_to(root)), path.read_text()
        if text.count("\n") > FILE_LINES:
            yield f"{name} has {text.count(chr(10))} lines; expected at most {FILE_LINES}"
        for node in parsed(text)[0]:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring_lines(node)
            if lines > FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {lines} lines; expected at most {FUNCTION_LINES}"
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([one for one in arguments if one.arg not in ("self", "cls")])
            if count > PARAMETERS and not node.name.startswith("_"):
                yield f"{name}:{node.lineno}: {node.name} has {count} parameters; expected at most {PARAMETERS}"


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function's docstring takes."""
    first = node.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return (first.end_lineno or 0) - first.lineno + 1
    return 0


def test_faults(tests: Path) -> Iterator[str]:
    """Yield folders of tests that mirror no room, and tests that import tests."""
    rooms = {*FLOOR, "helpers", "data", "simt", "whole"}
    for folder in sorted(path for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"):
        if folder.name not in rooms:
            yield f"tests/{folder.name}/ mirrors no room"
    for path in sorted(tests.rglob("*.py")):
        for node in parsed(path.read_text())[0]:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.rpartition(".")[2].startswith("test_"):
                    yield f"{path.relative_to(tests.parent)}:{node.lineno}: imports the test {name}"


def faults(root: Path) -> list[str]:
    """Return all violations."""
    package = root / "python" / "clusterucb"
    return [
        *layer_faults(package),
        *circles(package),
        *length_faults(root),
        *test_faults(root / "tests"),
    ]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    found = faults(root)
    print("\n".join(found) or "structure: layers, lengths and tests are as they should be")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
