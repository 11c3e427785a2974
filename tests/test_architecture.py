"""Rules of style that the source code proves. Import rules are contracts in `pyproject.toml` (`lint-imports`)."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES = ("gateway", "workers", "snapshotter")
# As they are imported: each lies in its service's folder.
PACKAGES = ("keepfit", *SERVICES)
MODULES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = {path.name: path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "keepfit").rglob("*.lua"))}

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
DOCSTRING_LINES_MAX = 15
# Entry points: what reads the environment.
READERS = {
    "keepfit/cli/main.py",
    "keepfit/cli/services.py",
    "keepfit/hash_seed.py",
    "keepfit/local/stack.py",
    # Passes a part of its environment on to its child process.
    "gateway/keepfit_gateway/recipe_checker.py",
    "keepfit/client_settings.py",
    "keepfit/settings.py",
    "keepfit/unknown_settings.py",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef

each_module = pytest.mark.parametrize("module", MODULES)
each_script = pytest.mark.parametrize("script", SCRIPTS)


@cache
def source(module: str) -> str:
    """Text of a module or script."""
    return (ROOT / module).read_text()


@cache
def tree(module: str) -> ast.Module:
    """Syntax tree of a module."""
    return ast.parse(source(module))


@cache
def nodes(node: ast.AST) -> tuple[ast.AST, ...]:
    """`node` and all nodes below it. Most tests go through those of the same modules."""
    return tuple(ast.walk(node))


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names that are imported anywhere below `node`: of ``from a import b`` both ``a`` and ``a.b``."""
    for found in nodes(node):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, "relative imports hide what is imported"
            assert found.module is not None
            yield found.module
            yield from (f"{found.module}.{alias.name}" for alias in found.names)


def tops(names: Iterator[str]) -> set[str]:
    """Top-level packages of dotted names."""
    return {name.partition(".")[0] for name in names}


def dotted(node: ast.AST) -> str:
    """A name like ``pickle.loads`` as text; '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls below `node`, with the dotted name of what is called."""
    for found in nodes(node):
        if isinstance(found, ast.Call):
            yield dotted(found.func), found


def functions(node: ast.AST) -> Iterator[Function]:
    """All functions and methods below `node`."""
    for found in nodes(node):
        if isinstance(found, Function):
            yield found


def literals(module: str) -> Iterator[str]:
    """Texts in a module, parts of f-strings among them, docstrings not."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in nodes(tree(module))
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in nodes(tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in docstrings:
            yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


def test_there_is_something_to_read() -> None:
    """The lists that the other tests go through are not empty by mistake."""
    assert {
        "keepfit/model/bundle.py",
        "gateway/keepfit_gateway/app.py",
        "workers/keepfit_workers/worker.py",
        "snapshotter/keepfit_snapshotter/run.py",
    } <= set(MODULES)
    assert {"accept.lua", "commit.lua", "claim_inbox.lua"} <= set(SCRIPTS)


# What may run.

UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "skops",
    "jsonpickle",
}
LOADERS = re.compile(
    r"(^|\.)(Unpickler|read_pickle|load_pickle|unpickle)$|^(np|numpy)\.(load|fromfile)$|^(yaml|torch|joblib)\.load$"
)


UNSIGNED = "keepfit/model/unsigned.py"


@each_module
def test_nothing_is_unpickled_but_in_one_module(module: str) -> None:
    """Services read pickles in keepfit/model/pickling.py alone, files of skops in skops_files.py, others by no module.

    The command `keepfit upload --trust` reads its user's own in unsigned.py.
    """
    found = tops(imports(tree(module))) & UNPICKLERS
    permitted = {
        "keepfit/model/pickling.py": {"pickle", "cloudpickle"},
        "keepfit/model/skops_files.py": {"skops"},
        UNSIGNED: {"joblib"},
    }
    assert found == permitted.get(module, set())
    loaders = [name for name, _ in calls(tree(module)) if LOADERS.search(name)]
    assert loaders == (["joblib.load"] if module == UNSIGNED else [])


def test_pickles_without_a_signature_are_loaded_with_trust_alone() -> None:
    """Only the command's source of files loads them, behind the two refusals: without --trust, and without a key."""
    users = {module for module in MODULES if "keepfit.model.unsigned" in set(imports(tree(module)))}
    assert users == {"keepfit/cli/trained_sources.py"}
    module = tree("keepfit/cli/trained_sources.py")
    assert [name for name, _ in calls(module)].count("unsigned.load") == 1
    functions = [function for function in nodes(module) if isinstance(function, ast.FunctionDef)]
    (opening,) = (function for function in functions if function.name == "open_source")
    (with_file,) = (statement for statement in opening.body if isinstance(statement, ast.With))
    *refusals, last = with_file.body
    assert [ast.unparse(one.test) for one in refusals if isinstance(one, ast.If)] == ["not trust", "not upload_keys"]
    assert all(isinstance(one, ast.If) and isinstance(one.body[-1], ast.Raise) for one in refusals)
    assert "_signed" in ast.unparse(last)
    assert ast.unparse(module).count("_signed") == 2


def test_unpickling_follows_the_checks() -> None:
    """Only load unpickles bytes from outside, after it has checked their signature, the model and the runtime."""
    module = tree("keepfit/model/pickling.py")
    used = [node for node in nodes(module) if isinstance(node, ast.Attribute)]
    assert {dotted(node) for node in used if re.match(r"(cloud)?pickle\.", dotted(node))} == {
        "cloudpickle.Pickler",
        "cloudpickle.dumps",
        "cloudpickle.register_pickle_by_value",
        "cloudpickle.unregister_pickle_by_value",
        "pickle.Unpickler",
        "pickle.dumps",
        "pickle.loads",
    }
    old_names, separate, copy = (
        node
        for node in nodes(module)
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(dotted, node.bases)
    )
    # It does nothing but look a name up in a table of fixed names.
    (find_class,) = functions(old_names)
    assert [ast.unparse(statement) for statement in find_class.body[1:]] == [
        "found = format2.CLASSES.get((module, name))",
        "return super().find_class(module, name) if found is None else found",
    ]
    # Each of these names occurs once: the calls in load, and that of a copy. Base classes are the three of before.
    unpicklers = (old_names.name, separate.name, "pickle.loads")
    names = [dotted(node) for node in nodes(module) if isinstance(node, ast.Attribute | ast.Name)]
    assert [names.count(name) for name in ("pickle.Unpickler", *unpicklers, copy.name)] == [3, 1, 1, 1, 1]
    # A copy unpickles what the same function has pickled, into a file that no other has.
    (with_code_of,) = (function for function in functions(module) if function.name == "with_code_of")
    assert [ast.unparse(statement) for statement in with_code_of.body[-5:]] == [
        "file = io.BytesIO()",
        "copier = _Copier(file, newer, (old, new))",
        "copier.dump(state)",
        "file.seek(0)",
        f"return {copy.name}(file, copier.references).load()",
    ]
    (load,) = (function for function in functions(module) if function.name == "load")
    lines = {name: call.lineno for name, call in calls(load)}
    assert lines["keyring.open_as"] < lines["check"] < lines["envelope.check_runtime"]
    # None of the three may be skipped: they are statements of the function itself, not of a branch.
    straight = [
        name for statement in load.body if not isinstance(statement, ast.If | ast.Try) for name, _ in calls(statement)
    ]
    assert straight == ["keyring.open_as", "check", "envelope.check_runtime"]
    (opened,) = (node for node in load.body if isinstance(node, ast.Assign))
    assert ast.unparse(opened.targets[0]) == "(header, payload)"
    for name, given in zip(unpicklers, (*["io.BytesIO(payload)"] * 2, "payload"), strict=True):
        (made,) = (call for called, call in calls(load) if called == name)
        assert lines[name] > lines["envelope.check_runtime"]
        assert list(map(ast.unparse, made.args)) == [given]


def test_each_loader_names_its_purpose() -> None:
    """Bundles are loaded as bundles and objects as objects, each in its places, and a bundle only for its own model."""
    found = {
        module: [ast.unparse(call.args[3]) for name, call in calls(tree(module)) if name == "pickling.load"]
        for module in MODULES
    }
    assert {module: purposes for module, purposes in found.items() if purposes} == {
        "keepfit/model/serialization.py": ["envelope.BUNDLE"],
        "keepfit/model/new_code.py": ["envelope.OBJECT"],
        "keepfit/model/object_bundle.py": ["envelope.OBJECT"],
        "keepfit/model/trained.py": ["envelope.OBJECT"],
        "keepfit/objects.py": ["envelope.OBJECT"],
    }
    (unseal,) = (
        function for function in functions(tree("keepfit/model/serialization.py")) if function.name == "unseal"
    )
    (check,) = (function for function in functions(unseal) if function.name == "check")
    assert "header.hash != model_hash" in ast.unparse(check)
    (loaded,) = (call for name, call in calls(unseal) if name == "pickling.load")
    assert ast.unparse(loaded.args[4]) == "check"


@each_module
def test_no_text_is_run(module: str) -> None:
    """No module evaluates text, imports by a computed name, or starts a shell."""
    names = [name for name, _ in calls(tree(module))]
    assert not {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "importlib.import_module"} & set(
        names
    )
    for _, call in calls(tree(module)):
        shell = [keyword.value for keyword in call.keywords if keyword.arg == "shell"]
        assert all(isinstance(value, ast.Constant) and value.value is False for value in shell)


RQ_MAKERS = {"Queue", "SimpleWorker", "Worker", "SpawnWorker"}


@each_module
def test_rq_never_uses_its_own_pickle(module: str) -> None:
    """Every queue, worker and job of RQ is made with our JSON serializer, and queues and workers with our Job."""
    from_rq = {
        alias.asname or alias.name
        for node in nodes(tree(module))
        if isinstance(node, ast.ImportFrom) and tops(iter([node.module or ""])) == {"rq"}
        for alias in node.names
    }
    assert "rq" not in set(imports(tree(module))) or "rq" not in {
        alias.name for node in nodes(tree(module)) if isinstance(node, ast.Import) for alias in node.names
    }, "import names from rq, so that this test sees them"
    workers = [
        node
        for node in nodes(tree(module))
        if isinstance(node, ast.ClassDef) and {dotted(base) for base in node.bases} & from_rq & RQ_MAKERS
    ]
    ours = {worker.name for worker in workers if "Queue" in map(dotted, worker.bases)}
    made = [(name, call) for name, call in calls(tree(module)) if name in (from_rq & RQ_MAKERS) | ours]
    for worker in workers:
        made += [("super", call) for _, call in calls(worker) if ast.unparse(call.func) == "super().__init__"]
    jobs = r"(^|\.)(Lease)?Job(\.(fetch|fetch_many|create))?$"
    made += [(name, call) for name, call in calls(tree(module)) if re.search(jobs, name)]
    for name, call in made:
        given = {keyword.arg: dotted(keyword.value) for keyword in call.keywords}
        assert given.get("serializer") in ("SERIALIZER", "rq_jobs.SERIALIZER"), ast.unparse(call)
        if not re.search(jobs, name):
            assert given.get("job_class") in ("LeaseJob", "rq_jobs.LeaseJob"), ast.unparse(call)
    if module in ("keepfit/jobs/rq_jobs.py", "workers/keepfit_workers/worker.py", "workers/keepfit_workers/sweep.py"):
        assert made, "this module makes queues, workers or jobs; the test does not find them any more"


@each_module
def test_the_environment_is_read_in_entry_points_only(module: str) -> None:
    """os.environ and os.getenv occur in the command line, the settings and the one-machine stack."""
    names = {dotted(node) for node in nodes(tree(module)) if isinstance(node, ast.Attribute | ast.Name)}
    used = {name for name in names if re.search(r"(^|\.)(environb?|getenvb?|putenv)$", name)}
    assert not used or module in READERS
    assert not {name for name in imports(tree(module)) if re.fullmatch(r"os\.(environb?|getenvb?)", name)}


@each_module
def test_keys_are_built_in_one_module(module: str) -> None:
    """No text with "kf:" or "rq:" stands anywhere but in keepfit/backends/redis_keys.py."""
    found = [text for text in literals(module) if re.search(r"\b(kf|rq):", text)]
    assert bool(found) == (module == "keepfit/backends/redis_keys.py")


# Size and words.


def prose(docstring: str) -> list[str]:
    """Lines of a docstring without drawings (indented) and tables (between lines of ===)."""
    text = re.sub(r"^=+ .*?^=+ [= ]+\n.*?^=+ [= ]+$", "", docstring, flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith("    ")]


@each_module
def test_every_module_says_what_it_is_in_a_few_lines(module: str) -> None:
    """Each module begins with a docstring of at most 15 lines, drawings and tables not counted."""
    docstring = ast.get_docstring(tree(module), clean=False)
    assert docstring is not None
    assert len(prose(docstring)) <= DOCSTRING_LINES_MAX


@each_module
def test_modules_and_functions_stay_small(module: str) -> None:
    """No module has more than 400 lines, no function more than 70."""
    assert len(source(module).splitlines()) <= MODULE_LINES_MAX
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions(tree(module))}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES_MAX} == {}


def test_the_median_function_is_short() -> None:
    """Half of all functions have at most 10 lines of code, their docstrings not counted."""
    lengths = []
    for module in MODULES:
        for function in functions(tree(module)):
            docstring = function.body[0] if ast.get_docstring(function) is not None else None
            documented = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring is not None else 0
            lengths.append((function.end_lineno or 0) - function.lineno + 1 - documented)
    assert sorted(lengths)[len(lengths) // 2] <= 10


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "manager", "base", "misc"])
def test_modules_are_called_after_what_they_hold(word: str) -> None:
    """No module has a name that says nothing."""
    assert not [module for module in MODULES if word in Path(module).stem.split("_")]


@each_module
def test_nothing_is_left_to_do(module: str) -> None:
    """No comment puts something off."""
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", source(module))


# The scripts.


def header(script: str) -> list[str]:
    """Comment lines at the top of a script, without their dashes."""
    lines = source(SCRIPTS[script]).splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return [line.removeprefix("--").removeprefix(" ") for line in lines[:end]]


def body(script: str) -> str:
    """Script without its header, other comments left out."""
    lines = source(SCRIPTS[script]).splitlines()[len(header(script)) :]
    return "\n".join(re.sub(r"--.*", "", line) for line in lines)


def declared(script: str, kind: str) -> list[str]:
    """Documented numbers of KEYS or ARGV, in order; "4..." for all from the fourth on."""
    return re.findall(rf"(?:^|, ){kind}\[(\d+(?:\.\.\.)?)\] +\w", "\n".join(header(script)), re.MULTILINE)


@each_script
def test_a_script_begins_with_its_meaning(script: str) -> None:
    """The header begins with the script's name and purpose, and tells what it returns."""
    lines = header(script)
    assert re.match(rf"{script.removesuffix('.lua')}: \w.*", lines[0])
    assert any(re.match(r"returns \S", line) for line in lines)
    assert "return " in body(script)


@each_script
@pytest.mark.parametrize("kind", ["KEYS", "ARGV"])
def test_a_script_declares_all_it_is_given(script: str, kind: str) -> None:
    """Each KEYS[i] and ARGV[i] that is used is in the header, each in the header is used, counted from 1."""
    documented = declared(script, kind)
    used = set(re.findall(rf"\b{kind}\[(\w+)\]", body(script)))
    rest = next((name for name in documented if name.endswith("...")), None)
    numbers = [name.removesuffix("...") for name in documented]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    if rest is None:
        assert used == set(documented)
    else:
        assert documented[-1] == rest
        # The rest is read in a loop that begins where the header says.
        assert used - set(documented[:-1]) == {"i"}
        assert re.search(rf"for i = {rest.removesuffix('...')}, #{kind}(, \d)? do", body(script))


@each_script
def test_a_script_touches_declared_keys_only(script: str) -> None:
    """Every command's key is one of KEYS as it is: none is built, as Redis Cluster demands."""
    # The key of OBJECT follows its subcommand.
    text = body(script).replace("'OBJECT', 'IDLETIME', ", "'OBJECT', ")
    commands = re.findall(r"redis\.p?call\(\s*'(\w+)'\s*(?:,\s*([^,()]+))?", text)
    assert len(commands) == len(re.findall(r"redis\.p?call\(", body(script)))
    for command, first in commands:
        if command in ("TIME", "PUBLISH"):
            continue
        assert re.fullmatch(r"KEYS\[(\d+|i)\]", (first or "").strip()), f"{command} {first}"
    assert not re.search(r"KEYS\[\w+\]\s*\.\.|\.\.\s*KEYS\[|\bkf:|\bkeys\s*=", body(script))


@each_script
def test_a_script_keeps_to_itself(script: str) -> None:
    """Variables are local, and nothing outside of the arguments decides what is written (but the server's clock)."""
    text = body(script)
    assigned = re.findall(r"^\s*([A-Za-z_]\w*)\s*=[^=]", text, re.MULTILINE)
    declared_local = {
        name.strip() for names in re.findall(r"\blocal ([\w, ]+?)\s*=", text) for name in names.split(",")
    }
    assert set(assigned) <= declared_local
    assert not re.search(r"\b(math\.random|os\.|io\.|load|loadstring|dofile|require)\b", text)


def script_calls() -> Iterator[tuple[str, ast.Call]]:
    """Calls of ``redis_scripts.call`` in the whole project, with the script's name."""
    for module in MODULES:
        for name, call in calls(tree(module)):
            if name in ("redis_scripts.call", "call") and call.args and isinstance(call.args[0], ast.Constant):
                yield str(call.args[0].value), call


def test_every_script_is_called_with_what_it_declares() -> None:
    """Wherever a script is called, it gets as many keys and arguments as its header declares."""
    called = set()
    for name, call in script_calls():
        called.add(f"{name}.lua")
        for kind, given in zip(("KEYS", "ARGV"), call.args[1:], strict=False):
            assert isinstance(given, ast.List), f"{name}: write {kind} as a list, so that they can be counted"
            documented = declared(f"{name}.lua", kind)
            fixed = [element for element in given.elts if not isinstance(element, ast.Starred)]
            open_end = bool(documented) and documented[-1].endswith("...")
            assert len(fixed) == len(documented) - open_end, f"{name}: {kind}"
            assert (len(fixed) < len(given.elts)) == open_end, f"{name}: {kind}"
        assert len(call.args) == 3 or not declared(f"{name}.lua", "ARGV")
    assert called == set(SCRIPTS)
