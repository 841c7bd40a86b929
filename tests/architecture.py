"""The rules of the house as data, and the checks that read source text and name what breaks them.

A check takes `Source`s and returns sentences about what is wrong; none means the rule holds. `test_architecture.py`
runs them over the package, and over small bad examples that each of them has to catch.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LONGEST_FILE = 500
LONGEST_FUNCTION = 60

# The house, from the cellar up. A module may import from its own entry, from entries left of it, and from rows above.
# An entry stands for itself and for what is below it ("masp.data" is every reader too) unless a longer entry fits.
ROWS = (
    ("masp.core", "masp.evaluation.metrics"),
    ("masp.model.aspect_attention", "masp.model.soft_prompt", "masp.backbones.base"),
    ("masp.backbones", "masp.model.sequence_builder"),
    ("masp.model", "masp.baselines.base"),
    ("masp.data",),
    ("masp.adapters",),
    ("masp.model.explain", "masp.training", "masp.model.cost_estimate"),
    (
        "masp.model.prediction",
        "masp.predictor",
        "masp.baselines.prompted",
        "masp.evaluation",
        "masp.backbones.export",
        "masp.annotate",
    ),
    ("masp.baselines",),
    ("masp.report",),
    ("masp.serving", "masp.labelling", "masp.demo", "masp.reproduce"),
    ("masp.cli",),
    ("masp.__main__",),
)
ORDER = tuple(entry for row in ROWS for entry in row)

# Rooms that see less than what lies above them.
NARROW = {
    "masp.data": (("masp", *ROWS[0]), "images and labels know nothing of any model"),
}

# Imports against the table, each with its reason.
UPWARDS = {
    ("masp", "masp.core.errors"): "a public name, loaded when it is first used",
    ("masp", "masp.predictor"): "public names, loaded when they are first used",
}

# Packages and who may import them, lazily or not.
OWNERS: Mapping[str, tuple[str, ...]] = {
    "accelerate": ("masp.backbones.device_map", "masp.training"),
    "bitsandbytes": ("masp.backbones.device_map",),
    "argparse": (),
    "click": ("masp.cli",),
    "datasets": ("masp.data.hub",),
    "fastapi": ("masp.serving",),
    "gguf": ("masp.backbones.photo_weights",),
    "jinja2": ("masp.report", "masp.adapters.card"),
    "matplotlib": ("masp.report.plots", "masp.report", "masp.reproduce.writers"),
    "huggingface_hub": ("masp.adapters.hub", "masp.backbones"),
    "httpx": ("masp.serving",),
    "imagehash": ("masp.data.validation",),
    "pandas": (),
    "peft": ("masp.baselines.lora_layers",),
    "pickle": (),
    "pillow_heif": ("masp.data.images",),
    "pickletools": ("masp.adapters.pickled",),
    "prometheus_client": ("masp.serving.metrics",),
    "pyarrow": ("masp.data.tables", "masp.labelling"),
    "python_multipart": ("masp.serving.bodies",),
    "ray": ("masp.labelling.run", "masp.serving.ray_app"),
    "requests": (),
    "rich": ("masp.core.runtime", "masp.cli", "masp.demo", "masp.reproduce"),
    "scipy": ("masp.evaluation",),
    "sklearn": ("masp.evaluation", "masp.baselines.probe"),
    "safetensors": ("masp.adapters", "masp.backbones", "masp.training.checkpoints", "masp.training.disk_cache"),
    "starlette": ("masp.serving",),
    "torchvision": (),
    "transformers": ("masp.backbones",),
    "typer": ("masp.cli",),
    "urllib": ("masp.serving.vllm_client",),
    "uvicorn": ("masp.serving.server",),
    "yaml": ("masp.core.config",),
}

# The files that may read what `torch.save` wrote, and the only way it may.
UNPICKLES = ("masp.adapters.pickled", "masp.backbones.photo_weights")  # the latter only a file of a known SHA-256
SAFELY = "weights_only"

# What a class may be built on: interfaces, records, errors and torch's modules; the rest is composed.
BASES: Mapping[str, str] = {
    "Module": "torch finds parameters by it",
    "Function": "torch takes a gradient of one's own by it",
    "GenerationMixin": "transformers generates with it",
    "PreTrainedModel": "transformers loads, places and saves weights by it",
    "PretrainedConfig": "transformers reads and writes config.json by it",
    "Protocol": "an interface",
    "BaseModel": "a record that pydantic checks; records in one file may share a base",
    "Settings": "a section of settings, which pydantic checks",
    "NamedTuple": "a record",
    "Harness": "lmms-eval finds what a model does by its class",
    "Engine": "vLLM finds what a model does by its class",
    "Processor": "vLLM finds what a model's processor does by its class",
    "Info": "vLLM finds what a model's processor knows by its class",
    "StrEnum": "names",
}

# Unfrozen dataclasses by name, each with its reason.
UNFROZEN: Mapping[str, str] = {
    "masp.training.checkpoints:TrainerState": "the running state of a loop is what changes",
}


@dataclass(frozen=True)
class Source:
    """One Python file: its module name (`scripts.lock` for a script) and its text."""

    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    @cached_property
    def classes(self) -> list[ast.ClassDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]


Check = Callable[[Source], list[str]]


def read_sources(folder: Path, package: str) -> tuple[Source, ...]:
    """Every Python file below `folder`, named as modules of `package`."""
    return tuple(
        Source(
            ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"),
            path.read_text(),
        )
        for path in sorted(folder.rglob("*.py"))
    )


# --- sizes ---------------------------------------------------------------------------------------------------------


def too_long(source: Source) -> list[str]:
    lines = len(source.text.splitlines())
    found = [f"{source.module} has {lines} lines, at most {LONGEST_FILE}"] if lines > LONGEST_FILE else []
    for function in source.functions:
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > LONGEST_FUNCTION:
            found.append(f"{source.module}:{function.name} has {length} lines, at most {LONGEST_FUNCTION}")
    return found


# --- imports -------------------------------------------------------------------------------------------------------


def imported_names(source: Source) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it: lazily, for types only, or written as "module:Class"."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = "." * node.level + (node.module or "")
            yield from (f"{home}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"masp(\.\w+)+(:\w+)?", str(node.value)):
            yield str(node.value).replace(":", ".")


def edges(sources: Iterable[Source]) -> dict[str, set[str]]:
    """For each module the modules of the same package that it imports."""
    sources = tuple(sources)
    modules = {source.module for source in sources}
    graph: dict[str, set[str]] = {}
    for source in sources:
        targets = {_nearest(name, modules) for name in imported_names(source)}
        graph[source.module] = {target for target in targets if target and target != source.module}
    return graph


def _nearest(name: str, modules: set[str]) -> str | None:
    """The module that a dotted name lives in: the name itself or the closest of its parents."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules), None)


def entry_of(module: str) -> str | None:
    """The entry of `ROWS` that a module belongs to: the longest that fits."""
    return max((entry for entry in ORDER if _within(module, entry)), key=len, default=None)


def _within(module: str, home: str) -> bool:
    return module == home or module.startswith(f"{home}.")


def upward_imports(sources: Iterable[Source]) -> list[str]:
    found = []
    for module, targets in sorted(edges(sources).items()):
        entry = entry_of(module)
        if entry is None and module != "masp":
            found.append(f"{module} has no place in the table of rows")
            continue
        for target in sorted(targets - {"masp"}):
            if (module, target) not in UPWARDS:
                found += _judge(module, entry, target)
    return found


def _judge(module: str, entry: str | None, target: str) -> list[str]:
    """What is wrong with `module`, which belongs to `entry`, importing `target`."""
    home = entry_of(target)
    if home is None:
        return []  # reported for the target itself
    if entry is None or ORDER.index(home) > ORDER.index(entry):
        return [f"{module} imports {target}, which lies below it in the table"]
    if entry in NARROW and home != entry and home not in NARROW[entry][0]:
        return [f"{module} imports {target}; {NARROW[entry][1]}"]
    return []


def stale_exceptions(sources: Iterable[Source]) -> list[str]:
    graph = edges(sources)
    return [f"{a} no longer imports {b}; remove the exception" for a, b in UPWARDS if b not in graph.get(a, set())]


def cycles(sources: Iterable[Source]) -> list[str]:
    """A cycle of imports, lazy ones included; a package's own name is left out, since it only lends its exports."""
    graph = {module: {t for t in targets if not _within(module, t)} for module, targets in edges(sources).items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [f"a cycle of imports: {' -> '.join(error.args[1])}"]
    return []


def foreign_owners(source: Source) -> list[str]:
    found = []
    for name in sorted({name.partition(".")[0] for name in imported_names(source)} & OWNERS.keys()):
        homes = OWNERS[name]
        if not any(_within(source.module, home) for home in homes):
            found.append(f"{source.module} imports {name}, which only {', '.join(homes) or 'nobody'} may")
    return found


def relative_imports(source: Source) -> list[str]:
    return [f"{source.module} imports {name} relatively" for name in imported_names(source) if name.startswith(".")]


# --- what is not written here --------------------------------------------------------------------------------------


def unsafe_or_noisy(source: Source) -> list[str]:
    """Calls that run code from a file, print where a log belongs, or probe for an attribute."""
    found = []
    for call in source.calls:
        name = ast.unparse(call.func)
        if name == "torch.load" and _loads_weights_only(source, call):
            continue
        if name in {"torch.load", "eval", "exec", "hasattr"} or (
            name == "print" and not _within(source.module, "masp.cli")
        ):
            found.append(f"{source.module}:{call.lineno} calls {name}")
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False":
                found.append(f"{source.module}:{call.lineno} may trust remote code")
    return found


def _loads_weights_only(source: Source, call: ast.Call) -> bool:
    """Whether this `torch.load` is one that is allowed: in its place, and with `weights_only=True` written out."""
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return source.module in UNPICKLES and given.get(SAFELY) == "True"


def loose_signatures(source: Source) -> list[str]:
    """`**kwargs` in a forward, and annotations that a test run cannot check."""
    found = [
        f"{source.module}:{f.name} takes **kwargs" for f in source.functions if f.name == "forward" and f.args.kwarg
    ]
    names = set(imported_names(source))
    if "__future__.annotations" in names and any(name.startswith("jaxtyping.") for name in names):
        found.append(f"{source.module} turns its tensor annotations into strings")
    return found


def undocumented(source: Source) -> list[str]:
    """Public functions and classes without a docstring, or with a parameter or result without a type."""
    found = [] if ast.get_docstring(source.tree) else [f"{source.module} has no docstring"]
    for name, node in _public(source.tree, source.module):
        if not ast.get_docstring(node):
            found.append(f"{name} has no docstring")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += _unannotated(name, node)
    return found


def _public(body: ast.AST, home: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions, classes and their methods with their full names; what is inside functions is private."""
    for node in ast.iter_child_nodes(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list):
                continue  # a type of the function that follows, which has the docstring
            yield f"{home}:{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{home}:{node.name}")


def _unannotated(name: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
    found = [f"{name} does not annotate {', '.join(bare)}"] if bare else []
    return found if function.returns else [*found, f"{name} does not annotate its result"]


SECTION = re.compile(r"^(Args|Attributes):\n((?:[ \t]+.*\n?|\n)+)", re.MULTILINE)


def strange_names(source: Source) -> list[str]:
    """Names under "Args:" and "Attributes:" that are no parameter, field or attribute, or stand there twice."""
    found = []
    for node in (*source.functions, *source.classes):
        known = _parameters(node) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else _attributes(node)
        for section, block in SECTION.findall(ast.get_docstring(node) or ""):
            named = re.findall(r"^    (\*{0,2}\w+):", block, re.MULTILINE)
            strange = [name for name in named if name.lstrip("*") not in known or named.count(name) > 1]
            found += [f"{source.module}:{node.name} documents {name} under {section}" for name in strange]
    return found


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    given = function.args
    arguments = (*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg)))
    return {argument.arg for argument in arguments}


def _attributes(node: ast.ClassDef) -> set[str]:
    """Fields, properties, what methods assign to `self`, and the parameters of `__init__`."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            names.add(part.target.id)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            names.add(part.attr)
        elif isinstance(part, ast.FunctionDef):
            names |= {part.name} | (_parameters(part) if part.name == "__init__" else set())
    return names


def inheritance(source: Source) -> list[str]:
    found, records = [], set()
    for node in source.classes:
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0].rpartition(".")[2]
            if name in ("BaseModel", "Settings") or name in records:
                records.add(node.name)
            elif name not in BASES and not name.endswith(("Error", "Exception")):
                found.append(f"{source.module}:{node.name} inherits from {name}; compose instead")
    return found


def shared_state(source: Source) -> list[str]:
    """Global variables that functions assign, and dataclasses that anyone may change."""
    found = [f"{source.module}:{n.lineno} assigns a global" for n in ast.walk(source.tree) if isinstance(n, ast.Global)]
    for node in source.classes:
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        loose = [d for d in decorators if "dataclass" in d.partition("(")[0] and "frozen=True" not in d]
        if loose and not node.name.startswith("_") and f"{source.module}:{node.name}" not in UNFROZEN:
            found.append(f"{source.module}:{node.name} is a dataclass that is not frozen")
    return found


UNORDERED = {
    "index_add": "index_add, whose order is left to chance",
    "index_add_": "index_add_, whose order is left to chance",
    "scatter_add": "scatter_add, whose order is left to chance",
    "scatter_add_": "scatter_add_, whose order is left to chance",
    "index_select": "index_select, whose gradient's order is left to chance",
}


def device_traps(source: Source) -> list[str]:
    """What works on a CPU and not on other devices: float64 (MPS has none), and sums in no fixed order (CUDA)."""
    found = []
    for call in source.calls:
        if not isinstance(call.func, ast.Attribute):
            continue
        name, owner = call.func.attr, ast.unparse(call.func.value)
        if name == "double" and not owner.endswith(".cpu()"):
            found.append(f"{source.module}:{call.lineno} takes double precision before it is on the CPU: {owner}")
        if name in UNORDERED:
            found.append(f"{source.module}:{call.lineno} uses {UNORDERED[name]} on a GPU; index with [...] instead")
    return found


EACH_FILE: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        too_long,
        foreign_owners,
        relative_imports,
        unsafe_or_noisy,
        loose_signatures,
        undocumented,
        strange_names,
        inheritance,
        shared_state,
        device_traps,
    )
}


# --- every text in the repository ----------------------------------------------------------------------------------

TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".txt", ".html", ".cfg", ".j2", ".sh", ""}
TREES = ("src", "tests", "docs", "scripts", "configs", "benchmarks", "results", ".ci")
MACHINE = re.compile(
    "|".join(["/" + "work/", "/" + "root/", "/" + "home/[a-z]", "file:" + "///", "pypi" + r"\.org/simple"])
)


def texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Every text file of the repository that is not a tool's cache, with its content."""
    paths = [path for path in root.iterdir() if path.is_file()]
    for tree in TREES:
        paths += [path for path in (root / tree).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in sorted(paths):
        # What `make coverage` leaves is no text; in a worktree ".git" is a file of git's own, which names a place.
        if path.suffix in TEXTS and not path.name.startswith(".coverage") and path.name != ".git":
            yield path, path.read_text(encoding="utf-8")


def machine_paths(name: str, text: str) -> list[str]:
    """Places that exist on one machine only."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"{name}:{number} names {hit.group()}" for number, line in lines if (hit := MACHINE.search(line))]
